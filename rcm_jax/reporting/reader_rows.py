"""The readers' own agreement as rows of Tables 1 and 3: no model can be measured more finely."""

from __future__ import annotations

from collections.abc import Sequence
import dataclasses
import json
import math
import pathlib

from rcm_jax import anatomy
from rcm_jax.reporting.table_formats import Cell, Table
from tfds_rcm.errors import UserError

_SCHEMA = "tfds_rcm.agreement/1"
_UNKNOWN = (None, None, None)  # they did not label the corneum
_NAME = "readers between themselves"


@dataclasses.dataclass(frozen=True)
class Readers:
  """What `tfds_rcm.agreement` found; an interval's ends are NaN where there is none.

  Attributes:
    count: readers.
    stacks: that at least two of them labelled.
    accuracy: by strata, share of slices with one label, over all pairs, and the ends of its 95 %
      interval.
    mae_um: by boundary, mean absolute difference, likewise.
  """

  count: int
  stacks: int
  accuracy: dict[int, tuple[float, float, float]]
  mae_um: dict[str, tuple[float, float, float]]


def read(path: pathlib.Path) -> Readers:
  """Reads the agreement.json that `python -m tfds_rcm.agreement` leaves.

  Raises:
    UserError: the file is missing or something else.
  """
  try:
    values = json.loads(path.read_text(encoding="utf-8"))
    if values["schema"] != _SCHEMA:
      raise ValueError(f"schema {values['schema']}")
    return Readers(
      count=len(values["readers"]),
      stacks=int(values["stacks"]),
      accuracy={
        len(anatomy.PAPER): _estimate(values["accuracy"]),
        len(anatomy.WITH_CORNEUM): _estimate(values.get("accuracy_with_corneum") or _UNKNOWN),
      },
      mae_um={
        name: _estimate(values["boundary_mae_um"].get(name) or _UNKNOWN)
        for name in anatomy.WITH_CORNEUM.boundaries
      },
    )
  except (OSError, ValueError, KeyError, TypeError) as error:
    raise UserError(
      f"{path}: not the agreement of a study's readers ({error}); give the agreement.json that "
      "python -m tfds_rcm.agreement leaves"
    ) from error


def add(
  tables: Sequence[Table], readers: Readers, strata: anatomy.Strata = anatomy.PAPER
) -> list[Table]:
  """Tables 1 and 3 with the readers' row at their end; others as they are."""
  where = f"{readers.count} readers, {readers.stacks} stacks"
  rows = {
    "table1": ["Readers", _NAME, where, _cell(readers.accuracy[len(strata)], 100)],
    "table3": [_NAME, where, *(_cell(readers.mae_um[name]) for name in strata.boundaries)],
  }
  note = (
    "Readers between themselves: how often two of them agree, and how far apart they put a "
    "boundary; what a model can be measured by is no finer."
  )
  return [
    _with_row(table, rows[table.name], note) if table.name in rows else table for table in tables
  ]


def _with_row(table: Table, row: Sequence[str | Cell], note: str) -> Table:
  return dataclasses.replace(
    table,
    rows=[*table.rows, [*row, *[""] * (len(table.columns) - len(row))]],
    rules=[*table.rules, len(table.rows)],
    notes=[*table.notes, note],
  )


def _estimate(values: Sequence[float | None]) -> tuple[float, float, float]:
  value, low, high = (math.nan if x is None else float(x) for x in values)
  return value, low, high


def _cell(estimate: tuple[float, float, float], scale: int = 1) -> Cell:
  return Cell(*(scale * x for x in estimate))
