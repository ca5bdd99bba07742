"""Sequence heads: encoder, attention, decoder, and their training as one program."""
