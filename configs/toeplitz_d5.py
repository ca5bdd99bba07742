"""Toeplitz attention over 11 slices, D = 5.

    python -m rcm_jax.main --config=configs/toeplitz_d5.py --workdir=runs/toeplitz_d5

About 2 minutes on two CPU cores with the demo preset. On the phantom's paper_small stacks
(docs/study, 5 seeds): 87.0 % accuracy and 1 impossible transition. The paper, on its own stacks:
86.63 % and 4.

The paper does not say what the decoder is fed in training: here its own probabilities, or
--config.head.feedback=teacher, scheduled or none. Beyond the ends of a stack weights are lost, as
in the paper's map; --config.head.edge_mode=renormalize shares them out.
"""

from rcm_jax.configs import base


def get_config(preset: str = "demo"):
  """Returns the base with a bidirectional GRU, Toeplitz attention and class feedback."""
  config = base.get_config(preset)
  config.name = "toeplitz_d5"
  config.head.attention = "toeplitz"
  config.head.half_widths = (5,)
  config.head.feedback = "own"
  return config
