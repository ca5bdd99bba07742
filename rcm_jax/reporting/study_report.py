"""The report of finished runs on one dataset: tables.md, each table as CSV and LaTeX, figures."""

from __future__ import annotations

import itertools
import os
import pathlib
from typing import Any

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
  scores = _score_methods(runs)
  methods = _estimate(runs, scores)
  comparisons = paired_tests.compare({m.name: scores[m.name] for m in methods})
  builders = (paper_tables.table1, paper_tables.table2, paper_tables.table3)
  built = [build(methods, runs.dataset) for build in (*builders, paper_tables.decoding_table)]
  built = reader_rows.add(built, readers) if readers else built
  best = [c for c in comparisons if c.first == methods[0].name]
  if best:
    built.append(paper_tables.comparison_table(best, runs.dataset))
    every = paper_tables.comparison_table(comparisons, runs.dataset)
    files.write_text(out / "paired_tests.csv", table_formats.to_csv(every))
  assessed = _assess(runs, [m.name for m in methods])
  if assessed:
    built.append(paper_tables.uncertainty_table(assessed, runs.dataset))
  text = "\n".join(table_formats.to_markdown(table) for table in built)
  files.write_text(out / "tables.md", f"# Measured on {runs.dataset}\n\n{text}")
  for table in built:
    files.write_text(out / f"{table.name}.csv", table_formats.to_csv(table))
    files.write_text(out / f"{table.name}.tex", table_formats.to_latex(table))
  _draw(runs, [m.name for m in methods], out / "figures")
  every_run = (p for seeds in runs.predictions.values() for run in seeds.values() for p in run)
  return results.summarize(list(every_run))


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
