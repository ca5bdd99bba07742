"""The table that a run prints: Table 1's columns and errors, one line a method."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import rich.box
import rich.console
import rich.markup
import rich.table

from rcm_jax import arrays
from rcm_jax.decoding import boundaries
from rcm_jax.evaluation import paper_results

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


def print_table(
  rows: Sequence[Mapping[str, Any]],
  title: str = "Test split",
  console: rich.console.Console | None = None,
) -> None:
  """Prints Table 1's columns, inconsistent transitions and boundary errors, means over seeds.

  Args:
    rows: as `results.summarize` returns them.
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
  for block in sorted({key[0] for key in runs}, key=paper_results.block_order):
    lines = [_printed(key[1], group) for key, group in runs.items() if key[0] == block]
    table.add_row(f"[dim]{plain(block or 'other')}[/dim]")
    for i, (_, cells) in enumerate(sorted(lines, key=lambda line: -line[0])):
      table.add_row(*map(plain, cells), end_section=i == len(lines) - 1)
  console.print(table)


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
  others += [(mean("boundary_mae_um", boundary), 2) for boundary in boundaries.BOUNDARIES]
  cells = [paper_results.display_name(method), str(len(rows))]
  cells += [_shown(100 * x, 1) for x in percents] + [_shown(*x) for x in others]
  return accuracy, cells


def _reach(row, path):
  for key in path:
    row = row[key]
  return row


def _shown(value, decimals):
  return "-" if np.isnan(value) else f"{value:.{decimals}f}"
