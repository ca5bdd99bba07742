"""Texture features: which patches and which gray levels a slice is made of.

The square roots of each slice's histogram of visual words (patches as in Hames et al., PLoS ONE
2016) or of gray levels, and their principal components with unit variance over the training slices;
learned without labels, by `texture_training`. A head trained on them errs on other stacks than one
trained on the CNN's features, which have seen the training labels.

Words are filters of whole numbers, small enough for float32 to add up gray levels times weights
without rounding. Which word suits a patch best, and so a histogram, is the same in any program on
any machine.
"""

from __future__ import annotations

import dataclasses
import math
import pathlib
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, UInt8
import numpy as np

from rcm_jax.arrays import ArrayLike
from rcm_jax.textures import textons

FILE = "encoder.npz"
MAX_PATCHES = 1 << 14  # about so many are looked at: all of 134 px, every fourth of 260 px


@dataclasses.dataclass(frozen=True)
class TextureSpec:
  """What determines the features of one encoder, besides the slices.

  Attributes:
    patch: pixels a side; the words of a single pixel are equal ranges of gray levels.
    words: W, in the dictionary.
    downsampling: block size over which slices are averaged first.
    components: F, at most as many as words.
    seed: of the dictionary.
  """

  patch: int
  words: int
  downsampling: int
  components: int
  seed: int


class Encoder(NamedTuple):
  """What was learned; takes slices to features.

  Attributes:
    filters: the words as patches of whole numbers that sum to zero; of single pixels, the least
      gray level of each word, added up over a block.
    mean: of the square roots of the training slices' histograms.
    components: take deviations from the mean to features.
  """

  filters: Float[ArrayLike, "W p p"]
  mean: Float[ArrayLike, " W"]
  components: Float[ArrayLike, "W F"]


def shapes(spec: TextureSpec) -> Encoder:
  """Returns the shapes of an encoder."""
  sizes = (spec.words, spec.patch, spec.patch), (spec.words,), (spec.words, spec.components)
  return Encoder(*(jax.ShapeDtypeStruct(size, jnp.float32) for size in sizes))


def load(directory: pathlib.Path) -> Encoder:
  """Reads the encoder that `texture_training.extract` left."""
  with np.load(directory / FILE, allow_pickle=False) as file:
    return Encoder(**file)


def encode(
  encoder: Encoder, slices: UInt8[ArrayLike, "B h w"], downsampling: int
) -> Float[Array, "B F"]:
  """Returns the features of slices; traceable."""
  roots = jnp.sqrt(shares(encoder.filters, slices, downsampling))
  return jnp.matmul(roots - encoder.mean, encoder.components, precision=jax.lax.Precision.HIGHEST)


def shares(
  filters: Float[ArrayLike, "W p p"], slices: UInt8[ArrayLike, "B h w"], downsampling: int
) -> Float[Array, "B W"]:
  """Shares of the words among each slice's patches; overlapping ones, see `stride`.

  Args:
    filters: of an `Encoder`.
    slices: gray levels.
    downsampling: block size; an incomplete border is cut off.
  """
  count = _count_levels if filters.shape[1] == 1 else _count_patches
  words = jnp.asarray(filters)

  def one(image):
    counts = count(words, textons.block_sums(image[None], downsampling)[0])
    return counts / counts.sum()

  # One slice at a time: what its words have scored stays in a CPU's cache.
  return jax.lax.map(one, jnp.asarray(slices))


def stride(side: int, shape: tuple[int, int]) -> int:
  """Distance between patches, so that an image has about `MAX_PATCHES` at most."""
  rows, cols = (pixels - side + 1 for pixels in shape)
  return math.ceil(math.sqrt(rows * cols / MAX_PATCHES))


def _count_levels(least, image):
  at_least = jnp.sum(image.reshape(-1, 1) >= least.reshape(-1), axis=0)
  return at_least - jnp.append(at_least[1:], 0)


def _count_patches(filters, image):
  """A patch is the word with the largest score, the first of equals; a flat one is the first."""
  count, side, _ = filters.shape
  rows, cols = (pixels - side + 1 for pixels in image.shape)
  step = stride(side, image.shape)
  pixels = [
    image[i : i + rows : step, j : j + cols : step] for i in range(side) for j in range(side)
  ]
  patches = jnp.stack(pixels).reshape(side**2, -1)
  best = textons.largest_dot(patches, filters.reshape(count, side**2))
  return jnp.zeros(count, jnp.int32).at[best].add(1)
