"""TFDS builders for stacks of reflectance confocal microscopy images."""
