"""Tables of labels: one file, or a folder of one file a reader, as `tfds_rcm.label` writes them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
import dataclasses
import pathlib

from tfds_rcm.errors import UserError
from tfds_rcm.formats.csv_table import Row, Table, read_table
from tfds_rcm.study.annotations import TRANSITIONS, Reading

LABELS = "labels.csv"
LABELS_FOLDER, ADJUDICATED = "labels", "adjudicated"
UNREADABLE = "unreadable"  # in the column label, with no slice: the reader cannot read the stack
FOR_READER = "reader"
LABELS_COLUMNS = ("stack_id", "slice", "label", FOR_READER, *TRANSITIONS)
_PAGE_COLUMNS = ("note",)  # which the label page writes besides


@dataclasses.dataclass(frozen=True)
class Said:
  """What a folder of labels says, by stack_id.

  Attributes:
    readings: of readers who labelled by themselves.
    adjudicated: what a reader decided who had seen the others' labels.
    unreadable: why a reader could not read the stack, by reader.
  """

  readings: dict[str, tuple[Reading, ...]]
  adjudicated: dict[str, Reading]
  unreadable: dict[str, dict[str, str]]


def find_labels(folder: pathlib.Path) -> pathlib.Path | None:
  """The file or folder of labels beside a manifest, None if there is neither.

  Raises:
    UserError: if there are both.
  """
  file, several = folder / LABELS, folder / LABELS_FOLDER
  if not label_files(several):
    return file if file.is_file() else None
  if file.is_file():
    raise UserError(f"{file}: there is a folder {LABELS_FOLDER} beside it; choose by --labels")
  return several


def label_files(folder: pathlib.Path) -> list[pathlib.Path]:
  """The CSV files of a folder of labels, a reader each."""
  return sorted(path for path in folder.glob("*.csv") if not path.name.startswith("."))


def read_labels(table: Table) -> dict[str, tuple[Reading, ...]]:
  """What readers said, by stack_id.

  Raises:
    UserError: if the table has neither labels of slices nor transitions.
  """
  for there, absent in (("slice", "label"), ("label", "slice")):
    if there in table.columns and absent not in table.columns:
      raise UserError(f"{table.path}, row 1: a column {there} but no column {absent}; add it")
  transitions = [name for name in TRANSITIONS if name in table.columns]
  if "slice" not in table.columns and not transitions:
    raise UserError(
      f"{table.path}, row 1: expected the columns slice and label, or one of "
      f"{', '.join(TRANSITIONS)}; the columns are {', '.join(table.headers)}"
    )
  rows: dict[str, dict[str, list[Row]]] = {}
  for row in table.rows:
    rows.setdefault(row["stack_id"], {}).setdefault(row[FOR_READER], []).append(row)

  def reading(reader: str, of_reader: Sequence[Row]) -> Reading:
    of_slices = any(row["slice"] or row["label"] for row in of_reader)
    return Reading(reader, tuple(of_reader), per_slice=of_slices or not transitions)

  return {
    stack_id: tuple(reading(reader, of_reader) for reader, of_reader in readers.items())
    for stack_id, readers in rows.items()
  }


def read_folder(folder: pathlib.Path, tables: list[Table]) -> Said:
  """Reads all files of a folder of labels; adds their tables to `tables`."""
  said = Said({}, {}, {})
  for path in label_files(folder):
    for stack_id, of_stack in read_labels(_readable_rows(path, said, tables)).items():
      said.readings[stack_id] = said.readings.get(stack_id, ()) + of_stack
  for path in label_files(folder / ADJUDICATED):
    decided = Said({}, {}, {})
    for stack_id, of_stack in read_labels(_readable_rows(path, decided, tables)).items():
      if stack_id in said.adjudicated:
        place = said.adjudicated[stack_id].rows[0].place
        raise UserError(f"{of_stack[0].rows[0].place}: decided already in {place}; remove one")
      said.adjudicated[stack_id] = of_stack[0]
    for stack_id, reasons in decided.unreadable.items():
      said.readings.pop(stack_id, None)
      said.unreadable.setdefault(stack_id, {}).update(reasons)
  return said


def _readable_rows(path: pathlib.Path, said: Said, tables: list[Table]) -> Table:
  """A table without its rows about stacks that cannot be read, which are noted."""
  table = read_table(path, ("stack_id",), known=(*LABELS_COLUMNS, *_PAGE_COLUMNS))
  tables.append(table)
  bare = [row for row in table.rows if row["label"] == UNREADABLE and not row["slice"]]
  for row in bare:
    said.unreadable.setdefault(row["stack_id"], {})[row[FOR_READER] or path.stem] = row["note"]
  return dataclasses.replace(table, rows=tuple(row for row in table.rows if row not in bare))


def left_out(table: Table, said: Said) -> Iterator[str]:
  """Lines on the stacks of a manifest that nobody labelled, or that somebody could not read."""
  missing = []
  for row in table.rows:
    stack_id = row["stack_id"]
    reasons = said.unreadable.get(stack_id, {})
    told = ", ".join(f"{reader}: {reason}" for reader, reason in sorted(reasons.items()))
    if reasons and stack_id in said.readings:
      yield f"{row.place}: stack {stack_id} could not be read by all ({told})"
    elif reasons:
      yield f"{row.place}: stack {stack_id} is left out, it cannot be read ({told})"
    elif stack_id not in said.readings:
      missing.append(stack_id)
  if missing:
    more = f" and {len(missing) - 5} more" if len(missing) > 5 else ""
    yield (
      f"{table.path}: {len(missing)} of {len(table.rows)} stacks are left out, nobody has labelled "
      f"them yet: {', '.join(missing[:5])}{more}"
    )
