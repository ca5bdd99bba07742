"""Texture features: which patches a slice is made of, learned without labels.

A dictionary of patches as in Hames et al. (PLoS ONE 2016, `baselines.hames`), the square roots of
each slice's histogram of words, and their principal components with unit variance over the
training slices. A head trained on them errs on other stacks than one trained on the CNN's
features, which have seen the training labels.
"""

from __future__ import annotations

from collections.abc import Mapping
import dataclasses
import pathlib

import numpy as np

from rcm_jax.baselines import hames
from rcm_jax.data import Slices
from rcm_jax.writer import Advance


@dataclasses.dataclass(frozen=True)
class TextureSpec:
  """What determines the features, besides the slices.

  Attributes:
    words: in the dictionary.
    downsampling: block size over which slices are averaged first.
    components: F, at most as many as words.
    seed: of the dictionary.
  """

  words: int
  downsampling: int
  components: int
  seed: int


def extract(
  spec: TextureSpec, splits: Mapping[str, Slices], directory: pathlib.Path, advance: Advance
) -> None:
  """Learns on the training slices, and writes `SPLIT_features.npy` [n, F] of every split.

  Args:
    spec: of the features.
    splits: slices by split, with "train" among them.
    directory: gets the files, and `model.npz`: basis, words, mean and components.
    advance: called with the splits done and the splits in all.

  Raises:
    UserError: the slices are flat.
  """
  basis, words = hames.learn_words(
    splits["train"].slices, count=spec.words, factor=spec.downsampling, seed=spec.seed
  )
  roots = {}
  for name, split in splits.items():
    roots[name] = np.sqrt(hames.frequencies_of(split.slices, basis, words, spec.downsampling))
    advance(len(roots), len(splits))
  mean = roots["train"].mean(0)
  covariance = np.cov(roots["train"], rowvar=False, dtype=np.float64)
  variances, directions = np.linalg.eigh(covariance)
  kept = slice(None, -spec.components - 1, -1)  # eigenvalues rise
  # A flat direction, as of a word that no slice has, stays flat.
  scale = np.sqrt(np.maximum(variances[kept], 1e-12))
  components = (directions[:, kept] / scale).astype(np.float32)
  np.savez(directory / "model.npz", basis=basis, words=words, mean=mean, components=components)
  for name, values in roots.items():
    np.save(directory / f"{name}_features.npy", (values - mean) @ components)
