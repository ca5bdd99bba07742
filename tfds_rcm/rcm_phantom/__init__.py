"""A simulator of labelled RCM stacks, and the TFDS dataset that it fills."""
