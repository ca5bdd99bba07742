"""Learns the texture features of `rcm_jax.textures.encoder` on training slices, without their labels."""

from __future__ import annotations

from collections.abc import Mapping
import pathlib

import jax
import jax.numpy as jnp
from jaxtyping import Float, UInt8
import numpy as np

from rcm_jax.data import pca
from rcm_jax.data.slices import Slices
from rcm_jax.runtime.metric_writer import Advance
from rcm_jax.textures import dictionary, textons
from rcm_jax.textures import encoder as texture_encoder
from rcm_jax.textures.encoder import Encoder, TextureSpec

_EXACT = 2**24  # float32 holds every whole number up to here


def extract(
  spec: TextureSpec, splits: Mapping[str, Slices], directory: pathlib.Path, advance: Advance
) -> None:
  """Learns on the training slices, and writes `SPLIT_features.npy` [n, F] of every split.

  Args:
    spec: of the features.
    splits: slices by split, with "train" among them.
    directory: gets the files, and the encoder, which `textures.load` reads.
    advance: called with the splits done and the splits in all.

  Raises:
    UserError: the slices are flat.
  """
  filters = learn_filters(spec, splits["train"].slices)
  root = jax.jit(lambda batch: jnp.sqrt(texture_encoder.shares(filters, batch, spec.downsampling)))
  roots = {}
  for name, split in splits.items():
    roots[name] = textons.stream(root, split.slices)
    advance(len(roots), len(splits))
  learned = pca.learn(roots["train"], spec.components)
  np.savez(directory / texture_encoder.FILE, **Encoder(filters, *learned)._asdict())
  for name, values in roots.items():
    np.save(directory / f"{name}_features.npy", learned(values))


def learn_filters(
  spec: TextureSpec, slices: UInt8[np.ndarray, "n h w"]
) -> Float[np.ndarray, "W p p"]:
  """Returns the filters of an `Encoder`; see there.

  Raises:
    UserError: the slices are flat.
  """
  if spec.patch == 1:
    least = np.arange(spec.words) * 256 // spec.words * spec.downsampling**2
    return least.astype(np.float32).reshape(-1, 1, 1)
  basis, words = dictionary.learn_words(
    slices, count=spec.words, factor=spec.downsampling, seed=spec.seed
  )
  return whole_filters(basis, words, spec.downsampling)


def whole_filters(
  basis: Float[np.ndarray, "rank p p"], words: Float[np.ndarray, "W rank"], downsampling: int
) -> Float[np.ndarray, "W p p"]:
  """Folds words and whitening into filters, and rounds these to whole numbers.

  No partial sum of weights times gray levels, the latter added up over blocks, leaves the range
  in which float32 is exact.

  Args:
    basis: whitening filters, each with zero sum.
    words: in whitened coordinates.
    downsampling: block size.
  """
  folded = np.einsum("wr,rpq->wpq", words, basis, dtype=np.float64)
  centre = (slice(None), basis.shape[1] // 2, basis.shape[2] // 2)
  folded[centre] = 0
  largest = np.abs(folded).sum((1, 2)).max()
  # Twice as much, since the centre is to weigh as much as all others together.
  filters = np.trunc(folded * (_EXACT / (2 * 255 * downsampling**2 * largest)))
  filters[centre] = -filters.sum((1, 2))
  return filters.astype(np.float32)
