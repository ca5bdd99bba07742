"""Agreement beyond chance between two readers and among many, and how sure it is.

All measures are ratios of sums over slices, so that patients can be drawn again by weighting
their sums: slices of a stack, and stacks of a patient, are not independent.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

from jaxtyping import Float, Int, Num
import numpy as np
from scipy import special

WEIGHTS = ("none", "linear", "quadratic")
RESAMPLES = 2000
MIN_PATIENTS = 5  # with fewer, too few different draws exist for a 95 % interval; a choice
LEVEL = 0.95


class Estimate(NamedTuple):
  """A value and the ends of its 95 % interval; NaN where there is none."""

  value: float
  low: float
  high: float


def disagreement_weights(num_classes: int, weights: str) -> Float[np.ndarray, "K K"]:
  """How much it counts that one reader says i and another says j.

  Args:
    num_classes: K, in their order.
    weights: `none` (any difference counts 1), `linear` (|i − j|) or `quadratic`.
  """
  apart = np.abs(np.subtract.outer(np.arange(num_classes), np.arange(num_classes)))
  if weights == "none":
    return (apart > 0).astype(np.float64)
  return apart.astype(np.float64) ** {"linear": 1, "quadratic": 2}[weights]


def confusion(
  first: Int[np.ndarray, " T"], second: Int[np.ndarray, " T"], num_classes: int
) -> Int[np.ndarray, "K K"]:
  """Slices by what the first (rows) and the second reader (columns) said."""
  counts = np.bincount(first * num_classes + second, minlength=num_classes**2)
  return counts.reshape(num_classes, num_classes)


def accuracy(counts: Num[np.ndarray, "*batch K K"]) -> Float[np.ndarray, "*batch"] | float:
  """Share of slices on which two readers say the same."""
  return _ratio(np.trace(counts, axis1=-2, axis2=-1), counts.sum((-2, -1)))


def cohen(
  counts: Num[np.ndarray, "*batch K K"], weights: str = "none"
) -> Float[np.ndarray, "*batch"] | float:
  """Cohen's κ of a confusion matrix (Cohen 1960; weighted, 1968); NaN if chance alone agrees."""
  counts = np.asarray(counts, np.float64)
  w = disagreement_weights(counts.shape[-1], weights)
  total = counts.sum((-2, -1))
  expected = counts.sum(-1)[..., :, None] * counts.sum(-2)[..., None, :]
  observed = (w * counts).sum((-2, -1)) * total
  return 1 - _ratio(observed, (w * expected).sum((-2, -1)))


class Votes(NamedTuple):
  """Sums over slices that were read by m readers each; leading axes are kept.

  Attributes:
    pairs: share of ordered pairs of readers of whom one says i and the other j, summed.
    classes: share of readers who say i, summed.
  """

  pairs: Float[np.ndarray, "*batch K K"]
  classes: Float[np.ndarray, "*batch K"]


def votes(labels: Int[np.ndarray, "m T"], num_classes: int) -> Votes:
  """The sums of one stack.

  Args:
    labels: of m ≥ 2 readers, who all labelled all T slices.
    num_classes: K.
  """
  m = len(labels)
  counts = (labels[..., None] == np.arange(num_classes)).sum(0).astype(np.float64)  # [T, K]
  pairs = counts.T @ counts - np.diag(counts.sum(0))
  return Votes(pairs / (m * (m - 1)), counts.sum(0) / m)


def fleiss(of: Votes, weights: str = "none") -> Float[np.ndarray, "*batch"] | float:
  """Fleiss' κ (1971), and with weights: pairs' weighted disagreement over that of chance.

  Chance draws both from the readers' common distribution. Without weights it is Fleiss' formula.
  """
  w = disagreement_weights(of.classes.shape[-1], weights)
  total = of.classes.sum(-1)
  expected = of.classes[..., :, None] * of.classes[..., None, :]
  observed = (w * of.pairs).sum((-2, -1)) * total
  return 1 - _ratio(observed, (w * expected).sum((-2, -1)))


def estimate(
  statistic: Callable[[Float[np.ndarray, "R P"]], Float[np.ndarray, " R"]],
  patients: int,
  seed: int = 0,
) -> Estimate:
  """A measure with its 95 % interval over patients.

  The interval is the bias-corrected and accelerated bootstrap's (Efron 1987), whose ends are
  moved by the skewness that leaving out one patient after another shows. Fewer than `MIN_PATIENTS`
  patients have none.

  Args:
    statistic: the measure for R weightings of P patients: how often each was drawn.
    patients: P.
    seed: of the draws.
  """
  value = float(statistic(np.ones((1, patients)))[0])
  if patients < MIN_PATIENTS or not np.isfinite(value):
    return Estimate(value, np.nan, np.nan)
  draws = np.random.default_rng(seed).multinomial(
    patients, np.full(patients, 1 / patients), size=RESAMPLES
  )
  found = statistic(draws.astype(np.float64))
  found = found[np.isfinite(found)]
  left_out = statistic(1.0 - np.eye(patients))
  if not len(found) or not np.isfinite(left_out).all():
    return Estimate(value, np.nan, np.nan)
  below = ((found < value).mean() + (found <= value).mean()) / 2
  if not 0 < below < 1:  # all draws alike
    return Estimate(value, *np.quantile(found, [0, 1]).tolist())
  shift = special.ndtri(below)
  pull = left_out.mean() - left_out
  spread = (pull**2).sum() ** 1.5
  skew = (pull**3).sum() / (6 * spread) if spread else 0.0
  tails = shift + special.ndtri(np.array([(1 - LEVEL) / 2, (1 + LEVEL) / 2]))
  ends = special.ndtr(shift + tails / (1 - skew * tails))
  return Estimate(value, *np.quantile(found, ends).tolist())


def by_patient(
  patients: Sequence[str], values: Sequence[Num[np.ndarray, "*shape"]]
) -> Float[np.ndarray, "P ..."]:
  """Sums one value a stack to one a patient, in the order of their names."""
  names = sorted(set(patients))
  place = {name: i for i, name in enumerate(names)}
  total = np.zeros((len(names), *np.shape(values[0])))
  for patient, value in zip(patients, values, strict=True):
    total[place[patient]] += value
  return total


def weighted(
  draws: Float[np.ndarray, "R P"], totals: Float[np.ndarray, "P ..."]
) -> Float[np.ndarray, "R ..."]:
  """Sums over drawn patients."""
  return np.tensordot(draws, totals, axes=1)


def _ratio(above, below):
  below = np.asarray(below, np.float64)
  return np.divide(above, below, out=np.full(np.shape(below), np.nan), where=below != 0)
