"""What more seeds buy: how far means lie apart, and what ensembles gain."""

from __future__ import annotations

import itertools

import numpy as np

from rcm_jax.evaluation import calibration, finished_runs
from rcm_jax.evaluation import scores as scores_lib
from rcm_jax.evaluation.paper_results import display_name
from rcm_jax.reporting.table_formats import Cell, Table

SIZES = (1, 2, 3, 5, 10, 20)


def table(run: finished_runs.FinishedRuns, method: str, name: str, title: str) -> Table:
  """Divides a method's seeds into groups of every size, in the order of the seeds.

  Args:
    run: has the method with many seeds on the same test stacks.
    method: of these.
    name: stem of the table's files.
    title: of the table.

  Returns:
    A row a size: the least and the largest accuracy of the groups' means, and what the groups'
    ensembles reach, on average. Seeds that fill no group are left out.
  """
  runs = run.of_split(method, "test")
  single = np.array([_measures(seed)[0] for seed in runs])
  rows = []
  for size in (size for size in SIZES if size <= len(runs)):
    starts = range(0, len(runs) - size + 1, size)
    means = [single[i : i + size].mean() for i in starts]
    ensembles = [
      _measures(calibration.ensemble(list(itertools.chain(*runs[i : i + size])))) for i in starts
    ]
    values = [min(means), max(means), *np.mean(ensembles, axis=0)]
    decimals = (2, 2, 2, 1, 2, 2)
    cells = [Cell(float(v), decimals=d) for v, d in zip(values, decimals, strict=True)]
    rows.append([Cell(size, decimals=0), Cell(len(means), decimals=0), *cells])
  columns = [("", "Seeds"), ("", "Groups"), ("Accuracy of a mean, %", "least")]
  columns += [("Accuracy of a mean, %", "largest"), ("Ensemble", "Accuracy, %")]
  columns += [("Ensemble", "Impossible transitions")]
  columns += [("Ensemble", "Epidermis-DEJ MAE, µm"), ("Ensemble", "DEJ-Dermis MAE, µm")]
  spread = f"{display_name(method)} on {run.dataset}; a single seed's standard deviation is "
  return Table(name, title, columns, rows, notes=[f"{spread}{single.std(ddof=1):.2f} points."])


def _measures(predictions):
  """Accuracy in %, impossible transitions, and both boundary errors in µm."""
  found = scores_lib.score(predictions)
  confusion = found.confusion[:, scores_lib.RAW].sum(0)
  errors = np.abs(found.error_um[:, scores_lib.PAPER_RULE]).sum(0) / found.counted.sum(0)
  return (
    100 * np.trace(confusion) / confusion.sum(),
    found.inconsistent[:, scores_lib.RAW].sum(),
    *errors,
  )
