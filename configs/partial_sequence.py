"""Bidirectional GRU over each slice and its two neighbours, N = 3 (Bozkurt et al. 2017).

    python -m rcm_jax.main --config=configs/partial_sequence.py --workdir=runs/partial_sequence

At the ends of a stack the window is shorter, which is our choice. The paper's other encoders:
--config.head.bidirectional=False, --config.head.cell=rnn (or lstm).
"""

from configs import base


def get_config(preset: str = "demo"):
  """Returns the base with a bidirectional GRU that sees three slices at a time."""
  config = base.get_config(preset)
  config.method = "partial_sequence"
  config.head.window = 3
  return config
