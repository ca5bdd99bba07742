"""Skin strata in reflectance confocal microscopy stacks: attention over depth, in JAX."""

__version__ = "0.1.0"
