"""How right a model is on a group of stacks: what `rcm_jax.predict` shows, with intervals by patient."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
import dataclasses
from typing import Any, NamedTuple

from jaxtyping import Bool, Float, Int
import numpy as np

from rcm_jax import anatomy
from rcm_jax.evaluation import bootstrap, calibration, reliability
from rcm_jax.evaluation import predictions as predictions_lib
from rcm_jax.validation.reading import ReadStack


class Estimate(NamedTuple):
  """A figure and the ends of its 95 % interval over patients; NaN where there is nothing to say."""

  value: float
  low: float
  high: float


@dataclasses.dataclass(frozen=True)
class Measured:
  """What is counted of each of N stacks; B boundaries.

  Attributes:
    patient: of each stack.
    slices: of each stack.
    right: slices whose stratum is the label's.
    error_um: depth shown less depth labelled; 0 where the boundary does not count.
    counted: whether the labels have the boundary.
    bounded: whether the model gave it an interval.
    inside: whether the labelled depth lies in it.
    width_um: of the interval; 0 where there is none.
    raw: probabilities before calibration, a stack each.
    calibrated: after it.
    labels: likewise.
  """

  patient: Sequence[str]
  slices: Int[np.ndarray, "N"]
  right: Int[np.ndarray, "N"]
  error_um: Float[np.ndarray, "N B"]
  counted: Bool[np.ndarray, "N B"]
  bounded: Bool[np.ndarray, "N B"]
  inside: Bool[np.ndarray, "N B"]
  width_um: Float[np.ndarray, "N B"]
  raw: Sequence[Float[np.ndarray, "... C"]]
  calibrated: Sequence[Float[np.ndarray, "... C"]]
  labels: Sequence[Int[np.ndarray, "..."]]

  def take(self, rows: Sequence[int]) -> Measured:
    """Returns some of the stacks."""
    return Measured(
      **{
        field.name: values[list(rows)]
        if isinstance(values := getattr(self, field.name), np.ndarray)
        else [values[i] for i in rows]
        for field in dataclasses.fields(self)
      }
    )


@dataclasses.dataclass(frozen=True)
class Figures:
  """A group's figures; fractions and µm, by boundary where there is one a boundary.

  Attributes:
    stacks: in the group.
    patients: that they are of.
    slices: in them.
    accuracy: share of slices whose stratum, as shown, is the label's.
    mae_um: mean absolute errors of boundaries.
    covered: share of boundaries in their intervals, each patient weighing the same.
    width_um: mean width of the intervals.
    calibration_error: expected, of the probabilities as shown; before calibration second.
    boundary_n: boundaries that the labels have.
  """

  stacks: int
  patients: int
  slices: int
  accuracy: Estimate
  mae_um: tuple[Estimate, ...]
  covered: tuple[Estimate, ...]
  width_um: tuple[float, ...]
  calibration_error: tuple[float, float]
  boundary_n: tuple[int, ...]

  def to_json(self) -> dict[str, Any]:
    """Returns plain values; what is no number becomes None."""
    names = anatomy.of_count(len(self.boundary_n) + 1).boundaries
    named = lambda values: dict(zip(names, values, strict=True))
    shown, raw = self.calibration_error
    return _plain(
      {
        "stacks": self.stacks,
        "patients": self.patients,
        "slices": self.slices,
        "accuracy": self.accuracy,
        "boundary_mae_um": named(self.mae_um),
        "interval_coverage": named(self.covered),
        "interval_width_um": named(self.width_um),
        "boundary_n": named(self.boundary_n),
        "calibration_error": shown,
        "calibration_error_before": raw,
      }
    )


def _plain(value: Any) -> Any:
  if isinstance(value, Mapping):
    return {key: _plain(item) for key, item in value.items()}
  if isinstance(value, tuple | list):
    return [_plain(item) for item in value]
  if isinstance(value, float | np.floating):
    return float(value) if np.isfinite(value) else None
  return value


def measure(stacks: Sequence[ReadStack]) -> Measured:
  """Compares answers with labels, stack by stack; there must be one at least."""
  predictions = [s.prediction("", "", ordered=False) for s in stacks]
  padded = predictions_lib.pad(predictions)
  true, counted = calibration.true_depths_um(padded)
  true = true.astype(np.float64)
  said = [s.said.interpretation for s in stacks]
  low, shown, high = np.moveaxis(np.stack([i.boundary_um for i in said]).astype(np.float64), -1, 0)
  bounded = counted & np.isfinite(low) & np.isfinite(high)
  return Measured(
    patient=[s.known.patient_id for s in stacks],
    slices=np.array([len(s.known.labels) for s in stacks]),
    right=np.array([(s.known.labels == i.strata).sum() for s, i in zip(stacks, said)]),
    error_um=np.where(counted, shown - true, 0.0),
    counted=counted,
    bounded=bounded,
    inside=bounded & (low <= true) & (true <= high),
    width_um=np.where(bounded, high - low, 0.0),
    raw=[p.probabilities for p in predictions],
    calibrated=[i.probabilities for i in said],
    labels=[p.labels for p in predictions],
  )


def figures_of(m: Measured) -> Figures:
  """Returns the figures of a group of stacks; there must be one at least."""
  labels = np.concatenate(m.labels)
  names, which = np.unique(m.patient, return_inverse=True)
  weights = bootstrap.draw(len(names))
  error = lambda by_stack: reliability.expected_calibration_error(np.concatenate(by_stack), labels)

  def ratio(part, whole, bounds):
    """Of sums over stacks, with an interval over patients."""
    sums = [np.bincount(which, x, len(names))[None] for x in (part, whole)]
    return _estimate(*sums, weights, bounds)

  def coverage(inside, bounded):
    part, whole = (np.bincount(which, x, len(names)) for x in (inside, bounded))
    has = whole > 0
    share = np.where(has, part / np.maximum(whole, 1), 0.0)
    return _estimate(share[None], has[None].astype(float), weights, (0.0, 1.0))

  columns = range(m.counted.shape[1])
  return Figures(
    stacks=len(m.labels),
    patients=len(names),
    slices=int(m.slices.sum()),
    accuracy=ratio(m.right, m.slices, (0.0, 1.0)),
    mae_um=tuple(ratio(np.abs(m.error_um[:, b]), m.counted[:, b], (0.0, np.inf)) for b in columns),
    covered=tuple(coverage(m.inside[:, b], m.bounded[:, b]) for b in columns),
    width_um=tuple(
      float(m.width_um[:, b].sum() / m.bounded[:, b].sum()) if m.bounded[:, b].any() else np.nan
      for b in columns
    ),
    calibration_error=(error(m.calibrated), error(m.raw)),
    boundary_n=tuple(m.counted.sum(0).tolist()),
  )


def _estimate(part, whole, weights, bounds):
  if not whole.any():
    return Estimate(np.nan, np.nan, np.nan)
  resamples = bootstrap.resample(part, whole, weights)
  return Estimate(float(resamples.value[0]), *bootstrap.studentised_interval(resamples, bounds))
