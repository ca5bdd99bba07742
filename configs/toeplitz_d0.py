"""Toeplitz attention of width one, D = 0: a full-sequence GRU with class feedback.

    python -m rcm_jax.main --config=configs/toeplitz_d0.py --workdir=runs/toeplitz_d0

About 2 minutes on two CPU cores with the demo preset. On the phantom's paper_small stacks
(docs/study, 5 seeds): 87.5 % accuracy and 9 impossible transitions. The paper, on its own stacks:
87.57 % and 18.

The paper does not say what the decoder is fed in training: here its own probabilities, or
--config.head.feedback=teacher, scheduled or none.
"""

from rcm_jax.configs import base


def get_config(preset: str = "demo"):
  """Returns the base with a bidirectional GRU, Toeplitz attention and class feedback."""
  config = base.get_config(preset)
  config.name = "toeplitz_d0"
  config.head.attention = "toeplitz"
  config.head.half_widths = (0,)
  config.head.feedback = "own"
  return config
