"""Bidirectional GRU over the whole stack, without attention and feedback (Bozkurt et al. 2017).

    python -m rcm_jax.main --config=configs/full_sequence.py --workdir=runs/full_sequence

About 2 minutes on two CPU cores with the demo preset. On the phantom's paper_small stacks
(docs/study, 5 seeds): 87.1 % accuracy and 14 impossible transitions. The paper, on its own stacks:
87.97 % and 7.

The paper's other encoders: --config.head.bidirectional=False, --config.head.cell=rnn (or lstm). The
optimiser, its learning rate and the batch are ours (configs/base.py).
"""

from rcm_jax.configs import base


def get_config(preset: str = "demo"):
  """Returns the base with a bidirectional GRU and a fully connected layer."""
  config = base.get_config(preset)
  config.name = "full_sequence"
  return config
