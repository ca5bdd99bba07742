"""Leung-Malik textons and a three-layer network (Kaur et al. 2016).

    python -m rcm_jax.main --config=configs/kaur.py --workdir=runs/kaur

What their paper leaves open is searched for on the validation stacks and recorded in the cache.
"""

from configs import base


def get_config(preset: str = "demo"):
  """Returns the base with Kaur's classifier."""
  config = base.get_config(preset)
  config.method = "kaur"
  config.model = "kaur"
  return config
