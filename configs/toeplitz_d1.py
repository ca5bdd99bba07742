"""Toeplitz attention over the slice and its two neighbours, D = 1: the paper's best method.

    python -m rcm_jax.main --config=configs/toeplitz_d1.py --workdir=runs/toeplitz_d1

Reports D = 0 (full-sequence GRU with feedback) and Inception-V3 of the same run besides.
"""

from configs import base


def get_config(preset: str = "demo"):
  """Returns the base with a bidirectional GRU, Toeplitz attention and class feedback."""
  config = base.get_config(preset)
  config.method = "toeplitz_d1"
  config.head.attention = "toeplitz"
  config.head.half_widths = (0, 1)
  config.head.feedback = "own"
  return config
