"""Tables and plots of a study."""
