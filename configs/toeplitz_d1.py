"""Toeplitz attention over the slice and its two neighbours, D = 1: the paper's best method.

    python -m rcm_jax.main --config=configs/toeplitz_d1.py --workdir=runs/toeplitz_d1

Reports D = 0 (full-sequence GRU with feedback) and Inception-V3 of the same run besides. About
4 minutes on two CPU cores; on the demo phantom's test stacks 80 % (D = 1), 79 % (D = 0) and 74 %
(Inception-V3) accuracy, with 7, 20 and 94 impossible transitions. The paper, on its own data:
88.07, 87.57 and 84.87 %, with 3, 18 and 68.
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
