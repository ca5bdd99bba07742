"""Toeplitz attention of width one, D = 0: a full-sequence GRU with class feedback.

python -m rcm_jax.main --config=configs/toeplitz_d0.py --workdir=runs/toeplitz_d0
"""

from configs import base


def get_config(preset: str = "demo"):
  """Returns the base with a bidirectional GRU, Toeplitz attention and class feedback."""
  config = base.get_config(preset)
  config.method = "toeplitz_d0"
  config.head.attention = "toeplitz"
  config.head.half_widths = (0,)
  config.head.feedback = "own"
  return config
