"""Ordered heads on three views of a slice, the CNN's features and two of its textures; ours.

    python -m rcm_jax.main --config=configs/ordered_textures.py --workdir=runs/ordered_textures

An ordered head as in `ordered` is trained on each view by itself; of every seed, the mean of their
distributions over the boundaries is the prediction. Textures are learned without labels
(`rcm_jax/textures.py`), at full and at half resolution, and err on other stacks than the CNN. On the
phantom's paper_small stacks (5 seeds): 89.0 % accuracy, boundary errors of 6.5 and 8.0 µm, two minutes
on two CPU cores beyond the CNN; see docs/study.
Such a run leaves no model for `predict` and `export`, which know a CNN with heads on it.
"""

import ml_collections

from configs import ordered


def get_config(preset: str = "demo"):
  """Returns `ordered` with two more views."""
  config = ordered.get_config(preset)
  config.method = "ordered_textures"
  config.model = "views"
  config.textures = ml_collections.ConfigDict()
  config.textures.words = 300
  config.textures.downsampling = (1, 2)  # a view each
  config.textures.components = 32
  config.textures.seed = 0
  return config
