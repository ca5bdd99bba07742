"""Leung-Malik textons and a three-layer network (Kaur et al. 2016).

    python -m rcm_jax.main --config=configs/kaur.py --workdir=runs/kaur

About a minute and a half on two CPU cores with the demo preset. On the phantom's paper_small stacks
(docs/study, 3 seeds): 84.8 % accuracy and 418 impossible transitions. The paper, on its own stacks:
72.12 % and 201.

What their paper leaves open (filters, widths, optimiser) is searched for on the validation stacks
and recorded in the cache.
"""

from rcm_jax.configs import base


def get_config(preset: str = "demo"):
  """Returns the base with Kaur's classifier."""
  config = base.get_config(preset)
  config.name = "kaur"
  config.pipeline = "kaur"
  return config
