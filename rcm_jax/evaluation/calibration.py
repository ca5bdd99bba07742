"""How far probabilities and boundaries can be trusted, learned on validation stacks.

Temperature scaling makes a slice's confidence match its accuracy (`temperature`). Split conformal
prediction turns boundaries into intervals that cover the truth, in a random stack of a random
patient, with a chosen probability. An ensemble averages what several seeds say.
"""

from __future__ import annotations

from collections.abc import Sequence
import dataclasses
import math
from typing import NamedTuple

import jax
from jaxtyping import Float
import numpy as np

from rcm_jax.decoding import boundaries, intervals
from rcm_jax.decoding.intervals import Calibration
from rcm_jax.evaluation import predictions as predictions_lib
from rcm_jax.evaluation import reliability, temperature
from tfds_rcm import errors

MIN_PATIENTS = 5  # that learn a margin
SHRINKING_PATIENTS = 20  # that may learn one below zero


class Assessment(NamedTuple):
  """How well a calibration holds on other stacks.

  Attributes:
    accuracy: share of slices classified right.
    temperature: of the calibration.
    error_before: expected calibration error of the probabilities as they are.
    error_after: the same after temperature scaling.
    width_um: mean width of each boundary's interval, where the truth has the boundary; NaN where
      there are no intervals.
    covered: share of these boundaries inside their interval, each patient weighing the same: how
      probable it is for a random stack of a random patient. NaN where there are no intervals.
  """

  accuracy: float
  temperature: float
  error_before: float
  error_after: float
  width_um: Float[np.ndarray, "2"]
  covered: Float[np.ndarray, "2"]


class IntervalsWithMorePatients(NamedTuple):
  """Intervals that more patients have calibrated, tried on the rest.

  Attributes:
    patients: that calibrate.
    width_um: mean width of each boundary's interval; NaN where there are no intervals.
    covered: share of boundaries inside, each patient weighing the same.
  """

  patients: int
  width_um: Float[np.ndarray, "2"]
  covered: Float[np.ndarray, "2"]


def calibrate(
  validation: Sequence[predictions_lib.StackPrediction], coverage: float = 0.9
) -> Calibration:
  """Learns temperature and interval margins on validation stacks.

  Intervals are conformalized quantiles (Romano et al. 2019): the posterior's own central
  interval, widened by one margin for all stacks, so that doubtful stacks get wide intervals.

  Raises:
    UserError: there are no validation stacks.
  """
  unwidened = Calibration(
    temperature.supported_temperature(validation),
    (0.0, 0.0),
    coverage,
    temperature.fit_boundary_temperature(validation),
  )
  margins = []
  for lower, upper, true, patients in _bounds(validation, unwidened):
    margins.append(conformal_margin(np.maximum(lower - true, true - upper), patients, coverage))
  return unwidened._replace(margin_um=tuple(margins))


def conformal_margin(
  scores: Float[np.ndarray, "n"], patients: Sequence[str] | np.ndarray, coverage: float
) -> float:
  """Finds the score that a random stack of a new patient stays below with a probability.

  Split conformal prediction with patients as the exchangeable units. Each stack weighs one over
  its patient's number of stacks, and a new patient weighs one at infinity (the finite-sample
  correction). The promise holds on average over calibrations; with n patients, what one of them
  covers scatters by about sqrt(coverage (1 - coverage) / n). Therefore fewer than `MIN_PATIENTS`
  give no margin, and fewer than `SHRINKING_PATIENTS` none below zero: an interval shorter than
  the posterior's own needs more of them to be believed.

  Args:
    scores: how far outside its interval the truth lies (negative: inside).
    patients: patient of each score.
    coverage: probability asked for.

  Returns:
    The margin; infinity where there are too few patients, or too few for this coverage.
  """
  names, which, stacks = np.unique(np.asarray(patients), return_inverse=True, return_counts=True)
  order = np.argsort(scores, kind="stable")
  reached = np.cumsum(1 / stacks[which[order]]) / (len(names) + 1)
  enough = np.flatnonzero(reached >= coverage - 1e-9)
  if len(names) < MIN_PATIENTS or not len(enough):
    return math.inf
  margin = float(scores[order][enough[0]])
  return margin if len(names) >= SHRINKING_PATIENTS else max(margin, 0.0)


def assess(calibration: Calibration, test: Sequence[predictions_lib.StackPrediction]) -> Assessment:
  """Tries a calibration on stacks that it was not learned on."""
  probabilities, labels = predictions_lib.slices_of(test)
  width, inside = np.full(2, np.nan), np.full(2, np.nan)
  for boundary, (lower, upper, true, patients) in enumerate(_bounds(test, calibration)):
    if len(true) and np.isfinite(calibration.margin_um[boundary]):
      inside[boundary] = _mean_by_patient((lower <= true) & (true <= upper), patients)
      width[boundary] = np.mean(upper - lower)
  scaled = intervals.scale(probabilities, calibration.temperature)
  return Assessment(
    accuracy=float(np.mean(np.concatenate([p.predicted for p in test]) == labels)),
    temperature=calibration.temperature,
    error_before=reliability.expected_calibration_error(probabilities, labels),
    error_after=reliability.expected_calibration_error(scaled, labels),
    width_um=width,
    covered=inside,
  )


def assess_with_more_patients(
  calibration: Calibration,
  validation: Sequence[predictions_lib.StackPrediction],
  test: Sequence[predictions_lib.StackPrediction],
  divisions: int = 200,
) -> IntervalsWithMorePatients:
  """Tries what the intervals would be if half of the test patients helped to calibrate them.

  With few patients the finite-sample rule takes nearly their worst score, and one test split says
  as much about the two splits' luck as about the rule. Here the margins are learned on all
  validation patients and a random half of the test's, and tried on the other half, over and over.

  Args:
    calibration: gives coverage and temperatures, which stay as they are.
    validation: that it was learned on.
    test: other patients' stacks.
    divisions: how often the test patients are halved.

  Returns:
    Means over divisions; NaN for a boundary that no patient of the rest has, or with too few
    patients for intervals.
  """
  raw = calibration._replace(margin_um=(0.0, 0.0))
  fixed = sorted({p.patient_id for p in validation})
  names = sorted({p.patient_id for p in test})
  rng = np.random.default_rng(0)
  halves = [[*fixed, *rng.permutation(names)[: len(names) // 2]] for _ in range(divisions)]
  width, covered = np.full((2, divisions), np.nan), np.full((2, divisions), np.nan)
  for boundary, parts in enumerate(zip(_bounds(validation, raw), _bounds(test, raw))):
    lower, upper, true, patients = (np.concatenate(x) for x in zip(*parts))
    scores = np.maximum(lower - true, true - upper)
    for i, half in enumerate(halves):
      known = np.isin(patients, half)
      margin = conformal_margin(scores[known], patients[known], calibration.coverage)
      if not known.all() and math.isfinite(margin):
        covered[boundary, i] = _mean_by_patient(scores[~known] <= margin, patients[~known])
        width[boundary, i] = np.mean(np.maximum((upper - lower)[~known] + 2 * margin, 0))
  return IntervalsWithMorePatients(len(halves[0]), width.mean(1), covered.mean(1))


def ensemble(
  predictions: Sequence[predictions_lib.StackPrediction],
) -> list[predictions_lib.StackPrediction]:
  """Averages the probabilities of all seeds of one method, stack by stack.

  Args:
    predictions: of one method; every seed on the same stacks.

  Returns:
    One prediction a stack, in the order of the first seed.

  Raises:
    UserError: seeds differ in their stacks.
  """
  by_stack: dict[tuple[str, str], list] = {}
  for p in predictions:
    by_stack.setdefault((p.split, p.stack_id), []).append(p)
  seeds = len({p.seed for p in predictions})
  for (_, stack), members in by_stack.items():
    if len(members) != seeds:
      raise errors.UserError(
        f"{members[0].method}: {len(members)} of {seeds} seeds predict stack {stack}; an ensemble"
        " needs every seed on the same stacks"
      )
  return [
    dataclasses.replace(
      members[0], probabilities=np.mean([p.probabilities for p in members], axis=0)
    )
    for members in by_stack.values()
  ]


def _bounds(predictions, calibration):
  """By boundary: lower end, upper end, true depth and patient of each stack that has it."""
  padded = predictions_lib.pad(predictions)
  interval = np.asarray(
    intervals.intervals_of_stacks_um(
      padded.probabilities, padded.depth_um, padded.mask, calibration
    ),
    np.float64,
  )
  true, counted = jax.device_get(true_depths(padded.labels, padded.depth_um, padded.mask))
  patients = np.array([p.patient_id for p in predictions])
  return [
    (interval[has, b, 0], interval[has, b, 2], true[has, b].astype(np.float64), patients[has])
    for b, has in enumerate(counted.T)
  ]


def _mean_by_patient(values, patients):
  names, which = np.unique(patients, return_inverse=True)
  return np.mean(np.bincount(which, values) / np.bincount(which, minlength=len(names)))


@jax.jit
@jax.vmap
def true_depths(labels, depth_um, mask):
  """Depths in µm of the labels' boundaries, and whether each of them counts; of stacks side by side."""
  index = boundaries.boundary_indices(labels, mask)
  _, counted = boundaries.index_errors_um(index, index, depth_um, mask)
  return boundaries.boundary_depths_um(index, depth_um, mask), counted
