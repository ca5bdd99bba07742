"""Toeplitz attention under the likelihood of the two boundaries: the ordered head, ours.

    python -m rcm_jax.main --config=configs/ordered.py --workdir=runs/ordered

The decoder's outputs are evidence in the monotone model (`rcm_jax/ops/boundaries.py`), trained on
the boundaries that the readers' labels show. Probabilities are its marginals, strata the labelling
between the median boundaries, so that no transition is impossible, before any post-processing.
There is no class feedback: the model itself ties a slice's stratum to its neighbours'.

Readers misplace boundaries, so that a head trained on them grows too sure after some ten epochs.
It keeps the epoch and the temperature under which the boundaries of validation stacks are most
probable. On validation, more dropout, weight decay, a falling learning rate and larger batches
made no difference beyond that of seeds: they stay as for the other heads.

About 2 minutes on two CPU cores with the demo preset. On the phantom's paper_small stacks
(5 seeds, 60 epochs): 88.3 % accuracy, no impossible transition, boundary errors of 6.9 and
8.8 µm; see docs/study. An expected-error term is --config.head.mae_weights=0.1,
"""

from configs import base


def get_config(preset: str = "demo"):
  """Returns the base with a bidirectional GRU, Toeplitz attention and ordered strata."""
  config = base.get_config(preset)
  config.method = "ordered"
  config.head.attention = "toeplitz"
  config.head.half_widths = (1,)
  config.head.likelihood = "boundaries"
  if preset != "demo":
    config.head.epochs = 60  # on paper_small the kept epoch is about the tenth
  return config
