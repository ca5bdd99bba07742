"""Toeplitz attention under the likelihood of the two boundaries: the ordered head, ours.

    python -m rcm_jax.main --config=configs/ordered.py --workdir=runs/ordered

The decoder's outputs are evidence in the monotone model (`rcm_jax/ops/boundaries.py`), trained on
the boundaries that the readers' labels show. Probabilities are its marginals, strata the labelling
between the median boundaries, so that no transition is impossible, before any post-processing.
There is no class feedback: the model itself ties a slice's stratum to its neighbours'.

About 4 minutes on two CPU cores. On features of a CNN trained for 6 epochs on the demo phantom
(3 seeds): 79.5 % accuracy, no impossible transition, boundary errors of 11.4 and 14.9 µm, where
toeplitz_d1 had 77.8 %, 3, 11.5 and 17.2 µm. An expected-error term (--config.head.mae_weights=0.1,)
lowered the first error to 11.0 and raised the second to 16.6 µm.
"""

from configs import base


def get_config(preset: str = "demo"):
  """Returns the base with a bidirectional GRU, Toeplitz attention and ordered strata."""
  config = base.get_config(preset)
  config.method = "ordered"
  config.head.attention = "toeplitz"
  config.head.half_widths = (1,)
  config.head.likelihood = "boundaries"
  return config
