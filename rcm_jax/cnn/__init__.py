"""Inception-V3: its definition, pretrained weights, training and extraction."""
