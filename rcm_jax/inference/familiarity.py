"""How far a stack lies from those that a model was trained on.

Three questions, each with a score that validation stacks set the threshold of:

appearance  do single slices look like training slices? Squared distance of a slice's features and gray
            levels to the nearest of the strata's Gaussians, fitted to training slices (Lee et al.,
            NeurIPS 2018, arXiv 1807.03888, with a covariance a stratum).
continuity  do neighbouring slices show one place? Correlation of neighbours' gray levels, which tiles of
            other places lack, and copies of one slice have too much of.
order       do strata come in their order? Log-odds a slice of the opposite order, by what the CNN says of
            single slices.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import NamedTuple

import jax
from jaxtyping import Float, Int, UInt8
import numpy as np
from scipy import stats

from rcm_jax.decoding import monotone_model

QUESTIONS = ("appearance", "continuity", "order")
FALSE_ALARMS = 0.0025  # a question and side, of stacks like those of training
_DIRECTIONS = 16  # of the CNN's features that vary most
_SCALES = 4  # of structure in gray levels: 1, 2, 4, 8 pixels
_LEAST_SLICES = 4  # of a stratum, for a Gaussian of its own
_SHRINKAGE = 0.05  # of covariances towards their diagonal
_NEAREST = 1e-3  # least log-probability is that of this
_LENGTHS = 8  # stacks are padded to multiples of this, so that few shapes are compiled


class Familiar(NamedTuple):
  """What was learned of the training stacks.

  Attributes:
    centre: of all slices' descriptors.
    axes: descriptors minus the centre times this are the coordinates of the Gaussians.
    means: of each Gaussian.
    precisions: of each Gaussian, inverse covariance.
    typical: mean of each question's score over validation stacks.
    spread: standard deviation of the same.
    limit: standard deviations from the mean at which a stack is unfamiliar.
  """

  centre: Float[np.ndarray, "D"]
  axes: Float[np.ndarray, "D K"]
  means: Float[np.ndarray, "G K"]
  precisions: Float[np.ndarray, "G K K"]
  typical: Float[np.ndarray, "3"]
  spread: Float[np.ndarray, "3"]
  limit: Float[np.ndarray, ""]


class Found(NamedTuple):
  """What was found of one stack.

  Attributes:
    deviations: of each question's score, in standard deviations of validation stacks.
    unfamiliar: questions whose answer is no.
    slices: distances of the slices by themselves, from 0 to 1 at the limit of a stack's mean.
  """

  deviations: Float[np.ndarray, "3"]
  unfamiliar: tuple[str, ...]
  slices: Float[np.ndarray, "T"]


class Images(NamedTuple):
  """What a stack's gray levels are described by.

  Attributes:
    structure: of each slice, see `structure`.
    alike: of each pair of neighbours, see `alike`.
  """

  structure: Float[np.ndarray, "T S"]
  alike: Float[np.ndarray, "n"]


class Seen(NamedTuple):
  """A stack as the model sees it.

  Attributes:
    images: gray levels, described.
    features: of the CNN.
    probabilities: of the strata, by the CNN alone.
  """

  images: Images
  features: Float[np.ndarray, "T F"]
  probabilities: Float[np.ndarray, "T C"]


def describe(images: UInt8[np.ndarray, "T h w"]) -> Images:
  """Describes a stack's gray levels, at the model's scale."""
  return Images(structure(images), alike(images))


def structure(images: UInt8[np.ndarray, "T h w"]) -> Float[np.ndarray, "T S"]:
  """Describes gray levels: mean, contrast, skewness, ends of the range, and contrast by scale."""
  level = images.astype(np.float32) / 255
  mean, deviation = level.mean((1, 2)), level.std((1, 2)) + 1e-3
  third = ((level - mean[:, None, None]) ** 3).mean((1, 2)) / deviation**3
  dark, bright = (images <= 2).mean((1, 2)), (images >= 253).mean((1, 2))
  columns = [mean, np.log(deviation), np.cbrt(third), np.sqrt(dark), np.sqrt(bright)]
  for _ in range(_SCALES):
    steps = [np.diff(level, axis=axis) ** 2 for axis in (1, 2)]
    columns.append(np.log(1e-3 + np.sqrt(sum(step.mean((1, 2)) for step in steps))))
    if min(level.shape[1:]) >= 4:
      height, width = (n // 2 * 2 for n in level.shape[1:])
      level = (
        level[:, :height, :width].reshape(len(level), height // 2, 2, width // 2, 2).mean((2, 4))
      )
  return np.stack(columns, 1)


def alike(images: UInt8[np.ndarray, "T h w"]) -> Float[np.ndarray, "n"]:
  """Correlation of each slice with the next, as Fisher's z."""
  level = images.astype(np.float32).reshape(len(images), -1)
  level -= level.mean(1, keepdims=True)
  norm = np.linalg.norm(level, axis=1)
  products, norms = (level[:-1] * level[1:]).sum(1), norm[:-1] * norm[1:]
  # Slices without contrast are copies of each other.
  correlation = np.where(norms > 0, products / np.maximum(norms, 1e-9), 1)
  return np.arctanh(np.clip(correlation, -0.9999, 0.9999)).astype(np.float64)


def disorder(probabilities: Float[np.ndarray, "T C"]) -> float:
  """Log-odds a slice that a stack runs upwards, by what is said of single slices."""
  logs = np.log(np.maximum(probabilities, _NEAREST)).astype(np.float32)
  count, more = len(logs), -len(logs) % _LENGTHS
  mask = np.arange(count + more) < count
  return -float(_order_log_odds(np.pad(logs, ((0, more), (0, 0))), mask)) / count


_order_log_odds = jax.jit(monotone_model.order_log_odds)


def learn(
  train: Iterable[tuple[Seen, Int[np.ndarray, "T"]]], validation: Iterable[Seen]
) -> Familiar:
  """Learns what is familiar.

  Args:
    train: stacks and their labels.
    validation: stacks that no network was trained on; two at least.
  """
  described, labels, features = [], [], []
  for seen, strata in train:
    described.append(seen.images.structure)
    features.append(seen.features)
    labels.append(strata)
  described, features, labels = map(np.concatenate, (described, features, labels))
  centre = np.concatenate([features.mean(0), described.mean(0)])
  axes = _axes(features - centre[: features.shape[1]], described)
  points = (np.concatenate([features, described], 1) - centre) @ axes
  means, precisions = [], []
  for stratum in np.unique(labels):
    rows = points[labels == stratum]
    if len(rows) >= _LEAST_SLICES:
      covariance = np.cov(rows, rowvar=False)
      diagonal = np.diag(np.diag(covariance) + 1e-3)
      means.append(rows.mean(0))
      precisions.append(
        np.linalg.inv(
          (1 - _SHRINKAGE) * covariance + _SHRINKAGE * diagonal + 1e-6 * np.eye(len(axes.T))
        )
      )
  nothing = np.zeros(len(QUESTIONS))
  known = Familiar(
    centre, axes, np.stack(means), np.stack(precisions), nothing, nothing + 1, np.float64(np.inf)
  )
  scores = np.array([_scores(known, seen)[0] for seen in validation])
  count = len(scores)
  # A new value of a normal distribution known from `count` others.
  limit = stats.t.ppf(1 - FALSE_ALARMS, count - 1) * np.sqrt(1 + 1 / count)
  return known._replace(
    typical=scores.mean(0), spread=scores.std(0, ddof=1) + 1e-3, limit=np.float64(limit)
  )


def _axes(features: np.ndarray, described: np.ndarray) -> np.ndarray:
  """Whitened leading directions of the features, and standardised descriptions."""
  variances, directions = np.linalg.eigh(np.cov(features, rowvar=False, dtype=np.float64))
  kept = slice(None, -_DIRECTIONS - 1, -1)
  varies = variances[kept] > 1e-9 * variances[-1]
  of_features = directions[:, kept] / np.sqrt(np.where(varies, variances[kept], np.inf))
  size, more = features.shape[1], described.shape[1]
  axes = np.zeros((size + more, of_features.shape[1] + more))
  axes[:size, : of_features.shape[1]] = of_features
  axes[size:, of_features.shape[1] :] = np.diag(1 / (described.std(0) + 1e-3))
  return axes


def _distances(known: Familiar, seen: Seen) -> Float[np.ndarray, "T"]:
  """Mean squared distance a dimension to the nearest Gaussian."""
  points = np.concatenate([seen.features, seen.images.structure], 1) - known.centre
  away = (points @ known.axes)[:, None] - known.means
  squared = np.einsum("tgk,gkl,tgl->tg", away, known.precisions, away)
  return squared.min(1) / known.means.shape[1]


def _scores(known: Familiar, seen: Seen) -> tuple[Float[np.ndarray, "3"], Float[np.ndarray, "T"]]:
  distances = np.log(np.maximum(_distances(known, seen), 1e-3))
  continuity = np.median(seen.images.alike) if len(seen.images.alike) else 0.0
  scores = distances.mean(), continuity, disorder(seen.probabilities)
  return np.array(scores), distances


def look(known: Familiar, seen: Seen) -> Found:
  """Judges one stack."""
  scores, distances = _scores(known, seen)
  deviations = (scores - known.typical) / known.spread
  away = np.array([deviations[0], np.abs(deviations[1]), deviations[2]])
  if not len(seen.images.alike):
    away[1] = 0
  names = tuple(name for name, value in zip(QUESTIONS, away, strict=True) if value > known.limit)
  reach = known.limit * known.spread[0]
  return Found(deviations, names, (distances - known.typical[0]) / reach)


def familiar_of(arrays: dict[str, np.ndarray]) -> Familiar:
  """Returns what `Familiar._asdict` had as fields."""
  return Familiar(**{name: np.asarray(arrays[name]) for name in Familiar._fields})


def reasons(found: Sequence[str]) -> str:
  """Says in words what is unfamiliar."""
  words = {
    "appearance": "single slices look unlike those of training",
    "continuity": "neighbouring slices do not show one place, or are copies",
    "order": "strata do not come in their order",
  }
  return "; ".join(words[name] for name in found)
