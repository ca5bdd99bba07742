"""How far probabilities and boundaries can be trusted, learned on validation stacks.

Temperature scaling makes a slice's confidence match its accuracy; split
conformal prediction turns boundaries into intervals that cover the truth for a
chosen share of patients; an ensemble averages what several seeds say.
"""

from __future__ import annotations

from collections.abc import Sequence
import dataclasses
import math
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Float, Int
import numpy as np
from scipy import optimize, special

from rcm_jax import arrays
from rcm_jax.decoding import boundaries, intervals, monotone_model
from rcm_jax.decoding.intervals import Calibration
from rcm_jax.evaluation import predictions as predictions_lib
from tfds_rcm import errors

_TINY = np.finfo(np.float32).tiny
_LOG_TEMPERATURE_RANGE = (math.log(0.05), math.log(20.0))


class Reliability(NamedTuple):
  """Slices grouped by confidence, least confident first.

  Attributes:
    confidence: mean probability of the predicted stratum.
    accuracy: share of slices predicted right.
    count: slices.
  """

  confidence: Float[np.ndarray, " bins"]
  accuracy: Float[np.ndarray, " bins"]
  count: Int[np.ndarray, " bins"]


class Assessment(NamedTuple):
  """How well a calibration holds on other stacks.

  Attributes:
    accuracy: share of slices classified right.
    temperature: of the calibration.
    error_before: expected calibration error of the probabilities as they are.
    error_after: the same after temperature scaling.
    width_um: mean width of each boundary's interval, where the truth has the boundary.
    covered: share of these boundaries inside their interval, each patient weighing the same.
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
    width_um: mean width of each boundary's interval.
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
  temperature = fit_temperature(*slices_of(validation))
  unwidened = Calibration(temperature, (0.0, 0.0), coverage, fit_boundary_temperature(validation))
  margins = []
  for lower, upper, true, patients in _bounds(validation, unwidened):
    margins.append(conformal_margin(np.maximum(lower - true, true - upper), patients, coverage))
  return unwidened._replace(margin_um=tuple(margins))


def fit_temperature(probabilities: Float[np.ndarray, "n 3"], labels: Int[np.ndarray, "n"]) -> float:
  """Finds the temperature of least negative log-likelihood (Guo et al. 2017).

  Args:
    probabilities: of validation slices.
    labels: their true strata.

  Raises:
    UserError: there are no slices.
  """
  if not len(labels):
    raise errors.UserError("temperature scaling: no validation slices; keep a validation split")
  logits = intervals.log(probabilities)

  def negative_log_likelihood(log_temperature):
    scaled = special.log_softmax(logits / math.exp(log_temperature), axis=-1)
    return -np.mean(np.take_along_axis(scaled, labels[:, None].astype(int), axis=-1))

  found = optimize.minimize_scalar(
    negative_log_likelihood, bounds=_LOG_TEMPERATURE_RANGE, method="bounded"
  )
  return math.exp(found.x)


def fit_boundary_temperature(
  validation: Sequence[predictions_lib.StackPrediction],
) -> float | None:
  """Finds the temperature under which the true boundaries are most probable.

  The monotone model takes slices as independent witnesses, but neighbors err together, so that
  a stack's evidence counts for too much. Dividing it by a temperature, mostly well above the one
  that suits single slices, makes the boundaries' distribution honest and its medians better.

  Args:
    validation: stacks, with or without both boundaries.

  Returns:
    The temperature; None for an ordered head, which has learned to weigh a stack's evidence.

  Raises:
    UserError: there are no stacks.
  """
  if not validation:
    raise errors.UserError("boundary temperature: no validation stacks; keep a validation split")
  if validation[0].ordered:
    return None
  padded = predictions_lib.pad(validation)
  stacks = padded.labels, padded.probabilities, padded.mask
  found = optimize.minimize_scalar(
    lambda log_temperature: float(_boundary_loss(*stacks, math.exp(log_temperature))),
    bounds=(math.log(0.2), math.log(100.0)),
    method="bounded",
    options={"xatol": 0.02},
  )
  return math.exp(found.x)


def reliability(
  probabilities: Float[np.ndarray, "n 3"], labels: Int[np.ndarray, "n"], bins: int = 15
) -> Reliability:
  """Groups slices by confidence into bins of equally many slices."""
  confidence = probabilities.max(axis=-1).astype(np.float64)
  right = probabilities.argmax(axis=-1) == labels
  groups = np.array_split(np.argsort(confidence, kind="stable"), min(bins, len(labels)))
  return Reliability(
    np.array([confidence[g].mean() for g in groups]),
    np.array([right[g].mean() for g in groups]),
    np.array([len(g) for g in groups]),
  )


def expected_calibration_error(
  probabilities: Float[np.ndarray, "n 3"], labels: Int[np.ndarray, "n"], bins: int = 15
) -> float:
  """Returns the mean gap between confidence and accuracy over equally filled bins."""
  groups = reliability(probabilities, labels, bins)
  return float(np.average(np.abs(groups.confidence - groups.accuracy), weights=groups.count))


def conformal_margin(
  scores: Float[np.ndarray, "n"], patients: Sequence[str] | np.ndarray, coverage: float
) -> float:
  """Finds the score that a new stack stays below with the probability asked for.

  Split conformal prediction with patients as the exchangeable units. Each stack weighs one over
  its patient's number of stacks, and a new patient weighs one at infinity (the finite-sample
  correction).

  Args:
    scores: how far outside its interval the truth lies (negative: inside).
    patients: patient of each score.
    coverage: probability asked for.

  Returns:
    The margin; infinity where there are too few patients for this coverage.
  """
  names, which, stacks = np.unique(np.asarray(patients), return_inverse=True, return_counts=True)
  order = np.argsort(scores, kind="stable")
  reached = np.cumsum(1 / stacks[which[order]]) / (len(names) + 1)
  enough = np.flatnonzero(reached >= coverage - 1e-9)
  return float(scores[order][enough[0]]) if len(enough) else math.inf


def assess(calibration: Calibration, test: Sequence[predictions_lib.StackPrediction]) -> Assessment:
  """Tries a calibration on stacks that it was not learned on."""
  probabilities, labels = slices_of(test)
  width, inside = np.full(2, np.nan), np.full(2, np.nan)
  for boundary, (lower, upper, true, patients) in enumerate(_bounds(test, calibration)):
    if len(true):
      inside[boundary] = _mean_by_patient((lower <= true) & (true <= upper), patients)
      width[boundary] = np.mean(upper - lower)
  scaled = intervals.scale(probabilities, calibration.temperature)
  return Assessment(
    accuracy=float(np.mean(np.concatenate([p.predicted for p in test]) == labels)),
    temperature=calibration.temperature,
    error_before=expected_calibration_error(probabilities, labels),
    error_after=expected_calibration_error(scaled, labels),
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
    Means over divisions; NaN for a boundary that no patient of the rest has.
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
      if not known.all():
        margin = conformal_margin(scores[known], patients[known], calibration.coverage)
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


def slices_of(
  predictions: Sequence[predictions_lib.StackPrediction],
) -> tuple[Float[np.ndarray, "n 3"], Int[np.ndarray, "n"]]:
  """Strings the slices of all stacks together: probabilities and true strata."""
  if not predictions:
    return np.zeros((0, arrays.NUM_STRATA), np.float32), np.zeros(0, np.int32)
  return (
    np.concatenate([p.probabilities for p in predictions]),
    np.concatenate([p.labels for p in predictions]),
  )


def _bounds(predictions, calibration):
  """By boundary: lower end, upper end, true depth and patient of each stack that has it."""
  padded = predictions_lib.pad(predictions)
  interval = _intervals(padded.probabilities, padded.depth_um, padded.mask, calibration)
  interval = np.asarray(interval, np.float64)
  true, counted = jax.device_get(_true_depths(padded.labels, padded.depth_um, padded.mask))
  patients = np.array([p.patient_id for p in predictions])
  return [
    (interval[has, b, 0], interval[has, b, 2], true[has, b].astype(np.float64), patients[has])
    for b, has in enumerate(counted.T)
  ]


def _mean_by_patient(values, patients):
  names, which = np.unique(patients, return_inverse=True)
  return np.mean(np.bincount(which, values) / np.bincount(which, minlength=len(names)))


@jax.jit
def _boundary_loss(labels, probabilities, mask, temperature):
  def one(labels, probabilities, mask):
    posterior = monotone_model.posterior_of(probabilities, mask, temperature).probability
    true = boundaries.boundary_indices(labels, mask)
    return -jnp.sum(jnp.log(jnp.maximum(posterior[jnp.arange(2), true], _TINY)))

  return jnp.mean(jax.vmap(one)(labels, probabilities, mask))


_intervals = jax.jit(jax.vmap(intervals.boundary_intervals_um, in_axes=(0, 0, 0, None)))


@jax.jit
@jax.vmap
def _true_depths(labels, depth_um, mask):
  index = boundaries.boundary_indices(labels, mask)
  _, counted = boundaries.index_errors_um(index, index, depth_um, mask)
  return boundaries.boundary_depths_um(index, depth_um, mask), counted
