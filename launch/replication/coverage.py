r"""How often 95 % intervals over patients cover the truth, on simulated studies.

    python -m launch.replication.coverage [--out=docs/study/coverage.md]

Draws many studies of few patients from a population whose accuracy, boundary errors and impossible
transitions are known, and counts how often the bootstrap's intervals hold them: those of the
tables, and quantiles of resampled values for comparison.
"""

from __future__ import annotations

if __name__ == "__main__":  # before what takes seconds to import
  from tfds_rcm import interrupts

  interrupts.install("launch.replication.coverage")

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from rcm_jax.evaluation import bootstrap
from rcm_jax.reporting.table_formats import Cell, Table, to_markdown
from rcm_jax.runtime import files

PATIENTS = (9, 48)
_POPULATION = 200_000
_BOUNDS = {"accuracy": (0.0, 1.0), "mae_um": (0.0, np.inf), "inconsistent": (0.0, np.inf)}
_NAMES = {
  "accuracy": "Accuracy",
  "mae_um": "Mean absolute boundary error",
  "median_um": "Median absolute boundary error",
  "inconsistent": "Impossible transitions",
}


class Patients(NamedTuple):
  """What one model makes of some patients' stacks.

  Attributes:
    slices: of each patient.
    right: of these.
    errors: absolute boundary errors in µm, by patient.
    transitions: impossible ones.
  """

  slices: np.ndarray
  right: np.ndarray
  errors: list[np.ndarray]
  transitions: np.ndarray

  def some(self, which: np.ndarray) -> Patients:
    """Returns the patients of these numbers."""
    return Patients(
      self.slices[which],
      self.right[which],
      [self.errors[i] for i in which],
      self.transitions[which],
    )

  def sums(self, measure: str) -> tuple[np.ndarray, np.ndarray]:
    """Returns what a measure is the ratio of, by patient."""
    if measure == "accuracy":
      return self.right, self.slices
    if measure == "mae_um":
      return np.array([e.sum() for e in self.errors]), np.array([len(e) for e in self.errors])
    return self.transitions, np.full(len(self.slices), 1 / len(self.slices))


def population(count: int, rng: np.random.Generator) -> Patients:
  """Draws patients much like those of the phantom's test split under a whole-stack method.

  Four stacks a patient on average, of some 44 slices; patients differ in difficulty, which all of a
  patient's stacks share; neighbouring slices err together; boundary errors are skewed.
  """
  stacks = 1 + rng.poisson(3.1, count)
  difficulty = rng.normal(0, 0.6, count)
  quarters = stacks * rng.integers(9, 13, count)  # four slices that are right or wrong together
  right = 4 * rng.binomial(quarters, 1 / (1 + np.exp(-2.1 + difficulty)))
  errors = rng.gamma(1.2, 5 * np.exp(0.8 * np.repeat(difficulty, stacks)))
  transitions = rng.poisson(0.25 * np.exp(difficulty) * stacks)
  by_patient = np.split(errors, np.cumsum(stacks)[:-1])
  return Patients(4 * quarters, right, by_patient, transitions)


def covered(
  patients: int, measure: str, studies: int, *, resamples: int = bootstrap.RESAMPLES, seed: int = 0
) -> tuple[float, float]:
  """Returns the share of studies whose interval holds the truth.

  Args:
    patients: of each study.
    measure: accuracy, mae_um, median_um or inconsistent.
    studies: to draw.
    resamples: of each study's patients.
    seed: of population and studies.

  Returns:
    By the tables' interval, and by quantiles of the resampled values.
  """
  rng = np.random.default_rng(seed)
  everybody = population(_POPULATION, rng)
  median = measure == "median_um"
  if median:
    truth = np.median(np.concatenate(everybody.errors))
  else:
    part, whole = everybody.sums(measure)
    truth = part.sum() / whole.sum()
    truth *= patients / len(part) if measure == "inconsistent" else 1
  inside = np.zeros((studies, 2), bool)
  for study in range(studies):
    drawn = everybody.some(rng.integers(0, _POPULATION, patients))
    weights = bootstrap.draw(patients, int(rng.integers(2**32)), resamples)
    if median:
      which = np.repeat(np.arange(patients), [len(e) for e in drawn.errors])
      values = bootstrap.weighted_median(np.concatenate(drawn.errors), weights[:, which])
      ends = [bootstrap.percentile_interval(values, patients)] * 2
    else:
      found = bootstrap.resample(*(x[None] for x in drawn.sums(measure)), weights)
      ends = [
        bootstrap.studentised_interval(found, _BOUNDS[measure]),
        bootstrap.percentile_interval(found.value, patients),
      ]
    inside[study] = [low <= truth <= high for low, high in ends]
  used, quantiles = inside.mean(0)
  return float(used), float(quantiles)


def table(studies: int) -> Table:
  """Measures coverage for every measure and size of a study."""
  columns = [("", "Measure")]
  columns += [(f"{n} patients", name) for n in PATIENTS for name in ("tables", "quantiles")]
  rows = []
  for measure, name in _NAMES.items():
    shares = [share for n in PATIENTS for share in covered(n, measure, studies)]
    rows.append([name, *(Cell(100 * share, decimals=1) for share in shares)])
  error = 100 * np.sqrt(0.95 * 0.05 / studies)
  notes = [
    f"{studies} simulated studies each; a share near 95 % is known to ±{error:.1f} (standard"
    " error). Tables: the intervals of Tables 1 to 5, bootstrap-t, for medians quantiles."
    " Quantiles: the percentile bootstrap.",
  ]
  title = "Coverage of 95 % intervals over patients, %"
  return Table("coverage", title, columns, rows, notes=notes)


def main(argv: Sequence[str] | None = None) -> None:
  """Prints the table, and writes it where the command line says."""
  parser = argparse.ArgumentParser(
    prog="python -m launch.replication.coverage",
    description=__doc__,
    formatter_class=argparse.RawDescriptionHelpFormatter,
  )
  parser.add_argument("--studies", type=int, default=2000, help="to simulate for each entry")
  parser.add_argument("--out", help="a Markdown file")
  args = parser.parse_args(argv)
  if args.studies < 1:
    parser.error("--studies: must be 1 or more")
  text = to_markdown(table(args.studies))
  print(text)
  if args.out:
    files.write_text(Path(args.out), text)


if __name__ == "__main__":
  main()
