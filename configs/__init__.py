"""One file a method of Table 1, on a shared base."""
