"""Intervals of ratios and medians over patients, by the bootstrap.

Patients, not stacks or slices, are the independent units: one patient's stacks resemble each
other. Seeds are averaged, not resampled, so an interval says how the mean of these trained models
would vary over other patients.

With few patients the quantiles of resampled values make too short an interval: a resample varies
less than new patients do, and the variance that it is judged by is itself uncertain. Here each
resample is divided by a standard error of its own (bootstrap-t, Davison and Hinkley 1997, section
5.2), linearised over patients. `launch/replication/coverage.py` measures what either covers.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from jaxtyping import Float, Int, Num
import numpy as np

RESAMPLES = 2000
LEVEL = 0.95
MIN_PATIENTS = 5  # fewer say nothing about how patients vary: there is no interval


class Resamples(NamedTuple):
  """A ratio in the sample itself (row 0) and in resamples of its patients.

  Attributes:
    weights: how often a row has each patient.
    value: the ratio.
    influence: of one visit to a patient on the ratio, to first order.
    unit: what one slice, transition or micrometre more or less would change.
    patients: how many patients have something to measure.
  """

  weights: Num[np.ndarray, "R P"]
  value: Float[np.ndarray, " R"]
  influence: Float[np.ndarray, "R P"]
  unit: Float[np.ndarray, " R"]
  patients: int

  def minus(self, other: Resamples) -> Resamples:
    """Returns the difference of two ratios on the same patients and resamples."""
    return Resamples(
      self.weights,
      self.value - other.value,
      self.influence - other.influence,
      np.maximum(self.unit, other.unit),
      min(self.patients, other.patients),
    )


def draw(patients: int, seed: int = 0, resamples: int = RESAMPLES) -> Int[np.ndarray, "R P"]:
  """Returns how often each patient is in the sample itself, and in resamples."""
  rng = np.random.default_rng(seed)
  drawn = rng.multinomial(patients, np.full(patients, 1 / patients), size=resamples)
  return np.concatenate([np.ones((1, patients), drawn.dtype), drawn])


def resample(
  part: Num[np.ndarray, "S P"], whole: Num[np.ndarray, "S P"], weights: Num[np.ndarray, "R P"]
) -> Resamples:
  """Computes Σ part / Σ whole, averaged over seeds, in every row of weights.

  Args:
    part: sums by seed and patient.
    whole: what they are sums of: slices, boundaries.
    weights: as `draw` gives them.
  """
  seeds = len(part)
  weights = weights.astype(np.float64)
  value, unit = np.zeros(len(weights)), np.zeros(len(weights))
  influence = np.zeros(weights.shape)
  with np.errstate(invalid="ignore", divide="ignore"):  # a resample may lack what is measured
    for a, b in zip(part.astype(np.float64), whole.astype(np.float64)):
      total = weights @ b
      ratio = (weights @ a) / total
      value += ratio / seeds
      unit += 1 / total / seeds
      influence += (a - ratio[:, None] * b) / (seeds * total[:, None])
  return Resamples(weights, value, influence, unit, int((whole > 0).any(0).sum()))


def mean_of(parts: Sequence[Resamples]) -> Resamples:
  """Returns the mean of several ratios, each with patients of its own, drawn by themselves."""
  count = len(parts)
  return Resamples(
    np.concatenate([part.weights for part in parts], axis=1),
    sum(part.value for part in parts) / count,
    np.concatenate([part.influence for part in parts], axis=1) / count,
    sum(part.unit for part in parts) / count**2,
    sum(part.patients for part in parts),
  )


def studentised_interval(
  r: Resamples, bounds: tuple[float, float] = (-np.inf, np.inf), level: float = LEVEL
) -> tuple[float, float]:
  """Returns the ends of the bootstrap-t interval of a ratio.

  No standard error counts as smaller than what one slice, transition or micrometre changes: a
  resample without any of some rare errors would else be taken as certain that there are none.

  Args:
    r: the ratio and its resamples.
    bounds: that the ratio cannot lie outside of.
    level: probability that the interval is meant to cover the patients' population with.

  Returns:
    Both ends; NaN with fewer than `MIN_PATIENTS` patients, or where they do not differ at all.
  """
  patients = r.weights.shape[1]
  if r.patients < MIN_PATIENTS or not np.any(np.abs(r.influence[0]) > 1e-12 * r.unit[0]):
    return np.nan, np.nan
  variance = np.einsum("rp,rp->r", r.weights, r.influence**2) * patients / (patients - 1)
  error = np.maximum(np.sqrt(variance), r.unit)
  tail = (1 - level) / 2
  t_low, t_high = np.nanquantile((r.value[1:] - r.value[0]) / error[1:], [tail, 1 - tail])
  low, high = np.clip(r.value[0] - error[0] * np.array([t_high, t_low]), *bounds)
  return float(low), float(high)


def percentile_interval(
  values: Float[np.ndarray, " R"], patients: int, level: float = LEVEL
) -> tuple[float, float]:
  """Returns quantiles of resampled values, for statistics that have no linearised error.

  Args:
    values: in the sample itself, which is left out, and in resamples.
    patients: how many have something to measure.
    level: as for `studentised_interval`.
  """
  if patients < MIN_PATIENTS:
    return np.nan, np.nan
  tail = (1 - level) / 2
  low, high = np.nanquantile(values[1:], [tail, 1 - tail])
  return float(low), float(high)


def weighted_median(
  values: Float[np.ndarray, " n"], weights: Num[np.ndarray, "R n"]
) -> Float[np.ndarray, " R"]:
  """Returns each row's median of values that occur as often as it says; NaN where none does."""
  if not len(values):
    return np.full(len(weights), np.nan)
  order = np.argsort(values)
  below = np.cumsum(weights[:, order], axis=1)
  half = below[:, -1:] / 2
  lower, upper = np.argmax(below >= half, axis=1), np.argmax(below > half, axis=1)
  median = (values[order][lower] + values[order][upper]) / 2
  return np.where(half[:, 0] > 0, median, np.nan)
