"""A finished model on labelled stacks that it has never seen."""
