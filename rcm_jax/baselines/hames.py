"""Bag of learned patches: the baseline of Hames et al. (PLoS ONE 2016).

Random 7 x 7 patches are normalised, whitened and clustered by spherical k-means into visual
words; every patch of a slice is assigned to the word with the largest dot product; a logistic
regression reads the histogram of words. The paper's Table 1 has it at 84.48 %.

The publication leaves open how many words, how far slices are down-sampled, how histograms are
transformed, and the penalty: `fit` chooses them on validation slices and records the choice.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
import dataclasses
import functools
import os
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, UInt8
import numpy as np

from rcm_jax import anatomy
from rcm_jax.arrays import ArrayLike
from rcm_jax.baselines import logistic_regression
from rcm_jax.textures import textons
from rcm_jax.textures.dictionary import NORM_REGULARIZER, PATCH, spherical_kmeans, whitened_patches
from tfds_rcm.errors import UserError

_TRANSFORMS: dict[str, Callable[[np.ndarray], np.ndarray]] = {
  "frequency": lambda h: h,
  "sqrt": np.sqrt,
  # 1e-4 is about one patch of a 128-pixel slice.
  "log": lambda h: np.log(h + 1e-4),
}
_PENALTIES = ("l2", "l1")


@dataclasses.dataclass(frozen=True)
class HamesSearch:
  """Candidates of the search, and what is not searched.

  Every combination of words, down-sampling, transform and strength is tried
  with the first penalty; the others are tried with the best of these.

  Attributes:
    words: sizes of the dictionary.
    downsampling: block sizes over which slices are averaged first.
    transforms: of histograms: frequency, sqrt, log.
    penalties: of the logistic regression: l2, l1.
    strengths: inverse strength C of the penalty, as in scikit-learn.
    norm_regularizer: gray levels added to a patch's norm before dividing by it
      when learning words. The authors' code has 1.0 here and 0.1 when encoding;
      encoding needs neither, for a positive divisor cannot change which dot
      product is the largest. 0.1 learns with the value of their encoder.
  """

  words: tuple[int, ...] = (100, 300)
  downsampling: tuple[int, ...] = (1, 2)
  transforms: tuple[str, ...] = ("sqrt", "log")
  penalties: tuple[str, ...] = ("l2", "l1")
  strengths: tuple[float, ...] = (0.001, 0.01, 0.1, 1.0)
  norm_regularizer: float = NORM_REGULARIZER

  def __post_init__(self):
    for name, values, known in (
      ("transforms", self.transforms, _TRANSFORMS),
      ("penalties", self.penalties, _PENALTIES),
    ):
      unknown = [v for v in values if v not in known]
      if unknown:
        raise UserError(f"search.{name}: {unknown[0]!r}; expected some of {', '.join(known)}")
    for field in ("words", "downsampling", "transforms", "penalties", "strengths"):
      if not getattr(self, field):
        raise UserError(f"search.{field}: empty; expected at least one candidate")


@dataclasses.dataclass(frozen=True)
class Hames:
  """A fitted model.

  Attributes:
    basis: filters that take a patch to its whitened coordinates.
    words: dictionary in those coordinates.
    center: subtracted from transformed histograms.
    scale: divides them after that.
    weights: of the logistic regression.
    bias: of the logistic regression.
    chosen: what the search chose: words, downsampling, transform, penalty,
      strength, and validation_accuracy.
  """

  basis: Float[np.ndarray, "rank 7 7"]
  words: Float[np.ndarray, "W rank"]
  center: Float[np.ndarray, " W"]
  scale: Float[np.ndarray, " W"]
  weights: Float[np.ndarray, "C W"]
  bias: Float[np.ndarray, " C"]
  chosen: dict[str, Any]

  def save(self, path: str | os.PathLike[str]) -> None:
    """Writes the model as .npz."""
    textons.save_model(self, path)

  @classmethod
  def load(cls, path: str | os.PathLike[str]) -> Hames:
    """Reads a model that `save` wrote."""
    return textons.load_model(cls, path)


@functools.partial(jax.jit, static_argnames="factor")
def encode(
  slices: UInt8[ArrayLike, "B h w"],
  basis: Float[ArrayLike, "rank 7 7"],
  words: Float[ArrayLike, "W rank"],
  factor: int = 1,
) -> Int[Array, "B W"]:
  """Counts the visual words of every overlapping patch.

  The scores of a patch are its convolution with the dictionary folded into the
  whitening, `words @ basis`, computed by its two factors. The patch's mean drops
  out because the filters sum to zero, its norm because it is positive and the
  same for all words. A flat patch counts as word 0.

  Args:
    slices: gray levels.
    basis: whitening filters.
    words: dictionary in whitened coordinates.
    factor: down-sampling before encoding.

  Returns:
    Counts; each row sums to the number of patches.
  """

  def count(images):
    coordinates = textons.responses(images, basis)
    rank, batch, pixels = coordinates.shape
    codes = textons.largest_dot(coordinates.reshape(rank, -1), words).reshape(batch, pixels)
    return jax.vmap(lambda code: jnp.zeros(len(words), jnp.int32).at[code].add(1))(codes)

  images = textons.downsample(slices, factor)
  live = PATCH**2 + textons.WORDS_PER_STEP
  return textons.sum_over_strips(count, images, PATCH, live=live)


def fit(
  train_slices: UInt8[ArrayLike, "slices h w"],
  train_labels: Int[ArrayLike, " slices"],
  validation_slices: UInt8[ArrayLike, "validation_slices h w"],
  validation_labels: Int[ArrayLike, " validation_slices"],
  *,
  seed: int,
  strata: Sequence[str] = anatomy.PAPER.names,
  search: HamesSearch | None = None,
  progress: Callable[[str], None] | None = None,
) -> Hames:
  """Learns words and classifier on training slices; validation slices only choose.

  Args:
    train_slices: gray levels, for instance a memory map; read in batches.
    train_labels: strata.
    validation_slices: gray levels.
    validation_labels: strata.
    seed: of the random patches and of k-means.
    strata: what the labels tell apart.
    search: candidates; the default ones if None.
    progress: receives one line for each candidate that took time.

  Returns:
    The model with the best validation accuracy, the first of equals.

  Raises:
    UserError: labels do not fit the slices, a stratum is missing, or slices are
      too small for the largest down-sampling.
  """
  search = search or HamesSearch()
  min_side = PATCH * max(search.downsampling)
  check = functools.partial(textons.check_split, strata=strata, min_side=min_side)
  check("training", train_slices, train_labels)
  check("validation", validation_slices, validation_labels)
  train_labels, validation_labels = np.asarray(train_labels), np.asarray(validation_labels)
  report = progress or (lambda line: None)

  best, best_frequencies = None, None
  for factor in search.downsampling:
    patches, basis = whitened_patches(train_slices, factor, seed, search.norm_regularizer)
    for count in search.words:
      words, _ = spherical_kmeans(patches, count, np.random.default_rng(seed))
      of = functools.partial(frequencies_of, basis=basis, words=words, factor=factor)
      frequencies = [of(train_slices), of(validation_slices)]
      for transform in search.transforms:
        for strength in search.strengths:
          model = _classify(
            basis,
            words,
            frequencies,
            train_labels,
            validation_labels,
            downsampling=factor,
            transform=transform,
            penalty=search.penalties[0],
            strength=strength,
          )
          if best is None or _accuracy(model) > _accuracy(best):
            best, best_frequencies = model, frequencies
      report(f"hames: {count} words, down-sampling {factor}: best so far {best.chosen}")
  for penalty in search.penalties[1:]:
    for strength in search.strengths:
      kept = {k: best.chosen[k] for k in ("downsampling", "transform")}
      model = _classify(
        best.basis,
        best.words,
        best_frequencies,
        train_labels,
        validation_labels,
        **kept,
        penalty=penalty,
        strength=strength,
      )
      if _accuracy(model) > _accuracy(best):
        best = model
    report(f"hames: penalty {penalty}: best so far {best.chosen}")
  return best


def predict_proba(
  model: Hames, slices: UInt8[ArrayLike, "slices h w"]
) -> Float[np.ndarray, "slices C"]:
  """Probabilities of the strata of any number of slices, read in batches."""
  frequencies = frequencies_of(slices, model.basis, model.words, model.chosen["downsampling"])
  return _probabilities(model, frequencies)


def frequencies_of(
  slices: UInt8[ArrayLike, "slices h w"],
  basis: Float[ArrayLike, "rank 7 7"],
  words: Float[ArrayLike, "W rank"],
  factor: int,
) -> Float[np.ndarray, "slices W"]:
  """Shares of the words among each slice's patches, for any number of slices; see `encode`."""
  basis, words = jnp.asarray(basis), jnp.asarray(words)  # on the device once, not once a batch
  counts = textons.stream(lambda batch: encode(batch, basis, words, factor), slices)
  return (counts / counts.sum(1, keepdims=True)).astype(np.float32)


def _probabilities(model, frequencies):
  features = (_TRANSFORMS[model.chosen["transform"]](frequencies) - model.center) / model.scale
  return np.asarray(jax.nn.softmax(features @ model.weights.T + model.bias), np.float32)


def _accuracy(model):
  return model.chosen["validation_accuracy"]


def _classify(basis, words, frequencies, train_labels, validation_labels, **choice):
  """Fits one logistic regression and measures it on the validation slices."""
  features = _TRANSFORMS[choice["transform"]](frequencies[0])
  center, scale = features.mean(0), features.std(0)
  scale = np.where(scale > 0, scale, 1).astype(np.float32)
  weights, bias = logistic_regression.fit(
    (features - center) / scale,
    train_labels,
    penalty=choice["penalty"],
    strength=choice["strength"],
  )
  model = Hames(
    basis=basis,
    words=words,
    center=center,
    scale=scale,
    weights=weights.astype(np.float32),
    bias=bias.astype(np.float32),
    chosen={"words": len(words), **choice},
  )
  predicted = _probabilities(model, frequencies[1]).argmax(1)
  model.chosen["validation_accuracy"] = float(np.mean(predicted == validation_labels))
  return model
