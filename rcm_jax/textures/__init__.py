"""Textures of a slice: patch dictionaries and textons, learned without labels."""
