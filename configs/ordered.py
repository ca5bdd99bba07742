"""Toeplitz attention under the likelihood of the two boundaries: the ordered head, ours.

    python -m rcm_jax.main --config=configs/ordered.py --workdir=runs/ordered

The decoder's outputs are evidence in the monotone model (`rcm_jax/ops/boundaries.py`), trained on
the boundaries that the readers' labels show. Probabilities are its marginals, strata the labelling
between the median boundaries, so that no transition is impossible, before any post-processing.
There is no class feedback: the model itself ties a slice's stratum to its neighbours'.

About 4 minutes on two CPU cores with the demo preset. On the phantom's paper_small stacks
(docs/study, 5 seeds): 87.4 % accuracy, no impossible transition, boundary errors of 7.1 and
10.2 µm, where toeplitz_d1 has 87.4 %, 5, 7.3 and 9.9 µm. An expected-error term is
--config.head.mae_weights=0.1,
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
