"""What methods reach on several datasets together: means, intervals, and differences by dataset.

A dataset here is a phantom of its own seed, with its own patients, readers, CNN and heads. Two levels
vary: patients within a dataset, which an interval of a mean resamples, and datasets, by which two
methods are compared.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
import dataclasses

import numpy as np
from scipy import stats

from rcm_jax.evaluation import bootstrap, estimates, paired_tests
from rcm_jax.evaluation import scores as scores_lib

_MEDIANS = scores_lib.BOUNDARY_RULES.index("posterior_median")
# Measure → which of `estimates.Sums`, and where in it.
MEASURES = {
  "accuracy": ("accuracy", (scores_lib.RAW,)),
  "inconsistent": ("inconsistent", (scores_lib.RAW, -1)),
  "paper_rule_epidermis_dej_um": ("mae_um", (scores_lib.PAPER_RULE, 0)),
  "paper_rule_dej_dermis_um": ("mae_um", (scores_lib.PAPER_RULE, 1)),
  "medians_epidermis_dej_um": ("mae_um", (_MEDIANS, 0)),
  "medians_dej_dermis_um": ("mae_um", (_MEDIANS, 1)),
}
COMPARED = ("accuracy", "medians_epidermis_dej_um", "medians_dej_dermis_um")

# Dataset → method → scores of its runs, one item a seed.
Scores = Mapping[str, Mapping[str, Sequence[scores_lib.StackScores]]]


@dataclasses.dataclass(frozen=True)
class Mean:
  """One measure of one method: the mean over datasets of the means over seeds.

  Attributes:
    value: the mean.
    low: lower end of its 95 % interval over patients, drawn within each dataset.
    high: upper end.
    by_dataset: the mean over seeds in each dataset.
  """

  value: float
  low: float
  high: float
  by_dataset: Mapping[str, float]


@dataclasses.dataclass(frozen=True)
class Difference:
  """Two methods, paired by dataset.

  Attributes:
    first: a method.
    second: the method that it is compared with.
    measure: one of `COMPARED`.
    datasets: pairs.
    value: mean over datasets of the first minus the second.
    low: lower end of the 95 % interval by Student's t over datasets; NaN with fewer than three.
    high: upper end.
    p_value: of the paired t test over datasets, two-sided; NaN with fewer than three.
    p_holm: the same, corrected by Holm's method for all comparisons of this measure.
  """

  first: str
  second: str
  measure: str
  datasets: int
  value: float
  low: float
  high: float
  p_value: float
  p_holm: float


def mean(scores: Scores, method: str, measure: str) -> Mean:
  """Averages one measure of a method over the datasets that have it."""
  field, place = MEASURES[measure]
  parts = {}
  for number, (dataset, methods) in enumerate(scores.items()):
    if method in methods:
      runs = methods[method]
      patients = sorted({patient for run in runs for patient in run.patient_id})
      sums = [estimates.sums_by_patient(run, patients) for run in runs]
      part, whole = (
        np.stack([getattr(run[side], field)[(slice(None), *place)] for run in sums])
        for side in (0, 1)
      )
      weights = bootstrap.draw(len(patients), number)
      parts[dataset] = bootstrap.resample(part, whole, weights)
  together = bootstrap.mean_of(list(parts.values()))
  bounds = (0.0, 1.0) if measure == "accuracy" else (0.0, np.inf)
  low, high = bootstrap.studentised_interval(together, bounds)
  by_dataset = {dataset: float(part.value[0]) for dataset, part in parts.items()}
  return Mean(float(together.value[0]), low, high, by_dataset)


def differences(
  means: Mapping[str, Mapping[str, Mean]], pairs: Sequence[tuple[str, str]]
) -> list[Difference]:
  """Compares methods on the datasets that both were tested on.

  Args:
    means: method → measure → mean.
    pairs: of methods, chosen before anything was measured; those without figures are left out.
  """
  found = []
  for measure in COMPARED:
    tested = [
      _difference(first, second, measure, means[first][measure], means[second][measure])
      for first, second in pairs
      if first in means and second in means
    ]
    known = [i for i, d in enumerate(tested) if not np.isnan(d.p_value)]
    for i, p in zip(known, paired_tests.holm([tested[i].p_value for i in known])):
      tested[i] = dataclasses.replace(tested[i], p_holm=p)
    found += tested
  return found


def _difference(first, second, measure, own, other):
  shared = [dataset for dataset in own.by_dataset if dataset in other.by_dataset]
  by_dataset = np.array([own.by_dataset[d] - other.by_dataset[d] for d in shared])
  count = len(by_dataset)
  value = float(by_dataset.mean()) if count else np.nan
  low = high = p_value = np.nan
  error = by_dataset.std(ddof=1) / np.sqrt(count) if count >= 3 else 0.0
  if error > 0:
    reach = stats.t.ppf(0.5 + bootstrap.LEVEL / 2, count - 1) * error
    low, high = value - reach, value + reach
    p_value = float(2 * stats.t.sf(abs(value) / error, count - 1))
  return Difference(first, second, measure, count, value, low, high, p_value, np.nan)
