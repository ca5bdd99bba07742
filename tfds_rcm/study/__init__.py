"""A labelled collection of stacks: manifest, annotations, splits, and the plan of its dataset."""
