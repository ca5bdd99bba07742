"""The CNN and its features as one small file: heads are trained from it without any images.

    python -m rcm_jax.main --config=configs/features.py:paper_small --workdir=runs/features
    python -m rcm_jax.main --config=configs/toeplitz_d1.py --workdir=runs/from_features \
      --config.features.file=runs/features/features.npz

The second command takes minutes at the paper's scale, and no images. The model that it leaves reads
files of features (`rcm_jax.predict --features`), not images. docs/encoders.md has the format, and how
another network's features come into it.
"""

from rcm_jax.configs import base


def get_config(preset: str = "demo"):
  """Returns the base with the single-slice CNN, whose features are written down."""
  config = base.get_config(preset)
  config.name = "inception_v3"
  config.pipeline = "features"
  return config
