"""The readers' agreement as tables (Markdown, CSV), one HTML page, and JSON for other programs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
import csv
import dataclasses
import html
import io
import json
import math
import pathlib
from typing import Any

from tfds_rcm.labelling import files, journal, kappa, page, plots
from tfds_rcm.labelling.comparison import Agreement, Comparison
from tfds_rcm.labelling.kappa import Estimate
from tfds_rcm.study.annotations import STRATA

BOUNDARY_NAMES = {
  "stratum_corneum_epidermis": "corneum–epidermis",
  "epidermis_dej": "epidermis–DEJ",
  "dej_dermis": "DEJ–dermis",
}
_CLASS_NAMES = ("epidermis", "DEJ", "dermis")
SCHEMA = "tfds_rcm.agreement/1"
_WORST = 20


@dataclasses.dataclass(frozen=True)
class Percent:
  """A share that is shown in percent."""

  share: Estimate | float


Cell = str | int | float | Estimate | Percent


@dataclasses.dataclass(frozen=True)
class Table:
  """A titled table; `name` is the stem of its file."""

  name: str
  title: str
  columns: Sequence[str]
  rows: Sequence[Sequence[Cell]]
  note: str = ""


def tables(agreement: Agreement) -> list[Table]:
  """Every table of the report; some may have no rows."""
  a = agreement
  return [
    Table(
      "pairs",
      "Pairs of readers",
      ("readers", *_COMPARED),
      [(f"{c.first} – {c.second}", *_compared(c)) for c in a.pairs],
      "κ is Cohen's: of classes as they are, and weighted by their distance (linear, quadratic).",
    ),
    Table(
      "all_readers",
      "All readers together",
      ("readers", "patients", "stacks", "slices", "unanimous, %", *_KAPPAS),
      [_common(a)] if a.common and len(a.readers) > 2 else [],
      "κ is Fleiss', over the stacks that all of them labelled.",
    ),
    Table(
      "boundaries",
      "Boundaries, µm",
      ("readers", *_DIFFERENCES),
      [(f"{c.first} – {c.second}", *row) for c in a.pairs for row in _boundaries(c)],
      "Second reader less first. Limits of agreement: bias ± 1.96 standard deviations between "
      "stacks. Counted where both saw the boundary.",
    ),
    Table(
      "repeatability",
      "Each reader with themself",
      ("reader", *_COMPARED),
      [(c.first, *_compared(c)) for c in a.own],
      "Stacks that the label page showed a second time, without a word.",
    ),
    Table(
      "repeatability_boundaries",
      "Each reader with themself: boundaries, µm",
      ("reader", *_DIFFERENCES),
      [(c.first, *row) for c in a.own for row in _boundaries(c)],
      "Second reading less first.",
    ),
    Table(
      "sites",
      "By site",
      ("site", "readers", *_COMPARED),
      [(site or "(unknown)", f"{c.first} – {c.second}", *_compared(c)) for site, c in a.by_site],
    ),
    Table(
      "confusion",
      "What one reader calls what the other calls otherwise, slices",
      ("readers", "first says", *_CLASS_NAMES),
      [
        (f"{c.first} – {c.second}", name, *map(int, row))
        for c in a.pairs
        for name, row in zip(_CLASS_NAMES, c.confusion)
      ],
    ),
    Table("seen", "What readers had seen of a model", _SEEN, _seen(a)),
  ]


_KAPPAS = ("κ", "κ linear", "κ quadratic")
_COMPARED = ("patients", "stacks", "slices", "same label, %", *_KAPPAS)
_DIFFERENCES = (
  "boundary",
  "stacks",
  "only one saw it",
  "bias",
  "lower limit",
  "upper limit",
  "MAE",
)
_SEEN = ("reader", "finished", "not seen", "after the answer", "before it", "revised", "unreadable",
         "begun")  # fmt: skip


def _compared(c: Comparison) -> tuple[Cell, ...]:
  return (c.patients, c.stacks, c.slices, Percent(c.accuracy), *(c.kappa[w] for w in kappa.WEIGHTS))


def _common(a: Agreement) -> tuple[Cell, ...]:
  c = a.common
  of_kappa = (c.kappa[w] for w in kappa.WEIGHTS)
  return (
    ", ".join(c.readers), c.patients, c.stacks, c.slices, Percent(c.unanimous), *of_kappa
  )  # fmt: skip


def _boundaries(c: Comparison) -> list[tuple[Cell, ...]]:
  rows = []
  for name, d in c.boundaries.items():
    rows.append(
      (BOUNDARY_NAMES[name], len(d.stack_id), d.one_only, d.bias, *d.limits, d.mae)
    )  # fmt: skip
  return rows


def _seen(a: Agreement) -> list[tuple[Cell, ...]]:
  rows = []
  for reader, seen in sorted(a.journals.predictions.items()):
    kinds = [seen.get(k, 0) for k in (journal.NO, journal.AFTER, journal.BEFORE, journal.REVISED)]
    unreadable, begun = len(a.journals.unreadable[reader]), a.journals.open[reader]
    rows.append((reader, sum(kinds), *kinds, unreadable, begun))
  return rows


def to_markdown(table: Table) -> str:
  """GitHub-flavored Markdown; intervals follow in parentheses."""
  numeric = [all(not isinstance(row[i], str) for row in table.rows) for i in _columns(table)]
  lines = [f"## {table.title}", "", "| " + " | ".join(table.columns) + " |"]
  lines.append("|" + "|".join("---:" if right else "---" for right in numeric) + "|")
  for row in table.rows:
    lines.append("| " + " | ".join(shown(cell).replace("|", "\\|") for cell in row) + " |")
  return "\n".join([*lines, *(["", table.note] if table.note else [])]) + "\n"


def to_csv(table: Table) -> str:
  """For programs: full precision, ends of intervals in columns of their own, shares not percent."""
  text = io.StringIO()
  writer = csv.writer(text, lineterminator="\n")
  estimated = [
    any(isinstance(_plain(row[i]), Estimate) for row in table.rows) for i in _columns(table)
  ]
  names = [name.replace(", %", "") for name in table.columns]
  writer.writerow(
    part
    for name, both in zip(names, estimated)
    for part in ((name, f"{name} low", f"{name} high") if both else (name,))
  )
  for row in table.rows:
    out: list[Any] = []
    for cell, both in zip(map(_plain, row), estimated):
      out += list(cell) if isinstance(cell, Estimate) else [cell, *([""] * 2 if both else [])]
    writer.writerow("" if isinstance(x, float) and math.isnan(x) else x for x in out)
  return text.getvalue()


def to_html(table: Table) -> str:
  """A section with the table, every text escaped."""
  head = "".join(f'<th scope="col">{html.escape(name)}</th>' for name in table.columns)
  lines = []
  for row in table.rows:
    cells = (
      f"<td{'' if isinstance(cell, str) else ' class=number'}>{html.escape(shown(cell))}</td>"
      for cell in row
    )
    lines.append(f"<tr>{''.join(cells)}</tr>")
  note = f"<p class=dim>{html.escape(table.note)}</p>" if table.note else ""
  return (
    f"<section class=card><h2>{html.escape(table.title)}</h2><div class=wide><table><thead><tr>{head}"
    f"</tr></thead><tbody>{''.join(lines)}</tbody></table></div>{note}</section>"
  )


def shown(cell: Cell) -> str:
  """A cell for people: two or three digits, intervals in parentheses."""
  decimals, scale = 2, 1
  if isinstance(cell, Percent):
    cell, decimals, scale = cell.share, 1, 100
  if isinstance(cell, str | int):
    return str(cell)
  value, *ends = cell if isinstance(cell, Estimate) else (cell,)
  if math.isnan(value):
    return "–"
  text = f"{scale * value:.{decimals}f}".replace("-", "−")
  if ends and not math.isnan(ends[0]):
    low, high = (f"{scale * end:.{decimals}f}".replace("-", "−") for end in ends)
    text += f" ({low} to {high})"
  return text


def _plain(cell: Cell) -> str | int | float | Estimate:
  return cell.share if isinstance(cell, Percent) else cell


def _columns(table: Table) -> range:
  return range(len(table.columns))


def consensus_csv(agreement: Agreement) -> str:
  """One label a slice of every stack that was read twice, and who decided it."""
  text = io.StringIO()
  writer = csv.writer(text, lineterminator="\n")
  writer.writerow(("stack_id", "slice", "label", "decided_by", "readers_differ"))
  for stack in agreement.stacks:
    by = "majority" if stack.adjudicated is None else "adjudicated"
    votes = list(stack.by_reader.values())
    for t, label in enumerate(stack.consensus):
      differ = len({int(labels[t]) for labels in votes}) > 1
      writer.writerow((stack.stack_id, t, STRATA[label], by, int(differ)))
  return text.getvalue()


def to_json(agreement: Agreement) -> dict[str, Any]:
  """What a model's tables need to show its readers' own agreement: the ceiling."""

  def told(estimate: Estimate):
    return [None if math.isnan(x) else x for x in map(float, estimate)]

  a = agreement
  return {
    "schema": SCHEMA,
    "readers": list(a.readers),
    "stacks": len(a.stacks),
    "patients": len({stack.patient_id for stack in a.stacks}),
    "accuracy": told(a.accuracy),
    "accuracy_with_corneum": a.accuracy_with_corneum and told(a.accuracy_with_corneum),
    "boundary_mae_um": {name: told(mae) for name, mae in a.boundary_pairs.items()},
    "kappa": {w: told(a.common.kappa[w]) for w in kappa.WEIGHTS} if a.common else None,
  }


def write(
  agreement: Agreement, out: pathlib.Path, *, source: str, address: str = "", notes: Sequence[str]
) -> pathlib.Path:
  """Writes agreement.html, agreement.md, agreement.json, consensus.csv and a CSV a table.

  Args:
    agreement: of `comparison.compare`.
    out: the folder.
    source: the study, for the title and the commands.
    address: of a label page that is open, for the links; empty to ask the page's reader.
    notes: what was left out.

  Returns:
    The page.
  """
  made = [table for table in tables(agreement) if table.rows]
  for table in tables(agreement):  # what an earlier report had and this one has not
    (out / f"{table.name}.csv").unlink(missing_ok=True)
  markdown = "\n".join([f"# Agreement of readers: {source}\n", *map(to_markdown, made), *notes])
  for table in made:
    files.write_whole(out / f"{table.name}.csv", to_csv(table))
  files.write_whole(out / "agreement.md", markdown + "\n")
  files.write_whole(out / "agreement.json", json.dumps(to_json(agreement), indent=1) + "\n")
  files.write_whole(out / "consensus.csv", consensus_csv(agreement))
  parts = {
    "title": html.escape(source),
    "summary": html.escape(summary(agreement)),
    "notes": "".join(f"<li>{html.escape(note)}</li>" for note in notes),
    "tables": "".join(map(to_html, made)),
    "plots": "".join(_plots(agreement)),
    "worst": _worst(agreement),
    "address": html.escape(address, quote=True),
  }
  files.write_whole(out / "agreement.html", page.fill("agreement", parts))
  return out / "agreement.html"


def summary(agreement: Agreement) -> str:
  """The few figures that people ask for first."""
  a = agreement
  if not a.stacks:
    return "one reader alone: repeatability only"
  parts = [
    f"{len(a.readers)} readers, {len(a.stacks)} stacks, same label on {shown(Percent(a.accuracy))} % of slices"
  ]
  if a.common:
    parts.append(f"κ {shown(a.common.kappa['none'])}")
  for name, mae in a.boundary_pairs.items():
    parts.append(f"{BOUNDARY_NAMES[name]} {shown(mae)} µm apart")
  return "; ".join(parts)


def _plots(agreement: Agreement) -> list[str]:
  out = []
  for c in (*agreement.pairs, *agreement.own):
    for name, d in c.boundaries.items():
      if len(d.stack_id) > 1:
        who = f"{c.first} – {c.second}" if c.first != c.second else f"{c.first} twice"
        out.append(plots.bland_altman(d, f"{who}: {BOUNDARY_NAMES[name]}"))
  return out


def _worst(agreement: Agreement) -> str:
  rows = []
  for stack in agreement.worst[:_WORST]:
    strips: Mapping[str, Any] = dict(sorted(stack.by_reader.items()))
    bars = "".join(plots.strip(reader, labels) for reader, labels in strips.items())
    decided = "" if stack.adjudicated is None else "decided"
    name = html.escape(stack.stack_id)
    rows.append(
      f'<tr><td><a class=stack data-stack="{html.escape(stack.stack_id, quote=True)}">{name}</a></td>'
      f"<td>{html.escape(stack.patient_id)}</td><td>{html.escape(stack.site)}</td>"
      f"<td class=number>{100 * stack.differing:.0f}</td><td class=bars>{bars}</td>"
      f"<td>{decided}</td></tr>"
    )
  return "".join(rows)
