"""Bidirectional GRU over the whole stack, without attention and feedback (Bozkurt et al. 2017).

    python -m rcm_jax.main --config=configs/full_sequence.py --workdir=runs/full_sequence

The paper's other encoders: --config.head.bidirectional=False, --config.head.cell=rnn (or lstm).
"""

from configs import base


def get_config(preset: str = "demo"):
  """Returns the base with a bidirectional GRU and a fully connected layer."""
  config = base.get_config(preset)
  config.method = "full_sequence"
  return config
