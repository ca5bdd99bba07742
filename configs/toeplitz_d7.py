"""Toeplitz attention over 15 slices, D = 7.

python -m rcm_jax.main --config=configs/toeplitz_d7.py --workdir=runs/toeplitz_d7
"""

from configs import base


def get_config(preset: str = "demo"):
  """Returns the base with a bidirectional GRU, Toeplitz attention and class feedback."""
  config = base.get_config(preset)
  config.method = "toeplitz_d7"
  config.head.attention = "toeplitz"
  config.head.half_widths = (7,)
  config.head.feedback = "own"
  return config
