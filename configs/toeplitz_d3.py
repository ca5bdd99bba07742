"""Toeplitz attention over 7 slices, D = 3.

python -m rcm_jax.main --config=configs/toeplitz_d3.py --workdir=runs/toeplitz_d3
"""

from configs import base


def get_config(preset: str = "demo"):
  """Returns the base with a bidirectional GRU, Toeplitz attention and class feedback."""
  config = base.get_config(preset)
  config.method = "toeplitz_d3"
  config.head.attention = "toeplitz"
  config.head.half_widths = (3,)
  config.head.feedback = "own"
  return config
