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

from jaxtyping import Float, Int
import numpy as np
from scipy import optimize
from scipy import special

from rcm_jax import arrays
from rcm_jax import predictions as predictions_lib
from tfds_rcm import errors

_LOG_TEMPERATURE_RANGE = (math.log(0.05), math.log(20.0))


class Reliability(NamedTuple):
  """Slices grouped by confidence, least confident first.

  Attributes:
    confidence: mean probability of the predicted stratum.
    accuracy: share of slices predicted right.
    count: slices.
  """

  confidence: Float[np.ndarray, "bins"]
  accuracy: Float[np.ndarray, "bins"]
  count: Int[np.ndarray, "bins"]


def scale(
  probabilities: Float[np.ndarray, "*batch 3"], temperature: float
) -> Float[np.ndarray, "*batch 3"]:
  """Softens (above 1) or sharpens (below 1) probabilities; their order stays."""
  return special.softmax(_log(probabilities) / temperature, axis=-1).astype(probabilities.dtype)


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
  logits = _log(probabilities)

  def negative_log_likelihood(log_temperature):
    scaled = special.log_softmax(logits / math.exp(log_temperature), axis=-1)
    return -np.mean(np.take_along_axis(scaled, labels[:, None].astype(int), axis=-1))

  found = optimize.minimize_scalar(
    negative_log_likelihood, bounds=_LOG_TEMPERATURE_RANGE, method="bounded"
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


def conformal_half_width(
  abs_errors_um: Float[np.ndarray, "n"], patients: Sequence[str], coverage: float = 0.9
) -> float:
  """Finds how far an interval must reach around a predicted boundary to cover the truth.

  Split conformal prediction with patients as the exchangeable units. Each validation stack
  weighs one over its patient's number of stacks, and an unseen patient weighs one at infinity
  (the finite-sample correction), so a stack drawn at random from a new patient is covered with
  at least the probability asked for.

  Args:
    abs_errors_um: absolute errors on validation stacks that have the boundary, in µm.
    patients: patient of each error.
    coverage: probability asked for.

  Returns:
    Half the width of the interval in µm; infinity with too few patients for this coverage.
  """
  names, which, stacks = np.unique(np.asarray(patients), return_inverse=True, return_counts=True)
  order = np.argsort(abs_errors_um, kind="stable")
  reached = np.cumsum(1 / stacks[which[order]]) / (len(names) + 1)
  enough = np.flatnonzero(reached >= coverage - 1e-9)
  return float(abs_errors_um[order][enough[0]]) if len(enough) else math.inf


def covered(
  abs_errors_um: Float[np.ndarray, "n"], patients: Sequence[str], half_width_um: float
) -> float:
  """Returns the share of boundaries inside the interval, each patient weighing the same."""
  names, which = np.unique(np.asarray(patients), return_inverse=True)
  inside = np.bincount(which, abs_errors_um <= half_width_um, len(names))
  return float(np.mean(inside / np.bincount(which, minlength=len(names))))


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


def _log(probabilities):
  return np.log(np.maximum(probabilities, np.finfo(np.float32).tiny).astype(np.float64))
