"""Paired tests between methods, by patient."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
import dataclasses
import itertools

import numpy as np
from scipy import stats

from rcm_jax import anatomy
from rcm_jax.evaluation import bootstrap, estimates, metrics
from rcm_jax.evaluation import scores as scores_lib

SIGNIFICANT = 0.05


def measures_of(strata: anatomy.Strata) -> dict[str, tuple[str, tuple[int, ...]]]:
  """Returns what methods are compared by: measure → which of `estimates.Sums`, and where in it."""
  errors = {
    f"mae_{name}_um": ("mae_um", (scores_lib.PAPER_RULE, b))
    for b, name in enumerate(strata.boundaries)
  }
  return {"accuracy": ("accuracy", (scores_lib.RAW,)), **errors}


@dataclasses.dataclass(frozen=True)
class Comparison:
  """A paired test between two methods on the patients that both were tested on.

  Attributes:
    first: a method.
    second: the method it is compared with.
    measure: one of `measures_of`.
    patients: pairs.
    difference: measure of the first minus measure of the second, pooled over patients.
    low: lower end of the difference's 95 % interval; NaN with too few patients.
    high: upper end.
    p_value: Wilcoxon signed-rank test of the patients' differences, two-sided.
    p_holm: the same, corrected for the number of pairs of methods by Holm's method.
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

  @property
  def significant(self) -> bool:
    """Whether the corrected test tells the methods apart."""
    return self.p_holm < SIGNIFICANT


def compare(
  methods: Mapping[str, Sequence[scores_lib.StackScores]],
  strata: anatomy.Strata = anatomy.PAPER,
  seed: int = 0,
) -> list[Comparison]:
  """Tests every pair of methods on every one of `measures_of`, by patient.

  Args:
    methods: method → scores of its runs, one item a seed.
    strata: that all of them tell apart.
    seed: of the resampling.
  """
  pairs = []
  for first, second in itertools.combinations(methods, 2):
    tested = [set(run.patient_id) for run in (*methods[first], *methods[second])]
    patients = tuple(sorted(set.intersection(*tested)))
    if len(patients) >= 2:
      pairs.append((first, second, patients))
  sums = {  # most pairs share their patients
    (method, patients): [estimates.sums_by_patient(run, patients) for run in methods[method]]
    for *both, patients in pairs
    for method in both
  }
  comparisons = []
  for name, (field, place) in measures_of(strata).items():
    known = {key: _resampled(runs, field, place, seed) for key, runs in sums.items()}
    tested = [_test_pair(*pair, name, known) for pair in pairs]
    corrected = holm([c.p_value for c in tested])
    comparisons += [dataclasses.replace(c, p_holm=p) for c, p in zip(tested, corrected)]
  return comparisons


def holm(p_values: Sequence[float]) -> list[float]:
  """Corrects p-values of several tests by Holm's step-down method."""
  order = np.argsort(p_values)
  steps = np.array(p_values)[order] * np.arange(len(order), 0, -1)
  corrected = np.empty(len(order))
  corrected[order] = np.minimum(np.maximum.accumulate(steps), 1.0)
  return corrected.tolist()


def _resampled(runs, field, place, seed):
  """One method's patients, each measured by itself, and its resamples."""
  part, whole = (
    np.stack([getattr(run[side], field)[(slice(None), *place)] for run in runs]) for side in (0, 1)
  )
  weights = bootstrap.draw(part.shape[1], seed)
  return metrics.ratio(part, whole).mean(0), bootstrap.resample(part, whole, weights)


def _test_pair(first, second, patients, name, known):
  (own, own_resamples), (others, other_resamples) = known[first, patients], known[second, patients]
  by_patient = own - others
  by_patient = by_patient[~np.isnan(by_patient)]
  difference = own_resamples.minus(other_resamples)
  low, high = bootstrap.studentised_interval(difference)
  # Where no patient differs there is nothing to rank.
  p_value = float(stats.wilcoxon(by_patient).pvalue) if by_patient.any() else 1.0
  return Comparison(
    first=first,
    second=second,
    measure=name,
    patients=len(by_patient),
    difference=float(difference.value[0]),
    low=low,
    high=high,
    p_value=p_value,
    p_holm=p_value,
  )
