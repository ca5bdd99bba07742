"""Toeplitz attention over 5 slices, D = 2.

python -m rcm_jax.main --config=configs/toeplitz_d2.py --workdir=runs/toeplitz_d2
"""

from configs import base


def get_config(preset: str = "demo"):
  """Returns the base with a bidirectional GRU, Toeplitz attention and class feedback."""
  config = base.get_config(preset)
  config.method = "toeplitz_d2"
  config.head.attention = "toeplitz"
  config.head.half_widths = (2,)
  config.head.feedback = "own"
  return config
