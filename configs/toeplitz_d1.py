"""Toeplitz attention over the slice and its two neighbours, D = 1: the paper's best method.

    python -m rcm_jax.main --config=configs/toeplitz_d1.py --workdir=runs/toeplitz_d1

About 2 minutes on two CPU cores with the demo preset. On the phantom's paper_small stacks
(docs/study, 5 seeds): 87.4 % accuracy and 7 impossible transitions. The paper, on its own stacks:
88.07 % and 3.

Reports D = 0 (full-sequence GRU with feedback) and Inception-V3 of the same run besides. The paper
does not say what the decoder is fed in training: here its own probabilities, or
--config.head.feedback=teacher, scheduled or none. Beyond the ends of a stack weights are lost, as
in the paper's map; --config.head.edge_mode=renormalize shares them out.
"""

from rcm_jax.configs import base


def get_config(preset: str = "demo"):
  """Returns the base with a bidirectional GRU, Toeplitz attention and class feedback."""
  config = base.get_config(preset)
  config.name = "toeplitz_d1"
  config.head.attention = "toeplitz"
  config.head.half_widths = (0, 1)
  config.head.feedback = "own"
  return config
