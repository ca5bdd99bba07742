"""What a validation leaves: validation.md and validation.json, a line a stack, and pictures."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
import csv
import dataclasses
import io
import json
import pathlib
from typing import Any
from urllib.parse import quote

import numpy as np

from rcm_jax.inference.description import RESEARCH_USE, Description
from rcm_jax.inference.stack_warnings import falls_short
from rcm_jax.reporting import plots, table_formats
from rcm_jax.reporting.table_formats import Cell, Table
from rcm_jax.runtime import files
from rcm_jax.validation.figures import Estimate, Figures, Measured
from rcm_jax.validation.groups import READER, Division, Warned, value_of
from rcm_jax.validation.reading import ReadStack

JSON = "validation.json"
MARKDOWN = "validation.md"
STACKS = "stacks.csv"


@dataclasses.dataclass(frozen=True)
class Validation:
  """What was found.

  Attributes:
    name: of the model, as the tables call it.
    model: what it is.
    dataset: that it was tried on.
    stacks: that were read.
    measured: the same.
    left_out: a line for each stack that the model cannot read.
    whole: figures of all stacks.
    unseen: those of patients that the model has not learned from; None where there are none, or
      where all are.
    divisions: by column and by reader.
    warned: by warning.
    worst: places of the worst stacks.
    reports: of these, relative to the report.
  """

  name: str
  model: Description
  dataset: str
  stacks: Sequence[ReadStack]
  measured: Measured
  left_out: Sequence[str]
  whole: Figures
  unseen: Figures | None
  divisions: Sequence[Division]
  warned: Sequence[Warned]
  worst: Sequence[int]
  reports: Sequence[str]

  @property
  def seen_patients(self) -> list[str]:
    """Patients that the model has learned from."""
    return sorted({s.known.patient_id for s in self.stacks if s.seen})


def notes(found: Validation) -> list[str]:
  """What a reader must know before the figures, a sentence each."""
  lines = []
  if seen := found.seen_patients:
    shown = ", ".join(seen[:10]) + (f" and {len(seen) - 10} more" if len(seen) > 10 else "")
    left = "none is left" if found.unseen is None else "the figures without them stand beside"
    lines.append(
      f"{len(seen)} of {found.whole.patients} patients have ids of patients that the model has learned "
      f"from ({shown}): unless these are other people, figures on them are too good; {left}."
    )
  elif not found.model.patients:
    lines.append(
      "The model does not tell which patients it has learned from (it was kept by an older version): "
      "whether it has seen these cannot be checked."
    )
  for line in found.left_out:
    lines.append(f"Left out, since the model cannot read it: {line}.")
  promised = found.model.calibration.coverage
  for name, covered, n in zip(
    _titles(found), found.whole.covered, found.whole.boundary_n, strict=True
  ):
    if np.isfinite(covered.value) and falls_short(covered.value, promised, found.whole.patients):
      lines.append(
        f"The intervals of {name} are too narrow here: {covered.value:.0%} instead of {promised:.0%} "
        f"({n} stacks). `python -m rcm_jax.recalibrate` fits them to a site's stacks."
      )
  if np.isnan(found.whole.accuracy.low):
    lines.append("Fewer than five patients: no interval says how figures vary between patients.")
  return lines


def write(out: pathlib.Path, found: Validation) -> None:
  """Writes the report and what it shows, but for the tables of `study_report`; all in `out`."""
  built = tables(found)
  _draw(out / "figures", found)
  files.write_text(out / STACKS, _stacks_csv(found))
  for table in built:
    files.write_text(out / f"{table.name}.csv", table_formats.to_csv(table))
  files.write_text(out / MARKDOWN, _markdown(found, built))
  files.write_text(out / JSON, json.dumps(to_json(found), indent=1, allow_nan=False) + "\n")


def to_json(found: Validation) -> dict[str, Any]:
  """Returns all figures as plain values."""
  of = lambda figures: None if figures is None else figures.to_json()
  return {
    "schema": "rcm_jax.validation/1",
    "model": model_fields(found.name, found.model),
    "dataset": found.dataset,
    "all": of(found.whole),
    "seen_patients": found.seen_patients if found.model.patients else None,
    "unseen": of(found.unseen),
    "by": {
      division.column: {group.name: of(group.figures) for group in division.groups}
      for division in found.divisions
    },
    "warnings": [
      {"code": w.code or None, "stacks": w.stacks, "with": of(w.having), "without": of(w.lacking)}
      for w in found.warned
    ],
    "worst": [found.stacks[i].known.stack_id for i in found.worst],
    "left_out": list(found.left_out),
    "use": RESEARCH_USE,
  }


def model_fields(name: str, model: Description) -> dict[str, Any]:
  """Says which model it was."""
  return {
    "name": name,
    "method": model.method,
    "members": len(model.seeds),
    "trained_on": model.training.dataset,
    "initial": model.initial or None,
    "recalibrated": model.recalibrated and dataclasses.asdict(model.recalibrated),
    "coverage": model.calibration.coverage if model.training.wide_um else None,
    "version": model.version,
  }


def tables(found: Validation) -> list[Table]:
  """All tables of the report."""
  rows = [["all", *_cells(found.whole)]]
  if found.unseen is not None and found.seen_patients:
    rows.append(["patients that the model has not learned from", *_cells(found.unseen)])
  built = [_table(found, "all", "As `rcm_jax.predict` shows the stacks", "group", rows)]
  for division in found.divisions:
    title, notes = f"By {division.column}", []
    if division.column == READER:
      notes = ["Measured by what each reader said, on the stacks that they labelled throughout."]
    rows = [[group.name, *_cells(group.figures)] for group in division.groups]
    built.append(_table(found, f"by_{_slug(division.column)}", title, division.column, rows, notes))
  built.append(_warnings_table(found))
  if found.worst:
    built.append(_worst_table(found))
  return built


def _slug(text: str) -> str:
  return "".join(c if c.isalnum() else "_" for c in text)


def _titles(found: Validation) -> tuple[str, ...]:
  """Of the model's boundaries."""
  return tuple(found.model.strata.boundary_titles.values())


def _table(found, name, title, first, rows, notes=()):
  columns = [("", first), ("", "stacks"), ("", "patients"), ("", "slices right, %")]
  for what in ("mean error, µm", "in interval, %", "width, µm"):
    columns += [(what, b) for b in _titles(found)]
  columns.append(("", "calibration error, %"))
  return Table(name, title, columns, rows, (), notes)


def _cells(f: Figures) -> list[Cell]:
  return [
    Cell(f.stacks, decimals=0),
    Cell(f.patients, decimals=0),
    _cell(f.accuracy, 100, 1),
    *(_cell(e, 1, 1) for e in f.mae_um),
    *(_cell(e, 100, 0) for e in f.covered),
    *(Cell(w, decimals=0) for w in f.width_um),
    Cell(100 * f.calibration_error[0], decimals=1),
  ]


def _cell(e: Estimate, scale: int, decimals: int) -> Cell:
  return Cell(scale * e.value, scale * e.low, scale * e.high, decimals)


def _warnings_table(found: Validation) -> Table:
  columns = [("", "warning"), ("", "stacks"), ("", "share, %")]
  columns += [("slices right, %", x) for x in ("with", "without")]
  columns += [(f"{b}, mean error, µm", x) for b in _titles(found) for x in ("with", "without")]
  nothing = Estimate(np.nan, np.nan, np.nan)
  rows = []
  for w in found.warned:
    pair = (w.having, w.lacking)
    cells = [_cell(f.accuracy if f else nothing, 100, 1) for f in pair]
    for b in range(len(_titles(found))):
      cells += [_cell(f.mae_um[b] if f else nothing, 1, 1) for f in pair]
    share = Cell(100 * w.stacks / len(found.stacks), decimals=0)
    rows.append([w.code or "any", Cell(w.stacks, decimals=0), share, *cells])
  return Table(
    "warnings", "Warnings, and errors with and without them", columns, rows, (),
    ["What each warning means: docs/bedside.md."],
  )  # fmt: skip


def _worst_table(found: Validation) -> Table:
  columns = [("", "stack"), ("", "patient"), ("", "slices right, %")]
  columns += [("error, µm", b) for b in _titles(found)] + [("", "warnings")]
  links = dict(zip(found.worst, found.reports, strict=True))
  rows = []
  for i in found.worst:
    line = _stack_line(found, i)
    name = f"[{_escaped(line['stack_id'])}]({quote(links[i])})"
    errors = [
      Cell(np.nan if (e := line[f"{b}_error_um"]) == "" else float(e), decimals=0)
      for b in found.model.strata.boundaries
    ]
    right = Cell(100 * float(line["accuracy"]), decimals=0)
    rows.append([name, _escaped(line["patient_id"]), right, *errors, line["warnings"]])
  note = "Shown less labelled depth; positive: too deep. Each name leads to the stack's report."
  return Table("worst", "Worst stacks", columns, rows, (), [note])


def _escaped(text: str) -> str:
  return "".join(f"\\{c}" if c in "\\`*_[]<>|" else c for c in text)


def _stack_line(found: Validation, i: int) -> dict[str, str]:
  """What stacks.csv says of a stack."""
  s = found.stacks[i]
  said = s.said.interpretation
  line = {
    "stack_id": s.known.stack_id,
    "patient_id": s.known.patient_id,
    "split": s.known.split,
    "seen": {None: "", True: "yes", False: "no"}[s.seen],
    "slices": str(len(s.known.labels)),
    "accuracy": f"{np.mean(s.known.labels == said.strata):.6g}",
  }
  m = found.measured
  for b, name in enumerate(found.model.strata.boundaries):
    ends = np.asarray(said.boundary_um[b], np.float64)[[0, 2]]
    low, high = (f"{x:.6g}" if np.isfinite(x) else "" for x in ends)
    error = f"{m.error_um[i, b]:.6g}" if m.counted[i, b] else ""
    inside = ("yes" if m.inside[i, b] else "no") if m.bounded[i, b] else ""
    line |= {
      f"{name}_error_um": error,
      f"{name}_low_um": low,
      f"{name}_high_um": high,
      f"{name}_inside": inside,
    }
  codes = dict.fromkeys(w.code for w in s.said.warnings)
  return line | {"warnings": " ".join(codes)}


def _stacks_csv(found: Validation) -> str:
  columns = sorted({c for s in found.stacks for c in s.known.columns})
  text = io.StringIO()
  writer = csv.writer(text, lineterminator="\n")
  for i, s in enumerate(found.stacks):
    line = _stack_line(found, i)
    if not i:
      writer.writerow([*line, *columns])
    writer.writerow([*line.values(), *(value_of(s, c) for c in columns)])
  return text.getvalue()


def _draw(folder: pathlib.Path, found: Validation) -> None:
  m = found.measured
  raw, shown, labels = (np.concatenate(x) for x in (m.raw, m.calibrated, m.labels))
  classified = {"as shown": (shown, labels)}
  if found.model.calibration.temperature != 1:
    classified["before calibration"] = raw, labels
  plots.reliability_diagram(classified, folder / "calibration.png")


def _markdown(found: Validation, built: Sequence[Table]) -> str:
  model, whole = found.model, found.whole
  history = f", started from {model.initial}" if model.initial else ""
  if model.recalibrated:
    history += f", recalibrated on {model.recalibrated.dataset}"
  lines = [
    f"# {found.name} on {found.dataset}",
    "",
    f"**{RESEARCH_USE}** {model.method}, {len(model.seeds)} members, trained on "
    f"{model.training.dataset}{history}; {whole.stacks} stacks of {whole.patients} patients, "
    f"{whole.slices} slices. 95 % intervals are over patients. Nothing was fitted to these stacks.",
    "",
  ]
  if "rcm_phantom" in found.dataset:
    lines += ["The stacks are simulated: no figure says anything about patients.", ""]
  if told := notes(found):
    lines += [*(f"- {line}" for line in told), ""]
  promise = (
    f"Intervals promise {model.calibration.coverage:.0%}."
    if model.training.wide_um
    else "The model has no intervals."
  )
  lines += [*(table_formats.to_markdown(table) for table in built)]
  lines += [
    f"{promise} Tables 1 to 3, of the model's raw probabilities as the paper measures: "
    "[tables.md](tables.md). Every stack: [stacks.csv](stacks.csv).",
    "",
    "![Reliability: accuracy against confidence](figures/calibration.png)",
    "![Errors of both boundaries](figures/boundary_errors.png)",
    "",
  ]
  return "\n".join(lines)


def written(out: pathlib.Path) -> Mapping[str, Any] | None:
  """Returns what an earlier validation left in `out`; None where there is none."""
  try:
    return json.loads((out / JSON).read_text(encoding="utf-8"))
  except (OSError, ValueError):
    return None
