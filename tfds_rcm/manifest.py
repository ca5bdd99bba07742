"""The two CSV files that describe a study: its stacks, and what readers said about them.

The manifest has one row a stack: stack_id, patient_id, path (below the source folder, or
absolute) and, where known, step_um, pixel_um, site and source (the study it comes from).
Labels stand in the manifest as transitions (`labels.TRANSITIONS`: where a stratum
begins, as depth or as number of its first slice), or in a second file: one row a slice
(stack_id, slice, label) or one row a stack (stack_id and transitions), each with a
column `reader` if there are several. In place of a second file there may be a folder of them,
labels/, a file a reader, as `tfds_rcm.label` writes them; see `label_files`.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
import contextlib
import dataclasses
import pathlib

from tfds_rcm.errors import UserError
from tfds_rcm.labels import TRANSITIONS, Reading
from tfds_rcm.tables import Row, Table, read_table

MANIFEST, LABELS = "manifest.csv", "labels.csv"
LABELS_FOLDER, ADJUDICATED = "labels", "adjudicated"
UNREADABLE = "unreadable"  # in the column label, with no slice: the reader cannot read the stack
_FOR_READER = "reader"


@dataclasses.dataclass(frozen=True)
class Entry:
  """One stack of a study, as its manifest describes it.

  Attributes:
    stack_id: unique name.
    patient_id: whose skin.
    path: folder or file.
    step_um: distance between slices in µm; None if the files tell their depth.
    pixel_um: side of a pixel in µm; None if the files tell it or nobody knows.
    site: where on the body, may be empty.
    source: the study it comes from, may be empty.
    place: file and row, for messages.
    readings: what readers said.
    adjudicated: what a reader decided who had seen the others' labels; it stands.
  """

  stack_id: str
  patient_id: str
  path: pathlib.Path
  step_um: float | None
  pixel_um: float | None
  site: str
  source: str
  place: str
  readings: tuple[Reading, ...]
  adjudicated: Reading | None = None


@contextlib.contextmanager
def collected(problems: list[str]) -> Iterator[None]:
  """Notes a user's error instead of raising it, so that one run lists them all."""
  try:
    yield
  except UserError as error:
    problems.append(str(error))


def find_manifest(source: pathlib.Path) -> pathlib.Path:
  """The one manifest.csv below a folder.

  Raises:
    UserError: if there is none, or several.
  """
  direct = source / MANIFEST
  found = [direct] if direct.is_file() else sorted(source.rglob(MANIFEST))
  if len(found) == 1:
    return found[0]
  what = f"{len(found)} files {MANIFEST}" if found else f"no {MANIFEST}"
  raise UserError(f"{source}: {what} in it, expected one; name yours by --manifest")


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


def read_manifest(
  manifest: pathlib.Path,
  root: pathlib.Path,
  labels: pathlib.Path | None,
  problems: list[str],
  warnings: list[str] | None = None,
) -> list[Entry]:
  """Reads a study's stacks with their labels; nothing is opened but the CSV files.

  Args:
    manifest: the CSV of the stacks.
    root: folder that relative paths start from.
    labels: the CSV of the labels, or a folder of them; None if the manifest's own columns
      tell them. With a folder, stacks that nobody labelled yet are left out.
    problems: where what is wrong in a row is noted.
    warnings: where it is noted which stacks are left out, or could not be read by somebody.

  Raises:
    UserError: if a file as a whole cannot be understood.
  """
  table = read_table(manifest, required=("stack_id", "patient_id", "path"))
  if not table.rows:
    raise UserError(f"{manifest}: no row below the header; add one for each stack")
  said = _Said({}, {}, {})
  if labels and labels.is_dir():
    said = _read_folder(labels)
  elif labels:
    said = _Said(_read_labels(read_table(labels, required=("stack_id",))), {}, {})
  readings = said.readings
  entries, first_by = [], {}
  for row in table.rows:
    for column in ("stack_id", "path"):
      first = first_by.setdefault((column, row[column]), row.place)
      if first != row.place:
        number = first.rpartition(" ")[2]
        problems.append(f"{row.place}: {column} {row[column]!r} is already in row {number}")
        break
    else:
      with collected(problems):
        of_stack = readings.get(row["stack_id"], ())
        if of_stack or not (labels and labels.is_dir()):
          entry = _entry(row, root, of_stack, labels)
          decided = said.adjudicated.get(row["stack_id"])
          entries.append(dataclasses.replace(entry, adjudicated=decided))
  if warnings is not None and labels and labels.is_dir():
    warnings.extend(_left_out(table, said))
  if labels and labels.is_dir() and not entries and not problems:
    raise UserError(f"{labels}: nobody has labelled a stack yet; python -m tfds_rcm.label does it")
  known = {row["stack_id"] for row in table.rows}
  for stack_id, of_stack in readings.items():
    if stack_id not in known:
      place = of_stack[0].rows[0].place
      problems.append(f"{place}: stack_id {stack_id!r} is not in {manifest.name}")
  return entries


def _entry(
  row: Row, root: pathlib.Path, readings: Sequence[Reading], labels: pathlib.Path | None
) -> Entry:
  in_row = any(row[column] for column in TRANSITIONS)
  if in_row and readings:
    raise UserError(f"{row.place}: has transitions, and labels in {readings[0].rows[0].place} too")
  if not in_row and not readings:
    where = f"row of it in {labels}" if labels else f"{', '.join(TRANSITIONS)} or {LABELS}"
    raise UserError(f"{row.place}: stack {row['stack_id']} has no labels, expected a {where}")
  for column in ("step_um", "pixel_um"):
    value = row.number(column)
    if value is not None and value <= 0:
      raise UserError(f"{row.place}: {column} is {row[column]!r}, expected µm above 0")
  return Entry(
    stack_id=row["stack_id"],
    patient_id=row["patient_id"],
    path=root / row["path"].replace("\\", "/"),
    step_um=row.number("step_um"),
    pixel_um=row.number("pixel_um"),
    site=row["site"],
    source=row["source"],
    place=row.place,
    readings=tuple(readings) or (Reading(row[_FOR_READER], (row,)),),
  )


def _read_labels(table: Table) -> dict[str, tuple[Reading, ...]]:
  per_slice = "slice" in table.columns
  if per_slice and "label" not in table.columns:
    raise UserError(f"{table.path}, row 1: a column slice but no column label; add it")
  if not per_slice and not set(TRANSITIONS) & set(table.columns):
    raise UserError(
      f"{table.path}, row 1: expected the columns slice and label, or one of "
      f"{', '.join(TRANSITIONS)}; the columns are {', '.join(table.columns)}"
    )
  rows: dict[str, dict[str, list[Row]]] = {}
  for row in table.rows:
    rows.setdefault(row["stack_id"], {}).setdefault(row[_FOR_READER], []).append(row)
  return {
    stack_id: tuple(Reading(reader, tuple(of_reader)) for reader, of_reader in readers.items())
    for stack_id, readers in rows.items()
  }


@dataclasses.dataclass(frozen=True)
class _Said:
  """What a folder of labels says, by stack_id.

  Attributes:
    readings: of readers who labelled by themselves.
    adjudicated: what a reader decided who had seen the others' labels.
    unreadable: why a reader could not read the stack, by reader.
  """

  readings: dict[str, tuple[Reading, ...]]
  adjudicated: dict[str, Reading]
  unreadable: dict[str, dict[str, str]]


def _read_folder(folder: pathlib.Path) -> _Said:
  said = _Said({}, {}, {})
  for path in label_files(folder):
    for stack_id, of_stack in _read_labels(_readable_rows(path, said)).items():
      said.readings[stack_id] = said.readings.get(stack_id, ()) + of_stack
  for path in label_files(folder / ADJUDICATED):
    decided = _Said({}, {}, {})
    for stack_id, of_stack in _read_labels(_readable_rows(path, decided)).items():
      if stack_id in said.adjudicated:
        place = said.adjudicated[stack_id].rows[0].place
        raise UserError(f"{of_stack[0].rows[0].place}: decided already in {place}; remove one")
      said.adjudicated[stack_id] = of_stack[0]
    for stack_id, reasons in decided.unreadable.items():
      said.readings.pop(stack_id, None)
      said.unreadable.setdefault(stack_id, {}).update(reasons)
  return said


def _readable_rows(path: pathlib.Path, said: _Said) -> Table:
  """A table without its rows about stacks that cannot be read, which are noted."""
  table = read_table(path, required=("stack_id",))
  bare = [row for row in table.rows if row["label"] == UNREADABLE and not row["slice"]]
  for row in bare:
    said.unreadable.setdefault(row["stack_id"], {})[row[_FOR_READER] or path.stem] = row["note"]
  return dataclasses.replace(table, rows=tuple(row for row in table.rows if row not in bare))


def _left_out(table: Table, said: _Said) -> Iterator[str]:
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
