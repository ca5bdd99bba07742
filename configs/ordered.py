"""Toeplitz attention under the likelihood of the two boundaries: the ordered head, ours.

    python -m rcm_jax.main --config=configs/ordered.py --workdir=runs/ordered

The decoder's outputs are evidence in the monotone model (`rcm_jax/decoding/monotone_model.py`), trained on
the boundaries that the readers' labels show and on their expected error. Probabilities are its
marginals, strata the labelling between the median boundaries, so that no transition is impossible,
before any post-processing. There is no class feedback: the model itself ties a slice's stratum to
its neighbours'.

Some hundred stacks, whose boundaries readers misplace, are soon learned by heart. The head sees
few components of the features, and in training not all of them; its weights are averaged over some
hundred steps; it keeps the epoch and the temperature under which the boundaries of validation
stacks are most probable. The CNN is its own: half of the views that it is trained on have other gain,
contrast, shading, blur and noise. How these were chosen is in docs/study.
"""

from rcm_jax.configs import base


def get_config(preset: str = "demo"):
  """Returns the base with a bidirectional GRU, Toeplitz attention and ordered strata."""
  config = base.get_config(preset)
  config.name = "ordered"
  config.head.attention = "toeplitz"
  config.head.half_widths = (1,)
  config.head.likelihood = "boundaries"
  config.head.mae_weights = (0.1,)
  config.head.pca_components = 8
  config.head.input_dropout = 0.4
  config.head.ema_decay = 0.998
  config.augmentation.photometry.share = 0.5  # its CNN sees other instruments, too
  if preset != "demo":
    config.head.epochs = 60
  return config
