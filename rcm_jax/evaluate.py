"""From predictions to results.json, and from any number of runs to the paper's tables.

    python -m rcm_jax.evaluate --runs=DIR --out=DIR

Reads every finished run below `--runs`, at any time, and writes tables.md, each table as CSV and
LaTeX, and the figures.
"""

from __future__ import annotations

import argparse
from collections.abc import Mapping, Sequence
import itertools
import json
import os
import pathlib
import sys
from typing import Any

import numpy as np
import rich.box
import rich.console
import rich.markup
import rich.table

from rcm_jax import arrays
from rcm_jax.evaluation import bootstrap, metrics, paper_results
from rcm_jax.evaluation import calibration as calibration_lib
from rcm_jax.evaluation import finished_runs as study_lib
from rcm_jax.evaluation import predictions as predictions_lib
from rcm_jax.evaluation import scores as scores_lib
from rcm_jax.reporting import paper_tables, plots, reader_rows, table_formats
from rcm_jax.runtime import stage_cache
from tfds_rcm import errors

_COLUMNS = (  # heading of a printed column, its width
  ("Seeds", 5),
  ("Acc.\n%", 5),
  ("Sens.\nEpid.", 5),
  ("\nDEJ", 5),
  ("\nDerm.", 5),
  ("Spec.\nEpid.", 5),
  ("\nDEJ", 5),
  ("\nDerm.", 5),
  ("Incon-\nsistent", 7),
  ("MAE µm\nE-DEJ", 6),
  ("\nDEJ-D", 5),
)
_RAW = scores_lib.LABELLINGS.index("raw")


def summarize(
  predictions: Sequence[predictions_lib.StackPrediction],
  train_seconds: Mapping[tuple[str, int], float] | None = None,
) -> list[dict[str, Any]]:
  """Sums up the test split, one row a method and seed, in the form of results.json.

  Fractions, not percent. `inconsistent` counts the raw predictions (Table 2); boundaries are
  read after `median_then_max` (Table 3). `decoding` gives the same figures under every
  post-processing; posterior medians are computed at the temperature that suits the run's
  validation stacks. What cannot be computed (a stratum without slices) is None.

  Args:
    predictions: of any methods and seeds.
    train_seconds: (method, seed) → training time.
  """
  runs: dict[tuple[str, int], dict[str, list]] = {}
  for p in predictions:
    runs.setdefault((p.method, p.seed), {}).setdefault(p.split, []).append(p)
  seconds = train_seconds or {}
  return [
    _row(key, splits["test"], splits.get("validation", []), seconds.get(key))
    for key, splits in runs.items()
    if "test" in splits
  ]


def write_run(
  workdir: str | os.PathLike,
  dataset: Mapping[str, Any],
  predictions: Sequence[predictions_lib.StackPrediction],
  *,
  versions: Mapping[str, str],
  train_seconds: Mapping[tuple[str, int], float] | None = None,
) -> list[dict[str, Any]]:
  """Writes predictions.csv, then results.json, whose presence says that the run is complete.

  Args:
    workdir: directory of the run; made if missing.
    dataset: {"name", "stacks": {split: count}, "slices": {split: count}}.
    predictions: of all splits that should be kept.
    versions: package → version.
    train_seconds: (method, seed) → training time.

  Returns:
    The rows of results.json.

  Raises:
    UserError: a prediction is malformed or a file cannot be written.
  """
  workdir = pathlib.Path(workdir)
  rows = summarize(predictions, train_seconds)
  results = {"dataset": dict(dataset), "versions": dict(versions), "rows": rows}
  try:
    workdir.mkdir(parents=True, exist_ok=True)
    (workdir / study_lib.RESULTS).unlink(missing_ok=True)
    predictions_lib.write_csv(workdir / study_lib.PREDICTIONS, predictions)
    text = json.dumps(results, indent=2, ensure_ascii=False, allow_nan=False)
    stage_cache.write_text(workdir / study_lib.RESULTS, text + "\n")
  except OSError as error:
    raise errors.UserError(
      f"{workdir}: results cannot be written ({error.strerror}); free space there or choose"
      " another directory"
    ) from error
  return rows


def print_table(
  rows: Sequence[Mapping[str, Any]],
  title: str = "Test split",
  console: rich.console.Console | None = None,
) -> None:
  """Prints Table 1's columns, inconsistent transitions and boundary errors, means over seeds.

  Args:
    rows: as `summarize` returns them.
    title: above the table; says what the figures were measured on.
    console: where to print.
  """
  console = console or rich.console.Console()
  plain = rich.markup.escape  # names come from files, and brackets in them are no markup
  if not console.is_terminal:
    console.width = max(console.width, 104)
  table = rich.table.Table(
    title=plain(title), box=rich.box.SIMPLE_HEAD, padding=(0, 0, 0, 1), pad_edge=False
  )
  table.add_column("\nMethod")
  for name, width in _COLUMNS:
    table.add_column(name, justify="right", no_wrap=True, min_width=width)
  runs: dict[tuple[str, str], list] = {}
  for row in rows:
    runs.setdefault((row["input"], row["method"]), []).append(row)
  for block in sorted({key[0] for key in runs}, key=_block_order):
    lines = [_printed(key[1], group) for key, group in runs.items() if key[0] == block]
    table.add_row(f"[dim]{plain(block or 'other')}[/dim]")
    for i, (_, cells) in enumerate(sorted(lines, key=lambda line: -line[0])):
      table.add_row(*map(plain, cells), end_section=i == len(lines) - 1)
  console.print(table)


def write_study(
  study: study_lib.Study, out: str | os.PathLike, readers: reader_rows.Readers | None = None
) -> list[dict[str, Any]]:
  """Writes one dataset's tables and figures.

  Args:
    study: runs on the dataset.
    out: directory for tables.md, table*.csv, table*.tex and figures/; made if missing.
    readers: how far the readers of the labels agree, for a row of Tables 1 and 3.

  Returns:
    Rows of all runs, in the form of results.json.
  """
  out = pathlib.Path(out)
  out.mkdir(parents=True, exist_ok=True)
  scores = _score_methods(study)
  methods = _estimate(study, scores)
  comparisons = bootstrap.compare({m.name: scores[m.name] for m in methods})
  builders = (paper_tables.table1, paper_tables.table2, paper_tables.table3)
  built = [build(methods, study.dataset) for build in (*builders, paper_tables.decoding_table)]
  built = reader_rows.add(built, readers) if readers else built
  best = [c for c in comparisons if c.first == methods[0].name]
  if best:
    built.append(paper_tables.comparison_table(best, study.dataset))
    every = paper_tables.comparison_table(comparisons, study.dataset)
    stage_cache.write_text(out / "paired_tests.csv", table_formats.to_csv(every))
  assessed = _assess(study, [m.name for m in methods])
  if assessed:
    built.append(paper_tables.uncertainty_table(assessed, study.dataset))
  text = "\n".join(table_formats.to_markdown(table) for table in built)
  stage_cache.write_text(out / "tables.md", f"# Measured on {study.dataset}\n\n{text}")
  for table in built:
    stage_cache.write_text(out / f"{table.name}.csv", table_formats.to_csv(table))
    stage_cache.write_text(out / f"{table.name}.tex", table_formats.to_latex(table))
  _draw(study, [m.name for m in methods], out / "figures")
  runs = (p for seeds in study.predictions.values() for run in seeds.values() for p in run)
  return summarize(list(runs))


def estimate_methods(study: study_lib.Study) -> list[paper_tables.Method]:
  """Returns every method's measures on the test split, the most accurate first."""
  return _estimate(study, _score_methods(study))


def main(argv: Sequence[str] | None = None) -> int:
  """Runs the command; returns its exit code."""
  parser = argparse.ArgumentParser(prog="python -m rcm_jax.evaluate", description=__doc__)
  parser.formatter_class = argparse.RawDescriptionHelpFormatter
  parser.add_argument("--runs", required=True, help="directory that runs' workdirs lie in")
  parser.add_argument("--out", required=True, help="directory for tables and figures")
  parser.add_argument(
    "--readers",
    type=pathlib.Path,
    help="agreement.json of tfds_rcm.agreement: the readers' own agreement as a row",
  )
  args = parser.parse_args(argv)
  console = rich.console.Console()
  try:
    readers = reader_rows.read(args.readers) if args.readers else None
    studies, notes = study_lib.gather(args.runs)
    for note in notes:
      console.print(f"note: {note}", style="yellow", markup=False, highlight=False)
    for study in studies:
      folder = pathlib.Path(args.out)
      if len(studies) > 1:
        folder /= "".join(c if c.isalnum() or c in "-+." else "_" for c in study.dataset)
      print_table(write_study(study, folder, readers), title=study.dataset, console=console)
      console.print(f"tables.md, table*.csv, table*.tex and figures are in {folder}", markup=False)
  except errors.UserError as error:
    print(error, file=sys.stderr)
    return 1
  except OSError as error:
    print(
      f"{error.filename or args.out}: {error.strerror}; free space there or choose another --out",
      file=sys.stderr,
    )
    return 1
  return 0


def _score_methods(study):
  return {
    method: [
      _score(test, validation)
      for test, validation in zip(
        study.of_split(method, "test"), study.of_split(method, "validation")
      )
    ]
    for method in study.predictions
  }


def _estimate(study, scores):
  methods = [
    paper_tables.Method(
      method, study.of_split(method, "test")[0][0].input, bootstrap.estimate(runs)
    )
    for method, runs in scores.items()
  ]
  return sorted(methods, key=lambda m: -m.estimate.mean.accuracy[_RAW])


def _assess(study, methods):
  """Uncertainty of single models and of ensembles, for methods that kept validation stacks."""
  assessed = []
  for method in methods:
    validation, test = study.of_split(method, "validation"), study.of_split(method, "test")
    if not all(validation):
      continue
    single = [_assess_one(*pair) for pair in zip(validation, test)]
    assessed.append((method, 1, single))
    if len(test) > 1:
      known, asked = (
        calibration_lib.ensemble(list(itertools.chain(*runs))) for runs in (validation, test)
      )
      assessed.append((method, len(test), [_assess_one(known, asked)]))
  return assessed


def _assess_one(validation, test):
  calibration = calibration_lib.calibrate(validation)
  return (
    calibration_lib.assess(calibration, test),
    calibration_lib.rehearse(calibration, validation, test),
  )


def _draw(study, methods, folder):
  best = methods[0]
  runs = {m: study.of_split(m, "test") for m in methods}
  plots.boundary_error_histograms(
    [p for m in methods for run in runs[m] for p in run], folder / "boundary_errors.png"
  )
  plots.strata_ribbon(runs[best][0], folder / "strata.png")
  validation = study.of_split(best, "validation")[0]
  probabilities, labels = calibration_lib.slices_of(runs[best][0])
  classified = {paper_results.display_name(best): (probabilities, labels)}
  if validation:
    temperature = calibration_lib.fit_temperature(*calibration_lib.slices_of(validation))
    scaled = calibration_lib.scale(probabilities, temperature)
    classified[f"scaled by temperature {temperature:.2f}"] = scaled, labels
  plots.reliability_diagram(classified, folder / "reliability.png")
  taps: dict[int, list] = {}
  for (method, _), weights in study.taps.items():
    if method not in paper_results.METHODS:
      continue  # other methods weigh otherwise
    taps.setdefault(len(weights) // 2, []).append(weights)
  if taps:
    stacked = {half_width: np.stack(weights) for half_width, weights in taps.items()}
    plots.toeplitz_weights(stacked, folder / "toeplitz_weights.png")
  if study.maps:
    stack = sorted(key[2] for key in study.maps)[0]
    shown = {}
    for (method, _, name), weights in sorted(study.maps.items(), key=lambda item: item[0]):
      if name == stack:
        shown.setdefault(paper_results.display_name(method), weights)
    plots.attention_maps(shown, folder / "attention.png")


def _score(test, validation):
  temperature = calibration_lib.fit_boundary_temperature(validation) if validation else 1.0
  return scores_lib.score(test, temperature)


def _row(key, predictions, validation, train_seconds):
  method, seed = key
  by_patient = bootstrap.totals_by_patient(_score(predictions, validation))
  totals = bootstrap.Totals(*(x.sum(0) for x in by_patient))
  measures = bootstrap.measure(totals)
  decoding = {}
  for rule, mae in zip(scores_lib.BOUNDARY_RULES, measures.mae_um):
    decoding[rule] = {"boundary_mae_um": _named(metrics.BOUNDARIES, mae)}
    if rule in scores_lib.LABELLINGS:
      labelling = scores_lib.LABELLINGS.index(rule)
      decoding[rule]["accuracy"] = _number(measures.accuracy[labelling])
      decoding[rule]["inconsistent"] = int(totals.inconsistent[labelling].sum())
  return {
    "method": method,
    "input": predictions[0].input,
    "ordered": predictions[0].ordered,
    "seed": seed,
    "accuracy": _number(measures.accuracy[_RAW]),
    "sensitivity": _named(arrays.STRATA, measures.sensitivity),
    "specificity": _named(arrays.STRATA, measures.specificity),
    "inconsistent": {
      **dict(zip(metrics.INCONSISTENT_TRANSITIONS, totals.inconsistent[_RAW].tolist())),
      "total": int(totals.inconsistent[_RAW].sum()),
    },
    "boundary_mae_um": decoding["median_then_max"]["boundary_mae_um"],
    "boundary_n": dict(zip(metrics.BOUNDARIES, totals.boundary_n.tolist())),
    "train_seconds": train_seconds,
    "decoding": decoding,
  }


def _number(value):
  return None if np.isnan(value) else float(value)


def _named(names, values):
  return {name: _number(value) for name, value in zip(names, values)}


def _block_order(block):
  blocks = paper_results.INPUTS
  return blocks.index(block) if block in blocks else len(blocks)


def _printed(method, rows):
  """Accuracy to sort by, and the cells of one method."""

  def mean(*path):
    values = [_reach(row, path) for row in rows]
    return np.nan if None in values else float(np.mean(values))

  accuracy = mean("accuracy")
  percents = [accuracy]
  for measure in ("sensitivity", "specificity"):
    percents += [mean(measure, stratum) for stratum in arrays.STRATA]
  others = [(mean("inconsistent", "total"), 1)]
  others += [(mean("boundary_mae_um", boundary), 2) for boundary in metrics.BOUNDARIES]
  cells = [paper_results.display_name(method), str(len(rows))]
  cells += [_shown(100 * x, 1) for x in percents] + [_shown(*x) for x in others]
  return accuracy, cells


def _reach(row, path):
  for key in path:
    row = row[key]
  return row


def _shown(value, decimals):
  return "-" if np.isnan(value) else f"{value:.{decimals}f}"


if __name__ == "__main__":
  sys.exit(main())
