"""The report of finished runs on one dataset: tables.md, each table as CSV and LaTeX, figures."""

from __future__ import annotations

import itertools
import os
import pathlib
from typing import Any
import warnings

import numpy as np

from rcm_jax.decoding import intervals
from rcm_jax.evaluation import (
  calibration,
  estimates,
  finished_runs,
  paired_tests,
  paper_results,
  results,
  temperature,
)
from rcm_jax.evaluation import predictions as predictions_lib
from rcm_jax.evaluation import scores as scores_lib
from rcm_jax.reporting import paper_tables, plots, reader_rows, table_formats
from rcm_jax.runtime import files
from tfds_rcm import errors


def write(
  runs: finished_runs.FinishedRuns,
  out: str | os.PathLike,
  readers: reader_rows.Readers | None = None,
) -> list[dict[str, Any]]:
  """Writes one dataset's tables and figures.

  Args:
    runs: on the dataset.
    out: directory for tables.md, table*.csv, table*.tex and figures/; made if missing.
    readers: how far the readers of the labels agree, for a row of Tables 1 and 3.

  Returns:
    Rows of all runs, in the form of results.json.
  """
  out = pathlib.Path(out)
  out.mkdir(parents=True, exist_ok=True)
  methods, built, every = _build(runs, readers)
  if every:
    files.write_text(out / "paired_tests.csv", table_formats.to_csv(every))
  text = "\n".join(table_formats.to_markdown(table) for table in built)
  files.write_text(out / "tables.md", f"# Measured on {runs.dataset}\n\n{text}")
  for table in built:
    files.write_text(out / f"{table.name}.csv", table_formats.to_csv(table))
    files.write_text(out / f"{table.name}.tex", table_formats.to_latex(table))
  _draw(runs, [m.name for m in methods], out / "figures")
  every_run = (p for seeds in runs.predictions.values() for run in seeds.values() for p in run)
  return results.summarize(list(every_run))


def tables_of(
  runs: str | os.PathLike[str], dataset: str | None = None
) -> dict[str, table_formats.Table]:
  """Gathers every finished run below a directory into the paper's tables and what goes beyond.

  Args:
    runs: directory that runs' work directories lie in, at any depth.
    dataset: which one, where runs were made on several.

  Returns:
    By name: table1 (accuracy, sensitivity, specificity), table2 (impossible transitions), table3
    (boundary errors), table4_decoding; and, where there are methods to compare, table5_paired, paired_tests
    (every pair), and table6_uncertainty where validation stacks were kept. `str(table)` is
    Markdown, which notebooks show; `columns` and `rows` hold the numbers with their intervals.

  Raises:
    UserError: no finished run, or several datasets and none chosen.

  Examples:
    >>> tables = rcm_jax.tables_of("runs")
    >>> tables["table3"].title
    'Table 3. Absolute errors of both boundaries, after median-then-max'
    >>> "Toeplitz" in str(tables["table1"])
    True
  """
  found, notes = finished_runs.gather(runs)
  for note in notes:
    warnings.warn(note, stacklevel=2)
  known = [each.dataset for each in found]
  if dataset is None and len(known) > 1:
    raise errors.UserError(f"{runs}: runs on {', '.join(known)}; choose one as dataset")
  if dataset is not None and dataset not in known:
    raise errors.UserError(
      f"{runs}: no finished run on '{dataset}'{errors.nearest(dataset, known)}"
    )
  _, built, every = _build(found[0 if dataset is None else known.index(dataset)])
  return {
    **{table.name: table for table in built},
    **({"paired_tests": every} if every else {}),
  }


def _build(
  runs: finished_runs.FinishedRuns, readers: reader_rows.Readers | None = None
) -> tuple[list[paper_tables.Method], list[table_formats.Table], table_formats.Table | None]:
  """Methods, the most accurate first; the tables; and the comparison of every pair of methods."""
  scores = _score_methods(runs)
  methods = _estimate(runs, scores)
  strata = runs.strata
  comparisons = paired_tests.compare({m.name: scores[m.name] for m in methods}, strata)
  builders = (paper_tables.table1, paper_tables.table2, paper_tables.table3)
  builders = (*builders, paper_tables.decoding_table)
  built = [build(methods, runs.dataset, strata) for build in builders]
  built = reader_rows.add(built, readers, strata) if readers else built
  every = None
  best = [c for c in comparisons if c.first == methods[0].name]
  if best:
    built.append(paper_tables.comparison_table(best, runs.dataset, strata))
    every = paper_tables.comparison_table(comparisons, runs.dataset, strata)
  assessed = _assess(runs, [m.name for m in methods])
  if assessed:
    built.append(paper_tables.uncertainty_table(assessed, runs.dataset, strata))
  return methods, built, every


def estimate_methods(runs: finished_runs.FinishedRuns) -> list[paper_tables.Method]:
  """Returns every method's measures on the test split, the most accurate first."""
  return _estimate(runs, _score_methods(runs))


def _score_methods(runs):
  return {
    method: [
      results.score(test, validation, runs.temperature_of.get(method))
      for test, validation in zip(
        runs.of_split(method, "test"), runs.of_split(method, "validation")
      )
    ]
    for method in runs.predictions
  }


def _estimate(runs, scores):
  methods = [
    paper_tables.Method(
      method, runs.of_split(method, "test")[0][0].input, estimates.estimate(scores[method])
    )
    for method in scores
  ]
  return sorted(methods, key=lambda m: -m.estimate.mean.accuracy[scores_lib.RAW])


def _assess(runs, methods):
  """Uncertainty of single models and of ensembles, for methods that kept validation stacks."""
  assessed = []
  for method in methods:
    validation, test = runs.of_split(method, "validation"), runs.of_split(method, "test")
    if not all(validation):
      continue
    single = [_assess_one(*pair) for pair in zip(validation, test)]
    assessed.append((method, 1, single))
    if len(test) > 1:
      known, asked = (
        calibration.ensemble(list(itertools.chain(*seeds))) for seeds in (validation, test)
      )
      assessed.append((method, len(test), [_assess_one(known, asked)]))
  return assessed


def _assess_one(validation, test):
  learned = calibration.calibrate(validation)
  return (
    calibration.assess(learned, test),
    calibration.assess_with_more_patients(learned, validation, test),
  )


def _draw(runs, methods, folder):
  best = methods[0]
  tested = {m: runs.of_split(m, "test") for m in methods}
  plots.boundary_error_histograms(
    [p for m in methods for seed in tested[m] for p in seed], folder / "boundary_errors.png"
  )
  plots.strata_ribbon(tested[best][0], folder / "strata.png")
  validation = runs.of_split(best, "validation")[0]
  probabilities, labels = predictions_lib.slices_of(tested[best][0])
  classified = {paper_results.display_name(best): (probabilities, labels)}
  if validation:
    fitted = temperature.supported_temperature(validation)
    if fitted != 1:  # else there is nothing to add
      scaled = intervals.scale(probabilities, fitted)
      classified[f"scaled by temperature {fitted:.2f}"] = scaled, labels
  plots.reliability_diagram(classified, folder / "reliability.png")
  taps: dict[int, list] = {}
  for (method, _), weights in runs.taps.items():
    if method not in paper_results.METHODS:
      continue  # other methods weigh otherwise
    taps.setdefault(len(weights) // 2, []).append(weights)
  if taps:
    stacked = {half_width: np.stack(weights) for half_width, weights in taps.items()}
    plots.toeplitz_weights(stacked, folder / "toeplitz_weights.png")
  if runs.maps:
    stack = sorted(key[2] for key in runs.maps)[0]
    shown = {}
    for (method, _, name), weights in sorted(runs.maps.items(), key=lambda item: item[0]):
      if name == stack:
        shown.setdefault(paper_results.display_name(method), weights)
    plots.attention_maps(shown, folder / "attention.png")
