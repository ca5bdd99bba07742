"""Textons, histograms and logistic regression (Hames et al. 2016).

    python -m rcm_jax.main --config=configs/hames.py --workdir=runs/hames

What their paper leaves open is searched for on the validation stacks and recorded in the cache.
"""

from configs import base


def get_config(preset: str = "demo"):
  """Returns the base with Hames' classifier."""
  config = base.get_config(preset)
  config.method = "hames"
  config.model = "hames"
  return config
