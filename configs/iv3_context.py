"""Inception-V3 with the two neighbouring slices as further channels (IV3-Context).

    python -m rcm_jax.main --config=configs/iv3_context.py --workdir=runs/iv3_context

About 5 minutes (three CNNs) on two CPU cores with the demo preset. On the phantom's paper_small
stacks (docs/study, 3 seeds): 85.9 % accuracy and 319 impossible transitions. The paper, on its own
stacks: 86.95 %.

At the ends of a stack the end slice stands in for its missing neighbour, which is our choice; so is
all that configs/base.py marks under `cnn`.
"""

from rcm_jax.configs import base


def get_config(preset: str = "demo"):
  """Returns the base with the CNN on three slices at a time."""
  config = base.get_config(preset)
  config.name = "iv3_context"
  config.pipeline = "cnn"
  config.cnn.context = 3
  return config
