"""Ordered heads on four views of a slice, the CNN's features and three of its textures; ours.

    python -m rcm_jax.main --config=configs/ordered_textures.py --workdir=runs/ordered_textures

An ordered head as in `ordered` is trained on each view by itself; of every seed, the mean of their
distributions over the boundaries is the prediction. Textures are histograms of patches and of gray
levels, learned without labels (`rcm_jax/textures/encoder.py`): a view at full resolution, one at half and
one with both. They err on other stacks than the CNN; see docs/study.
"""

import ml_collections

from rcm_jax.configs import ordered


def get_config(preset: str = "demo"):
  """Returns `ordered` with three more views."""
  config = ordered.get_config(preset)
  config.name = "ordered_textures"
  config.pipeline = "views"
  config.textures = ml_collections.ConfigDict()
  config.textures.words = 300
  config.textures.components = 16  # of each histogram of words
  config.textures.gray_levels = 32
  config.textures.gray_components = 8
  config.textures.views = ((1,), (2,), (1, 2))  # down-samplings; each sees the gray levels, too
  config.textures.seed = 0
  return config
