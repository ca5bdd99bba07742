"""Textons, histograms and logistic regression (Hames et al. 2016).

    python -m rcm_jax.main --config=configs/hames.py --workdir=runs/hames

About a minute on two CPU cores with the demo preset. On the phantom's paper_small stacks
(docs/study, 3 seeds): 85.2 % accuracy and 426 impossible transitions. The paper, on its own stacks:
84.48 % and 140.

What their paper leaves open (words, down-sampling, transform, penalty) is searched for on the
validation stacks and recorded in the cache.
"""

from rcm_jax.configs import base


def get_config(preset: str = "demo"):
  """Returns the base with Hames' classifier."""
  config = base.get_config(preset)
  config.name = "hames"
  config.pipeline = "hames"
  return config
