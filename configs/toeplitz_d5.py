"""Toeplitz attention over 11 slices, D = 5.

python -m rcm_jax.main --config=configs/toeplitz_d5.py --workdir=runs/toeplitz_d5
"""

from configs import base


def get_config(preset: str = "demo"):
  """Returns the base with a bidirectional GRU, Toeplitz attention and class feedback."""
  config = base.get_config(preset)
  config.method = "toeplitz_d5"
  config.head.attention = "toeplitz"
  config.head.half_widths = (5,)
  config.head.feedback = "own"
  return config
