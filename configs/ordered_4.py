"""The ordered head with stratum corneum told apart: four strata in their order, ours.

    python -m rcm_jax.main --config=configs/ordered_4.py --workdir=runs/ordered_4

The same model as `configs/ordered.py` on the same stacks, whose labels keep stratum corneum apart from
the viable epidermis (`config.data.strata = 4`): the CNN and the heads have four outputs, the
monotone model three boundaries. `predict` then also tells the corneum's lower end, and how thick corneum
and viable epidermis are. The paper has no such rows. A stack that begins below the corneum is
understood; a study in which nobody labelled it is refused.
"""

from rcm_jax.configs import ordered


def get_config(preset: str = "demo"):
  """Returns the ordered head with four strata."""
  config = ordered.get_config(preset)
  config.name = "ordered_4"
  config.data.strata = 4
  return config
