"""The evaluation: every row on phantoms that no choice has seen, `spec.EVALUATION_SEEDS`.

Each phantom has patients, readers, a CNN and heads of its own. Rows come in parts, the most important
first, each on all phantoms before the next, so that whatever is finished can be compared. What is
compared with what is listed here and was so before anything was measured. `used.json` records which
seeds were spent on which rows: a row whose configuration changed is refused on seeds that have seen it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
import hashlib
import json
from pathlib import Path
import subprocess

import numpy as np

from launch import sweep, table1
from launch.replication import findings
from launch.runners import job as job_lib
from rcm_jax.evaluation import finished_runs, paper_results, results, several_datasets
from rcm_jax.reporting import plots, table_formats
from rcm_jax.reporting.table_formats import Cell
from rcm_jax.runtime import files
from tfds_rcm.errors import UserError
from tfds_rcm.rcm_phantom import spec

HEAD_SEEDS = 3
OUT = "docs/study/evaluation"
USED = "used.json"  # in it: which rows saw which phantoms
PARTS = ("whole_stacks", "ours", "regularised", "classifiers")
# What the ordered heads are regularised by, for rows of Table 1.
REGULARISED = ("toeplitz_d1", "full_sequence", "global_attention")
_REGULARISATION = ("pca_components", "input_dropout", "ema_decay", "epochs")
_NO_DIFFERENCE = ("data.", "features.memory_gb", "features.engine")  # to what a row is
_CLASSIFIERS = ("iv3_context", "hames", "kaur")

PAIRS = (
  *((own, row) for own in findings.METHODS for row in table1.METHODS),
  *((own, f"{row}_regularised") for own in findings.METHODS for row in REGULARISED),
  *((f"{row}_regularised", row) for row in REGULARISED),
  ("ordered_textures", "ordered"),
  ("iv3_context", "inception_v3"),
  ("partial_sequence", "inception_v3"),
  ("full_sequence", "partial_sequence"),
  ("toeplitz_d1", "full_sequence"),
  ("toeplitz_d1", "toeplitz_d0"),
  ("toeplitz_d1", "global_attention"),
  ("inception_v3", "depth_and_end"),
)


def points(part: str, preset: str) -> sweep.Sweep:
  """Returns one part's trainings, before they are moved to a phantom.

  Args:
    part: one of `PARTS`.
    preset: of the configurations.
  """
  many, once = range(HEAD_SEEDS), (0,)
  if part == "whole_stacks":
    heads = [name for name in table1.METHODS if name not in (*_CLASSIFIERS, "inception_v3")]
    return [*_rows(heads, preset, many), *_rows(("inception_v3", "depth_prior"), preset, once)]
  if part == "ours":
    return _rows(findings.METHODS, preset, many)
  if part == "regularised":
    ordered = sweep.load(f"configs/ordered.py:{preset}").head
    fields = {f"head.{name}": ordered[name] for name in _REGULARISATION}
    return [
      {**point, **fields, "head.half_widths": 1, "name": f"{name}_regularised"}
      for name in REGULARISED
      for point in _rows((name,), preset, many)
    ]
  return _rows(_CLASSIFIERS, preset, once)


def _rows(methods, preset, seeds):
  return [
    {"config": f"configs/{method}.py:{preset}", "seeds": seed}
    for method in methods
    for seed in seeds
  ]


def spend(out: Path, seed: int, jobs: Sequence[job_lib.Job]) -> None:
  """Records that rows are about to see a phantom.

  Args:
    out: where the record is.
    seed: of the phantom.
    jobs: of the rows.

  Raises:
    UserError: a row saw the phantom with another configuration.
  """
  path = out / USED
  used = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
  changed = dict(used)
  for job in jobs:
    row = f"{seed}/{job.fields['name']}"
    fields = {k: v for k, v in job.fields.items() if not k.startswith(_NO_DIFFERENCE)}
    digest = hashlib.sha256(json.dumps(fields, sort_keys=True).encode()).hexdigest()[:16]
    known = used.get(row, {})
    if known.get("configuration", digest) != digest:
      raise UserError(
        f"{path}: {row} saw its phantom with another configuration, at {known['revision']};"
        " a changed method needs five seeds that nobody has looked at: name them in"
        " spec.EVALUATION_SEEDS and move this file away"
      )
    if not known:
      changed[row] = {"configuration": digest, **_code()}
  if changed != used:
    out.mkdir(parents=True, exist_ok=True)
    files.write_text(path, json.dumps(changed, indent=2) + "\n")


def _code() -> dict[str, str]:
  asked = ["git", "describe", "--always", "--dirty", "--exclude=*"]
  try:
    found = subprocess.run(asked, capture_output=True, text=True, check=True)
    revision = found.stdout.strip()
  except (OSError, subprocess.CalledProcessError):
    revision = "unknown"
  return {"revision": revision, "phantom": spec.VERSION}


def write(workdir: Path, out: Path) -> None:
  """Writes tables and a figure of all phantoms that have finished runs.

  Args:
    workdir: of the evaluation, with a folder a phantom.
    out: gets evaluation.md, CSVs and evaluation.png.
  """
  found, _ = finished_runs.gather(workdir)
  scores = {runs.dataset: _scores(runs) for runs in found}
  methods = list(dict.fromkeys(name for of in scores.values() for name in of))
  means = {
    method: {
      name: several_datasets.mean(scores, method, name) for name in several_datasets.MEASURES
    }
    for method in methods
  }
  seeds = {m: max(len(of[m]) for of in scores.values() if m in of) for m in methods}
  tables = [_means(means, seeds), _differences(several_datasets.differences(means, PAIRS))]
  text = "\n".join(table_formats.to_markdown(table) for table in tables)
  heading = "# The evaluation: phantoms that no choice has seen\n\n"
  names = ", ".join(f"`{name}`" for name in scores)
  files.write_text(out / "evaluation.md", f"{heading}Measured on {names}.\n\n{text}")
  for table in tables:
    files.write_text(out / f"{table.name}.csv", table_formats.to_csv(table))
  plots.by_dataset(
    {
      paper_results.display_name(method): {
        title: list(means[method][name].by_dataset.values()) for title, name in _DRAWN.items()
      }
      for method in _in_order(means)
    },
    out / "evaluation.png",
  )


_DRAWN = {
  "Accuracy": "accuracy",
  "Epidermis-DEJ, mean absolute error, µm": "medians_epidermis_dej_um",
  "DEJ-dermis, mean absolute error, µm": "medians_dej_dermis_um",
}


def _scores(runs: finished_runs.FinishedRuns):
  return {
    method: [
      results.score(test, validation)
      for test, validation in zip(
        runs.of_split(method, "test"), runs.of_split(method, "validation")
      )
    ]
    for method in runs.predictions
  }


def _in_order(means: Mapping[str, Mapping[str, several_datasets.Mean]]) -> list[str]:
  return sorted(means, key=lambda method: -means[method]["accuracy"].value)


def _means(means, seeds) -> table_formats.Table:
  columns = [("", "Method"), ("", "Phantoms"), ("", "Seeds each")]
  columns += [("", "Accuracy, %"), ("", "Accuracy by phantom"), ("", "Impossible transitions")]
  columns += [("Median-then-max, MAE, µm", b) for b in ("epidermis-DEJ", "DEJ-dermis")]
  columns += [("Posterior medians, MAE, µm", b) for b in ("epidermis-DEJ", "DEJ-dermis")]
  rows = []
  for method in _in_order(means):
    cells = []
    for name, mean in means[method].items():
      scale, decimals = {"accuracy": (100, 1), "inconsistent": (1, 1)}.get(name, (1, 2))
      cells.append(Cell(*(scale * x for x in (mean.value, mean.low, mean.high)), decimals=decimals))
      if name == "accuracy":
        each = [100 * x for x in mean.by_dataset.values()]
        cells.append(f"{min(each):.1f} to {max(each):.1f}")
    count = len(means[method]["accuracy"].by_dataset)
    counts = [Cell(n, decimals=0) for n in (count, seeds[method])]
    rows.append([paper_results.display_name(method), *counts, *cells])
  notes = [
    "Means over phantoms of means over seeds, with 95 % intervals over patients, drawn within each"
    " phantom. Transitions are a mean a phantom's test split."
  ]
  return table_formats.Table("evaluation_means", "All rows", columns, rows, (), notes)


def _differences(found: Sequence[several_datasets.Difference]) -> table_formats.Table:
  columns = [("", "Measure"), ("", "First"), ("", "Second"), ("", "Phantoms")]
  columns += [("", "First minus second"), ("", "p"), ("", "p (Holm)")]
  names = {name: title for title, name in _DRAWN.items()}
  rows = []
  for d in found:
    scale = 100 if d.measure == "accuracy" else 1
    significant = not np.isnan(d.p_holm) and d.p_holm < 0.05
    ends = (scale * x for x in (d.value, d.low, d.high))
    title = "Accuracy, points" if d.measure == "accuracy" else names[d.measure]
    rows.append(
      [
        title,
        *(paper_results.display_name(name) for name in (d.first, d.second)),
        Cell(d.datasets, decimals=0),
        Cell(*ends, decimals=2, bold=significant),
        *(Cell(p, decimals=4) for p in (d.p_value, d.p_holm)),
      ]
    )
  notes = [
    "Paired by phantom: mean difference, 95 % interval and p by Student's t over phantoms, each for"
    " itself; Holm's correction is for all rows of one measure. Bold: the corrected p is below 0.05."
    " The pairs were listed before anything was measured. Boundaries are posterior medians in all rows."
  ]
  rules = [i for i, d in enumerate(found) if i and d.measure != found[i - 1].measure]
  return table_formats.Table("evaluation_pairs", "Planned comparisons", columns, rows, rules, notes)
