"""Means over seeds, bootstrap intervals over patients, paired tests between methods.

Patients, not stacks or slices, are the independent units: one patient's stacks
resemble each other. Seeds are averaged, not resampled, so an interval says how
the mean of these trained models would vary over other patients.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
import dataclasses
import itertools
from typing import NamedTuple
import warnings

from jaxtyping import Float, Num
import numpy as np
from scipy import stats

from rcm_jax.evaluation import metrics
from rcm_jax.evaluation import scores as scores_lib

RESAMPLES = 2000
LEVEL = 0.95
PAIRED_MEASURES = ("accuracy", "mae_epidermis_dej_um", "mae_dej_dermis_um")


class Totals(NamedTuple):
  """Sums over stacks that all measures are ratios of; leading axes are kept."""

  confusion: Num[np.ndarray, "*batch 3 3 3"]
  inconsistent: Num[np.ndarray, "*batch 3 4"]
  abs_error_um: Float[np.ndarray, "*batch 3 2"]
  boundary_n: Num[np.ndarray, "*batch 2"]


class Measures(NamedTuple):
  """What the tables show; fractions and µm, NaN where there is nothing to measure.

  Attributes:
    accuracy: by labelling, see `scores.LABELLINGS`.
    sensitivity: of raw predictions, by stratum.
    specificity: of raw predictions, by stratum.
    inconsistent: impossible transitions by labelling and kind, their total last.
    mae_um: mean absolute boundary error by rule (`scores.BOUNDARY_RULES`) and boundary.
    boundary_n: boundaries measured.
  """

  accuracy: Float[np.ndarray, "*batch 3"]
  sensitivity: Float[np.ndarray, "*batch 3"]
  specificity: Float[np.ndarray, "*batch 3"]
  inconsistent: Float[np.ndarray, "*batch 3 5"]
  mae_um: Float[np.ndarray, "*batch 3 2"]
  boundary_n: Float[np.ndarray, "*batch 2"]


@dataclasses.dataclass(frozen=True)
class Estimate:
  """Measures of one method: mean over seeds, and the ends of its 95 % interval."""

  mean: Measures
  low: Measures
  high: Measures
  seeds: int


@dataclasses.dataclass(frozen=True)
class Comparison:
  """A paired test between two methods on the patients that both were tested on.

  Attributes:
    first: a method.
    second: the method it is compared with.
    measure: one of `PAIRED_MEASURES`.
    patients: pairs.
    difference: measure of the first minus measure of the second, pooled over patients.
    low: lower end of the difference's 95 % interval.
    high: upper end.
    p_value: Wilcoxon signed-rank test of the patients' differences, two-sided.
    p_holm: the same, corrected for the number of pairs by Holm's method.
  """

  first: str
  second: str
  measure: str
  patients: int
  difference: float
  low: float
  high: float
  p_value: float
  p_holm: float


def totals_by_patient(
  scores: scores_lib.StackScores, patients: Sequence[str] | None = None
) -> Totals:
  """Sums each patient's stacks; axis 0 follows `patients` (sorted names by default)."""
  patients = sorted(set(scores.patient_id)) if patients is None else patients
  place = {patient: i for i, patient in enumerate(patients)}
  stacks = [i for i, patient in enumerate(scores.patient_id) if patient in place]
  rows = [place[scores.patient_id[i]] for i in stacks]

  def total(values):
    out = np.zeros((len(patients), *values.shape[1:]), values.dtype)
    np.add.at(out, rows, values[stacks])
    return out

  return Totals(
    total(scores.confusion.astype(np.int64)),
    total(scores.inconsistent.astype(np.int64)),
    total(np.abs(scores.error_um)),
    total(scores.counted.astype(np.int64)),
  )


def measure(totals: Totals) -> Measures:
  """Turns sums into the tables' measures."""
  raw = totals.confusion[..., scores_lib.RAW, :, :]
  total = totals.inconsistent.sum(-1, keepdims=True)
  n = totals.boundary_n[..., None, :]
  return Measures(
    accuracy=metrics.accuracy(totals.confusion),
    sensitivity=metrics.sensitivity(raw),
    specificity=metrics.specificity(raw),
    inconsistent=np.concatenate([totals.inconsistent, total], axis=-1).astype(np.float64),
    mae_um=np.where(n > 0, totals.abs_error_um / np.maximum(n, 1), np.nan),
    boundary_n=totals.boundary_n.astype(np.float64),
  )


def estimate(runs: Sequence[scores_lib.StackScores], seed: int = 0) -> Estimate:
  """Averages one method's runs and bootstraps the average over patients.

  Args:
    runs: scores of the same method, one item a seed.
    seed: of the resampling.
  """
  totals = [totals_by_patient(run) for run in runs]
  mean, resampled = _mean_and_resamples(totals, seed)
  return Estimate(mean, *_interval(resampled), len(runs))


def compare(
  methods: Mapping[str, Sequence[scores_lib.StackScores]], seed: int = 0
) -> list[Comparison]:
  """Tests every pair of methods on every measure of `PAIRED_MEASURES`, by patient.

  Args:
    methods: method → scores of its runs, one item a seed.
    seed: of the resampling.
  """
  summaries = {}  # most pairs share their patients

  def summary(method, patients):
    if (method, patients) not in summaries:
      totals = [totals_by_patient(run, patients) for run in methods[method]]
      by_patient = _average([measure(t) for t in totals])
      summaries[method, patients] = by_patient, *_mean_and_resamples(totals, seed)
    return summaries[method, patients]

  out: dict[str, list[Comparison]] = {name: [] for name in PAIRED_MEASURES}
  for first, second in itertools.combinations(methods, 2):
    tested = [set(run.patient_id) for run in (*methods[first], *methods[second])]
    patients = tuple(sorted(set.intersection(*tested)))
    if len(patients) < 2:
      continue
    pair = summary(first, patients), summary(second, patients)
    for name, comparisons in out.items():
      comparisons.append(_compare_pair(first, second, *pair, name))
  for comparisons in out.values():
    corrected = _holm([c.p_value for c in comparisons])
    comparisons[:] = [dataclasses.replace(c, p_holm=p) for c, p in zip(comparisons, corrected)]
  return list(itertools.chain.from_iterable(out.values()))


def _compare_pair(first, second, first_summary, second_summary, name):
  by_patient, mean, resamples = (
    _pick(a, name) - _pick(b, name) for a, b in zip(first_summary, second_summary)
  )
  by_patient = by_patient[~np.isnan(by_patient)]
  low, high = _interval(resamples)
  # Where no patient differs there is nothing to rank.
  p_value = float(stats.wilcoxon(by_patient).pvalue) if by_patient.any() else 1.0
  return Comparison(
    first=first,
    second=second,
    measure=name,
    patients=len(by_patient),
    difference=float(mean),
    low=float(low),
    high=float(high),
    p_value=p_value,
    p_holm=p_value,
  )


def _pick(measures, name):
  if name == "accuracy":
    return measures.accuracy[..., scores_lib.RAW]
  return measures.mae_um[..., scores_lib.PAPER_RULE, PAIRED_MEASURES.index(name) - 1]


def _mean_and_resamples(totals, seed):
  """Means over runs: of the test set as it is, and of `RESAMPLES` draws of its patients.

  Every run sees the same draws, and so does every method on the same patients.
  """
  mean = _average([measure(Totals(*(x.sum(0) for x in run))) for run in totals])
  resampled = []
  for run in totals:
    patients = len(run.boundary_n)
    weights = np.random.default_rng(seed).multinomial(
      patients, np.full(patients, 1 / patients), size=RESAMPLES
    )
    draws = (np.tensordot(weights.astype(np.float64), x, axes=1) for x in run)
    resampled.append(measure(Totals(*draws)))
  return mean, _average(resampled)


def _average(measures):
  return Measures(*(np.mean(values, axis=0) for values in zip(*measures)))


def _interval(resamples):
  """Lower and upper end over axis 0, of an array or of each array in a tuple of them."""
  if isinstance(resamples, Measures):
    return tuple(Measures(*ends) for ends in zip(*(_interval(x) for x in resamples)))
  tail = (1 - LEVEL) / 2
  with warnings.catch_warnings():
    warnings.filterwarnings("ignore", "All-NaN", RuntimeWarning)  # a stratum that nobody has
    return tuple(np.nanquantile(resamples, [tail, 1 - tail], axis=0))


def _holm(p_values):
  order = np.argsort(p_values)
  steps = np.array(p_values)[order] * np.arange(len(order), 0, -1)
  corrected = np.empty(len(order))
  corrected[order] = np.minimum(np.maximum.accumulate(steps), 1.0)
  return corrected.tolist()
