"""Strata by depth alone, and by depth and the stack's end: no image is looked at.

    python -m rcm_jax.main --config=configs/depth_prior.py --workdir=runs/depth_prior

Not in the paper. Gradient boosting on a slice's depth in µm (row `depth_alone`), and on its
distance from the stack's last slice, too (`depth_and_end`): what whole-stack methods can know
without looking, and so the floor of every table. A few seconds, however large the preset.
"""

from rcm_jax.configs import base


def get_config(preset: str = "demo"):
  """Returns the base with the two priors; trees are fitted the same whatever the seed."""
  config = base.get_config(preset)
  config.name = "depth_prior"
  config.pipeline = "depth_prior"
  config.seeds = (0,)
  return config
