"""Toeplitz attention, D = 1, fine-tuned together with the CNN, which the paper could not do; ours.

    python -m rcm_jax.main --config=configs/end_to_end.py --workdir=runs/end_to_end

The two-stage solution of `toeplitz_d1` is trained first, or taken from the cache, and keeps rows of
its own. See `rcm_jax/run/end_to_end.py` for the training. On the phantom's paper_small stacks it took six
minutes on two CPU cores beyond the two stages, and no epoch was better than these on validation, so
that both rows were equal: docs/bedside.md.
"""

import ml_collections

from rcm_jax.configs import toeplitz_d1


def get_config(preset: str = "demo"):
  """Returns `toeplitz_d1` without D = 0, and a third stage."""
  config = toeplitz_d1.get_config(preset)
  config.name = "toeplitz_d1_end_to_end"
  config.pipeline = "end_to_end"
  config.head.half_widths = (1,)

  config.end_to_end = ml_collections.ConfigDict()
  config.end_to_end.epochs = 8
  config.end_to_end.batch_size = 4  # stacks
  config.end_to_end.cnn_rate = 1e-4  # Adam, one warm-up epoch, cosine decay
  config.end_to_end.head_rate = 3e-4
  # Slices that the CNN sees at once. On a CPU all of a step's, which small ones allow, because
  # XLA is slow at loops of convolutions there.
  config.end_to_end.micro_batch = 32 if preset == "paper" else 4 * config.head.max_slices
  config.end_to_end.remat = preset == "paper"
  return config
