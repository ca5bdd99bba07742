"""What the tables show of a method: means over seeds, and their intervals over patients."""

from __future__ import annotations

from collections.abc import Sequence
import dataclasses
from typing import NamedTuple

from jaxtyping import Float, Num
import numpy as np

from rcm_jax.evaluation import bootstrap, metrics
from rcm_jax.evaluation import scores as scores_lib


class Measures(NamedTuple):
  """What the tables show; fractions and µm, NaN where there is nothing to measure.

  Attributes:
    accuracy: by labelling, see `scores.LABELLINGS`.
    sensitivity: of raw predictions, by stratum.
    specificity: of raw predictions, by stratum.
    inconsistent: impossible transitions by labelling and kind, their total last.
    mae_um: mean absolute boundary error by rule (`scores.BOUNDARY_RULES`) and boundary.
    median_um: median absolute boundary error by rule and boundary.
  """

  accuracy: Float[np.ndarray, "3"]
  sensitivity: Float[np.ndarray, "C"]
  specificity: Float[np.ndarray, "C"]
  inconsistent: Float[np.ndarray, "3 kinds"]
  mae_um: Float[np.ndarray, "3 S"]
  median_um: Float[np.ndarray, "3 S"]


class Sums(NamedTuple):
  """One of the sums that a measure is the ratio of, by patient."""

  accuracy: Num[np.ndarray, "P 3"]
  sensitivity: Num[np.ndarray, "P C"]
  specificity: Num[np.ndarray, "P C"]
  inconsistent: Num[np.ndarray, "P 3 kinds"]
  mae_um: Num[np.ndarray, "P 3 S"]


_BOUNDS = Sums((0.0, 1.0), (0.0, 1.0), (0.0, 1.0), (0.0, np.inf), (0.0, np.inf))


@dataclasses.dataclass(frozen=True)
class Estimate:
  """Measures of one method: mean over seeds, and the ends of its 95 % interval.

  Attributes:
    mean: over seeds.
    low: lower ends; NaN where there is no interval.
    high: upper ends.
    boundary_n: boundaries of each kind in the test stacks.
    seeds: runs.
  """

  mean: Measures
  low: Measures
  high: Measures
  boundary_n: Float[np.ndarray, "S"]
  seeds: int


def sums_by_patient(scores: scores_lib.StackScores, patients: Sequence[str]) -> tuple[Sums, Sums]:
  """Sums each patient's stacks: what measures are ratios of, part and whole.

  Args:
    scores: of one run.
    patients: who is counted, in the order of axis 0.
  """
  place = {patient: i for i, patient in enumerate(patients)}
  stacks = [i for i, patient in enumerate(scores.patient_id) if patient in place]
  rows = [place[scores.patient_id[i]] for i in stacks]

  def total(values):
    out = np.zeros((len(patients), *values.shape[1:]), np.float64)
    np.add.at(out, rows, values[stacks])
    return out

  confusion = total(scores.confusion)
  raw = confusion[:, scores_lib.RAW]
  kinds = total(scores.inconsistent)
  transitions = np.concatenate([kinds, kinds.sum(-1, keepdims=True)], axis=-1)
  errors = total(np.abs(scores.error_um))
  boundaries = np.broadcast_to(total(scores.counted)[:, None], errors.shape)
  counts = (
    metrics.accuracy_counts(confusion),
    metrics.sensitivity_counts(raw),
    metrics.specificity_counts(raw),
    # Of all patients together, however often each is drawn: a total, not a mean.
    (transitions, np.full(transitions.shape, 1 / len(patients))),
    (errors, boundaries),
  )
  part, whole = zip(*counts)
  return Sums(*part), Sums(*whole)


def measure(scores: scores_lib.StackScores) -> Measures:
  """Measures one run on all its stacks."""
  sums = sums_by_patient(scores, sorted(set(scores.patient_id)))
  part, whole = (Sums(*(x.sum(0) for x in by_patient)) for by_patient in sums)
  ratios = map(metrics.ratio, part, whole)
  rules, boundaries = scores.error_um.shape[1:]
  median = [[_median(scores, rule, b) for b in range(boundaries)] for rule in range(rules)]
  return Measures(*ratios, np.array(median))


def estimate(runs: Sequence[scores_lib.StackScores], seed: int = 0) -> Estimate:
  """Averages one method's runs, with an interval over patients; see `bootstrap`.

  Args:
    runs: scores of the same method, one item a seed.
    seed: of the resampling. Methods on as many patients see the same draws.
  """
  patients = sorted({patient for run in runs for patient in run.patient_id})
  weights = bootstrap.draw(len(patients), seed)
  sums = [sums_by_patient(run, patients) for run in runs]
  found = {}
  for i, name in enumerate(Sums._fields):
    part, whole = (np.stack([run[side][i] for run in sums]) for side in (0, 1))
    values = np.empty((3, *part.shape[2:]))
    for k in np.ndindex(part.shape[2:]):
      every = (slice(None), slice(None), *k)
      resamples = bootstrap.resample(part[every], whole[every], weights)
      ends = bootstrap.studentised_interval(resamples, _BOUNDS[i])
      values[(slice(None), *k)] = resamples.value[0], *ends
    found[name] = values
  found["median_um"] = _medians(runs, patients, weights)
  mean, low, high = (Measures(**{k: v[row] for k, v in found.items()}) for row in range(3))
  boundary_n = np.mean([run.counted.sum(0) for run in runs], axis=0)
  return Estimate(mean, low, high, boundary_n, len(runs))


def _median(scores, rule, boundary):
  errors = np.abs(scores.error_um[scores.counted[:, boundary], rule, boundary])
  return np.median(errors) if len(errors) else np.nan


def _medians(runs, patients, weights):
  """Mean over runs of the median errors, and both ends, by rule and boundary."""
  place = {patient: i for i, patient in enumerate(patients)}
  of_rules = runs[0].error_um.shape[1:]
  out = np.empty((3, *of_rules))
  for rule, boundary in np.ndindex(of_rules):
    values, seen = np.zeros(len(weights)), set()
    for run in runs:
      counted = run.counted[:, boundary]
      which = [place[p] for p, has in zip(run.patient_id, counted) if has]
      errors = np.abs(run.error_um[counted, rule, boundary])
      values += bootstrap.weighted_median(errors, weights[:, which]) / len(runs)
      seen.update(which)
    out[:, rule, boundary] = values[0], *bootstrap.percentile_interval(values, len(seen))
  return out
