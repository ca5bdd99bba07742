"""Models in formats that others run."""
