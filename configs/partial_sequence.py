"""Bidirectional GRU over each slice and its two neighbours, N = 3 (Bozkurt et al. 2017).

    python -m rcm_jax.main --config=configs/partial_sequence.py --workdir=runs/partial_sequence

About 2 minutes on two CPU cores with the demo preset. On the phantom's paper_small stacks
(docs/study, 5 seeds): 86.8 % accuracy and 104 impossible transitions. The paper, on its own stacks:
87.52 %.

At the ends of a stack the window is shorter, and a batch has all windows of four stacks, with one
dropout mask a stack, instead of four sub-sequences: both are our choices. The paper's other encoders:
--config.head.bidirectional=False, --config.head.cell=rnn (or lstm).
"""

from rcm_jax.configs import base


def get_config(preset: str = "demo"):
  """Returns the base with a bidirectional GRU that sees three slices at a time."""
  config = base.get_config(preset)
  config.name = "partial_sequence"
  config.head.window = 3
  return config
