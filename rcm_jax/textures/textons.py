"""Dense texton encoding of slices: what the two texture baselines share.

Both baselines of the paper describe a slice by a histogram of textons: a filter
bank responds at every pixel, each response vector is assigned to one or a few
entries of a dictionary, and the assignments are counted over the slice.

Every filter here sums to zero. Two consequences are used throughout. Patches
can be taken relative to their centre pixel, so that a flat patch answers with
exact zeros whatever its gray level. And a bank of p x p filters spans at most
p² - 1 dimensions, so responses are computed once in an orthonormal basis of that
span and compared with the dictionary there, which is exact and several times
cheaper than a convolution per dictionary entry.

Dimension letters besides those of `rcm_jax.arrays`: R filters of a bank, P
pixels of a batch laid out last, W words (textons) of a dictionary.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
import dataclasses
import functools
import json
import os
import pathlib
from typing import TypeVar

import jax
from jax import lax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, Shaped, UInt8
import numpy as np

from rcm_jax.arrays import ArrayLike
from rcm_jax.ops.backend import backend
from tfds_rcm.errors import UserError

_Model = TypeVar("_Model")
WORDS_PER_STEP = 50  # scores of a few tens of words stay in cache while the best is kept
# Pixels read together, and values held together while they are encoded: on a CPU what its caches
# bear, on an accelerator enough work for each launch.
_PIXELS_PER_BATCH = {"cpu": 1 << 15, "accelerator": 1 << 22}
_LIVE_VALUES = {"cpu": 3 << 20, "accelerator": 1 << 30}

_matmul = functools.partial(jnp.matmul, precision=lax.Precision.HIGHEST)


def _for_backend(amounts: dict[str, int]) -> int:
  return amounts["cpu" if backend() == "cpu" else "accelerator"]


def leung_malik_bank(
  support: int = 5, scales: tuple[float, ...] = (0.5, 0.5**0.5, 1.0), orientations: int = 6
) -> Float[np.ndarray, "R support support"]:
  """Leung and Malik's 48 filters on a small support, zero-mean, unit L1 norm.

  The bank holds first and second derivatives of Gaussians elongated threefold
  (three scales, six orientations), eight Laplacians of Gaussians (four scales
  and three times those) and four Gaussians. Kaur et al. say 5 x 5 pixels and no
  widths; the published widths sqrt(2) to 4 belong to a support of 49 pixels and are all
  but indistinguishable on 5. Choice: the same geometric progression, started at
  half a pixel.

  Args:
    support: side of a filter in pixels, odd.
    scales: standard deviations of the oriented filters across their axis, in
      pixels.
    orientations: directions of the oriented filters over half a turn.

  Returns:
    The filters: edges, bars, Laplacians, Gaussians.

  Raises:
    ValueError: the support is even or below 3.
  """
  if support < 3 or support % 2 == 0:
    raise ValueError(f"filter support is {support}; expected an odd number of pixels, 3 or more")
  half = support // 2
  y, x = np.mgrid[half : -half - 1 : -1, -half : half + 1].astype(np.float64)

  def gaussian_derivative(t: np.ndarray, sigma: float, order: int) -> np.ndarray:
    g = np.exp(-(t**2) / (2 * sigma**2))
    return {0: g, 1: -t / sigma**2 * g, 2: (t**2 - sigma**2) / sigma**4 * g}[order]

  filters = []
  for order in (1, 2):
    for sigma in scales:
      for angle in np.pi * np.arange(orientations) / orientations:
        along = x * np.cos(angle) + y * np.sin(angle)
        across = y * np.cos(angle) - x * np.sin(angle)
        filters.append(
          gaussian_derivative(along, 3 * sigma, 0) * gaussian_derivative(across, sigma, order)
        )
  isotropic = [scales[0] * 2 ** (i / 2) for i in range(4)]
  radius2 = x**2 + y**2
  for sigma in isotropic + [3 * s for s in isotropic]:
    filters.append((radius2 - 2 * sigma**2) * np.exp(-radius2 / (2 * sigma**2)))
  for sigma in isotropic:
    filters.append(np.exp(-radius2 / (2 * sigma**2)))

  bank = np.stack(filters)
  bank -= bank.mean((1, 2), keepdims=True)
  return bank / np.abs(bank).sum((1, 2), keepdims=True)


def isometry(
  filters: Float[np.ndarray, "R size size"],
) -> tuple[Float[np.ndarray, "rank size size"], Float[np.ndarray, "rank R"]]:
  """A shorter bank whose responses keep every inner product of the long one's.

  Args:
    filters: a bank, of rank at most size².

  Returns:
    The short bank, and the map that takes response vectors of the long bank to
    response vectors of the short one. Distances between responses are the same
    in both.
  """
  count, size, _ = filters.shape
  u, s, vt = np.linalg.svd(filters.reshape(count, -1).astype(np.float64), full_matrices=False)
  rank = int(np.sum(s > s[0] * 1e-6))
  return (s[:rank, None] * vt[:rank]).reshape(rank, size, size), u[:, :rank].T


def downsample(slices: Shaped[ArrayLike, "B h w"], factor: int) -> Float[Array, "B rows cols"]:
  """Gray levels averaged over factor x factor blocks; an incomplete border is cut off."""
  return block_sums(slices, factor) / factor**2


def block_sums(slices: Shaped[ArrayLike, "B h w"], factor: int) -> Float[Array, "B rows cols"]:
  """Gray levels added up over factor x factor blocks; an incomplete border is cut off."""
  images = jnp.asarray(slices, jnp.float32)
  if factor == 1:
    return images
  batch, rows, cols = images.shape[0], images.shape[1] // factor, images.shape[2] // factor
  images = images[:, : rows * factor, : cols * factor]
  return images.reshape(batch, rows, factor, cols, factor).sum((2, 4))


def responses(
  images: Float[Array, "B rows cols"], filters: Float[ArrayLike, "R size size"]
) -> Float[Array, "R B P"]:
  """Correlates zero-sum filters with every whole patch of the images.

  Args:
    images: gray levels.
    filters: filters that each sum to zero.

  Returns:
    Responses, exact zeros on flat patches; P runs over the patches of an image,
    row by row.
  """
  size = filters.shape[-1]
  batch = images.shape[0]
  rows, cols = images.shape[1] - size + 1, images.shape[2] - size + 1
  shifted = lambda i, j: images[:, i : i + rows, j : j + cols]
  centre = shifted(size // 2, size // 2)
  patches = jnp.stack([shifted(i, j) - centre for i in range(size) for j in range(size)])
  kernels = jnp.asarray(filters, jnp.float32).reshape(-1, size * size)
  return _matmul(kernels, patches.reshape(size * size, -1)).reshape(-1, batch, rows * cols)


def largest_dot(vectors: Float[Array, "R P"], words: Float[ArrayLike, "W R"]) -> Int[Array, " P"]:
  """Index of the word with the largest dot product, the first one of a tie.

  Equals `argmax(words @ vectors, axis=0)` without holding the scores of all
  words at once.
  """
  words = jnp.asarray(words)
  steps = -(-len(words) // WORDS_PER_STEP)
  per_step = -(-len(words) // steps)
  # Copies of word 0 fill the last step: they can tie with it but never beat it.
  filler = jnp.broadcast_to(words[:1], (steps * per_step - len(words), words.shape[1]))
  blocks = jnp.concatenate([words, filler]).reshape(steps, per_step, -1)

  def step(carry, block):
    best, index, offset = carry
    scores = _matmul(block, vectors)
    for k in range(per_step):
      better = scores[k] > best
      best = jnp.where(better, scores[k], best)
      index = jnp.where(better, offset + k, index)
    return (best, index, offset + per_step), None

  pixels = vectors.shape[1]
  start = (jnp.full(pixels, -jnp.inf, vectors.dtype), jnp.zeros(pixels, jnp.int32), jnp.int32(0))
  (_, index, _), _ = lax.scan(step, start, blocks)
  return index


def soft_weights(
  vectors: Float[Array, "R P"], words: Float[ArrayLike, "W R"], neighbors: int
) -> Float[Array, "W P"]:
  """Shares every vector among its nearest words, in proportion to 1 / distance.

  Args:
    vectors: response vectors.
    words: dictionary.
    neighbors: words that take a share, at most W.

  Returns:
    Weights that sum to one over the words.
  """
  words = jnp.asarray(words)
  count, pixels = len(words), vectors.shape[1]
  squared = (
    jnp.sum(words**2, 1)[:, None] - 2 * _matmul(words, vectors) + jnp.sum(vectors**2, 0)[None]
  )
  squared = jnp.maximum(squared, 1e-12)

  # A sort of every pixel's distances costs five times what these passes do, which keep all
  # pixels in step. They are loops so that XLA does not repeat one pass for each word of the next.
  def next_distance(_, distance):
    farther = [jnp.where(squared[w] > distance, squared[w], jnp.inf) for w in range(count)]
    return functools.reduce(jnp.minimum, farther)

  farthest = lax.fori_loop(0, neighbors, next_distance, jnp.full(pixels, -jnp.inf))
  share = lambda row: jnp.where(row <= farthest, lax.rsqrt(row), 0.0)
  total, _ = lax.scan(
    lambda total, row: (total + share(row), None), jnp.zeros(pixels), squared, unroll=10
  )
  return share(squared) * (1 / total)


def sum_over_strips(
  encode: Callable[[Float[Array, "B strip cols"]], Shaped[Array, "B W"]],
  images: Float[Array, "B rows cols"],
  size: int,
  *,
  live: int,
  budget: int | None = None,
) -> Shaped[Array, "B W"]:
  """Adds up what an encoder counts on strips of rows that cover every patch once.

  Args:
    encode: counts something over the patches of its images.
    images: gray levels.
    size: side of a patch; strips overlap by one row less.
    live: values that the encoder holds for each patch.
    budget: values held together; by default what suits the backend.

  Returns:
    What `encode(images)` would give, in less memory.
  """
  batch, rows, cols = images.shape
  rows -= size - 1
  strips = -(-batch * rows * cols * live // (budget or _for_backend(_LIVE_VALUES)))
  whole, remainder = divmod(rows, height := -(-rows // min(strips, rows)))
  strip = lambda start, height: lax.dynamic_slice_in_dim(images, start, height + size - 1, axis=1)
  add = lambda i, total: total + encode(strip(i * height, height))
  answer = jax.eval_shape(encode, strip(0, height))
  total = lax.fori_loop(0, whole, add, jnp.zeros(answer.shape, answer.dtype))
  if remainder:
    total += encode(strip(whole * height, remainder))
  return total


def stream(
  encode: Callable[[UInt8[ArrayLike, "B h w"]], Shaped[Array, "B ..."]],
  slices: UInt8[ArrayLike, "slices h w"],
  *,
  pixels_per_batch: int | None = None,
) -> Shaped[np.ndarray, "slices ..."]:
  """Histograms of any number of slices, read and encoded a batch at a time.

  Args:
    encode: jitted map from a batch of slices to one result each.
    slices: gray levels, for instance a memory map.
    pixels_per_batch: pixels handed to the device together; by default what
      suits the backend.

  Returns:
    One result a slice.
  """
  count, height, width = slices.shape
  pixels_per_batch = pixels_per_batch or _for_backend(_PIXELS_PER_BATCH)
  size = min(max(1, pixels_per_batch // (height * width)), count)
  done, running = [], None
  for start in range(0, count, size):
    batch = np.asarray(slices[start : start + size])
    if len(batch) < size:  # one shape, one compilation
      batch = np.concatenate([batch, np.zeros((size - len(batch), height, width), batch.dtype)])
    dispatched = encode(batch)
    if running is not None:
      done.append(np.asarray(running))  # waits while the next batch is already queued
    running = dispatched
  done.append(np.asarray(running))
  return np.concatenate(done)[:count]


def random_patches(
  slices: UInt8[ArrayLike, "slices h w"],
  per_slice: int,
  size: int,
  rng: np.random.Generator,
  *,
  factor: int = 1,
) -> Float[np.ndarray, "slices per_slice pixels"]:
  """Square patches at uniformly random places of every slice.

  Args:
    slices: gray levels, read one slice at a time.
    per_slice: patches taken from each slice.
    size: side of a patch in down-sampled pixels.
    rng: source of the places.
    factor: down-sampling; a patch is averaged from factor times as many pixels.

  Returns:
    Gray levels of the patches, row by row.
  """
  count, height, width = slices.shape
  side = size * factor
  # Corners on the block grid: these are patches that dense encoding will meet.
  top = factor * rng.integers(0, (height // factor) - size + 1, (count, per_slice))
  left = factor * rng.integers(0, (width // factor) - size + 1, (count, per_slice))
  patches = np.empty((count, per_slice, size * size), np.float32)
  for n in range(count):
    image = np.asarray(slices[n])
    for k in range(per_slice):
      block = image[top[n, k] : top[n, k] + side, left[n, k] : left[n, k] + side]
      block = block.reshape(size, factor, size, factor).mean((1, 3))
      patches[n, k] = block.reshape(-1)
  return patches


def check_split(
  name: str,
  slices: Shaped[ArrayLike, "slices h w"],
  labels: Shaped[ArrayLike, " labels"],
  *,
  strata: Sequence[str],
  min_side: int,
) -> None:
  """Raises UserError unless every slice has a label, every stratum a slice, and patches fit.

  Args:
    name: what the split is called in the message.
    slices: gray levels.
    labels: places in `strata`.
    strata: their names.
    min_side: shortest side of a slice, in pixels, that can be encoded.
  """
  if len(slices) != len(labels):
    raise UserError(f"{name}: {len(slices)} slices but {len(labels)} labels; expected one a slice")
  missing = [stratum for c, stratum in enumerate(strata) if not np.any(np.asarray(labels) == c)]
  if missing:
    raise UserError(
      f"{name}: no slice is labelled {' or '.join(missing)}; expected all {len(strata)} strata, "
      "use more stacks"
    )
  if min(slices.shape[1:]) < min_side:
    raise UserError(
      f"{name}: slices are {slices.shape[1]} x {slices.shape[2]} pixels; expected at least "
      f"{min_side} a side, use larger slices or less down-sampling"
    )


def save_model(model: object, path: str | os.PathLike[str]) -> None:
  """Writes a dataclass of arrays and plain values as .npz, whole or not at all."""
  path = pathlib.Path(path)
  fields = {f.name: getattr(model, f.name) for f in dataclasses.fields(model)}
  arrays = {k: v for k, v in fields.items() if isinstance(v, np.ndarray)}
  plain = json.dumps({k: v for k, v in fields.items() if k not in arrays})
  partial = path.with_name(path.name + ".partial")
  with partial.open("wb") as file:
    np.savez(file, _plain=np.asarray(plain), **arrays)
  os.replace(partial, path)


def load_model(cls: type[_Model], path: str | os.PathLike[str]) -> _Model:
  """Reads what `save_model` wrote for a model of this class.

  Raises:
    UserError: the file holds something else.
  """
  with np.load(path, allow_pickle=False) as file:
    fields = {name: file[name] for name in file.files}
  fields |= json.loads(str(fields.pop("_plain", "{}")))
  expected = {f.name for f in dataclasses.fields(cls)}
  if set(fields) != expected:
    raise UserError(
      f"{path}: holds {sorted(fields)}; expected {sorted(expected)} of a {cls.__name__}, "
      "train the model again"
    )
  return cls(**fields)
