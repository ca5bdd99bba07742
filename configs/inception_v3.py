"""Inception-V3 on single slices: the baseline whose features the sequence models see.

python -m rcm_jax.main --config=configs/inception_v3.py --workdir=runs/inception_v3
"""

from configs import base


def get_config(preset: str = "demo"):
  """Returns the base with the CNN alone."""
  config = base.get_config(preset)
  config.method = "inception_v3"
  config.model = "cnn"
  return config
