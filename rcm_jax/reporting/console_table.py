"""The table that a run prints: Table 1's columns and errors, one line a method."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
import itertools
from typing import Any

import numpy as np
import rich.box
import rich.console
import rich.markup
import rich.table

from rcm_jax import anatomy
from rcm_jax.evaluation import paper_results

_METHOD_WIDTH = 35  # of a printed line, for the method's name


def _columns(strata: anatomy.Strata) -> list[tuple[str, int]]:
  """Heading of each printed column, and its width."""
  shorts = list(strata.shorts.values())
  initials = [short if short == "DEJ" else short[0] for short in shorts]
  pairs = [f"{above}-{below}" for above, below in itertools.pairwise(initials)]
  first = lambda title, names: [f"{title}\n{names[0]}", *(f"\n{name}" for name in names[1:])]
  columns = [("Seeds", 5), ("Acc.\n%", 5)]
  columns += [(name, 5) for title in ("Sens.", "Spec.") for name in first(title, shorts)]
  errors = first("MAE µm", pairs)
  return [*columns, ("Incon-\nsistent", 7), (errors[0], 6), *((name, 5) for name in errors[1:])]


def print_table(
  rows: Sequence[Mapping[str, Any]],
  title: str = "Test split",
  console: rich.console.Console | None = None,
) -> None:
  """Prints Table 1's columns, inconsistent transitions and boundary errors, means over seeds.

  Args:
    rows: as `results.summarize` returns them, all of the same strata.
    title: above the table; says what the figures were measured on.
    console: where to print.
  """
  console = console or rich.console.Console()
  plain = rich.markup.escape  # names come from files, and brackets in them are no markup
  strata = anatomy.of_names(tuple(rows[0]["sensitivity"])) if rows else anatomy.PAPER
  columns = _columns(strata)
  if not console.is_terminal:
    console.width = max(console.width, _METHOD_WIDTH + sum(width + 1 for _, width in columns))
  table = rich.table.Table(
    title=plain(title), box=rich.box.SIMPLE_HEAD, padding=(0, 0, 0, 1), pad_edge=False
  )
  table.add_column("\nMethod")
  for name, width in columns:
    table.add_column(name, justify="right", no_wrap=True, min_width=width)
  runs: dict[tuple[str, str], list] = {}
  for row in rows:
    runs.setdefault((row["input"], row["method"]), []).append(row)
  for block in sorted({key[0] for key in runs}, key=paper_results.block_order):
    lines = [_printed(key[1], group, strata) for key, group in runs.items() if key[0] == block]
    table.add_row(f"[dim]{plain(block or 'other')}[/dim]")
    for i, (_, cells) in enumerate(sorted(lines, key=lambda line: -line[0])):
      table.add_row(*map(plain, cells), end_section=i == len(lines) - 1)
  console.print(table)


def _printed(method, rows, strata):
  """Accuracy to sort by, and the cells of one method."""

  def mean(*path):
    values = [_reach(row, path) for row in rows]
    return np.nan if None in values else float(np.mean(values))

  accuracy = mean("accuracy")
  percents = [accuracy]
  for measure in ("sensitivity", "specificity"):
    percents += [mean(measure, stratum) for stratum in strata.names]
  others = [(mean("inconsistent", "total"), 1)]
  others += [(mean("boundary_mae_um", boundary), 2) for boundary in strata.boundaries]
  cells = [paper_results.display_name(method), str(len(rows))]
  cells += [_shown(100 * x, 1) for x in percents] + [_shown(*x) for x in others]
  return accuracy, cells


def _reach(row, path):
  for key in path:
    row = row[key]
  return row


def _shown(value, decimals):
  return "-" if np.isnan(value) else f"{value:.{decimals}f}"
