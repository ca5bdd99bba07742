"""Inception-V3 on single slices: the baseline whose features the sequence models see.

    python -m rcm_jax.main --config=configs/inception_v3.py --workdir=runs/inception_v3

About 4 minutes (three CNNs) on two CPU cores with the demo preset. On the phantom's paper_small
stacks (docs/study, 3 seeds): 85.8 % accuracy and 355 impossible transitions. The paper, on its own
stacks: 84.87 % and 68.

The paper leaves open the size of the images, optimiser, learning rate, epochs, batch and class
weights: see `cnn` in configs/base.py. There are no class weights here.
"""

from rcm_jax.configs import base


def get_config(preset: str = "demo"):
  """Returns the base with the CNN alone."""
  config = base.get_config(preset)
  config.name = "inception_v3"
  config.pipeline = "cnn"
  return config
