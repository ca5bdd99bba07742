"""Inception-V3 with the two neighbouring slices as further channels (IV3-Context).

    python -m rcm_jax.main --config=configs/iv3_context.py --workdir=runs/iv3_context

At the ends of a stack the end slice stands in for its missing neighbour, which is our choice.
"""

from configs import base


def get_config(preset: str = "demo"):
  """Returns the base with the CNN on three slices at a time."""
  config = base.get_config(preset)
  config.method = "iv3_context"
  config.model = "cnn"
  config.cnn.context = 3
  return config
