"""The two CSV files that describe a study: its stacks, and what readers said about them.

The manifest has one row a stack: stack_id, patient_id, path (below the source folder, or
absolute) and, where known, step_um, pixel_um, site and source (the study it comes from).
Labels stand in the manifest as transitions (`labels.TRANSITIONS`: where a stratum
begins, as depth or as number of its first slice), or in a second file: one row a slice
(stack_id, slice, label) or one row a stack (stack_id and transitions), each with a
column `reader` if there are several. The second file may hold rows of both kinds. In its place there
may be a folder of them, labels/, a file a reader, as `tfds_rcm.label` writes them.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
import contextlib
import dataclasses
import pathlib

from tfds_rcm import names
from tfds_rcm.errors import UserError, nearest
from tfds_rcm.formats.csv_table import Row, Table, column_name, read_table
from tfds_rcm.study.annotations import TRANSITIONS, Reading
from tfds_rcm.study.label_tables import (
  FOR_READER,
  LABELS,
  LABELS_COLUMNS,
  Said,
  left_out,
  read_folder,
  read_labels,
)

MANIFEST = "manifest.csv"
MANIFEST_COLUMNS = (
  "stack_id", "patient_id", "path", "step_um", "pixel_um", "site", "source", FOR_READER,
  *TRANSITIONS,
)  # fmt: skip
_SPLIT_COLUMNS = ("split",)  # of a third table, see `splits`
# A column whose name holds one of these tells a boundary, whatever else its name says.
_STRATUM_WORDS = ("corneum", "dermis", "dej", "junction", "dermal")


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
    columns: source, and what the manifest says in columns that nobody reads, where it does.
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
  columns: Mapping[str, str] = dataclasses.field(default_factory=dict)


@contextlib.contextmanager
def collected(problems: list[str]) -> Iterator[None]:
  """Notes a user's error instead of raising it, so that one run lists them all."""
  try:
    yield
  except UserError as error:
    problems.append(str(error))


def find_manifest(source: pathlib.Path, advice: str = "name yours by --manifest") -> pathlib.Path:
  """The one manifest.csv below a folder.

  Args:
    source: the folder.
    advice: what to do where there is none, or several.

  Raises:
    UserError: if there is none, or several, or no such folder.
  """
  if not source.is_dir():
    raise UserError(f"{source}: no such folder; give the study's folder as --source")
  direct = source / MANIFEST
  found = [direct] if direct.is_file() else sorted(source.rglob(MANIFEST))
  if len(found) == 1:
    return found[0]
  what = f"{len(found)} files {MANIFEST}" if found else f"no {MANIFEST}"
  raise UserError(f"{source}: {what} in it, expected one; {advice}")


def read_manifest(
  manifest: pathlib.Path,
  root: pathlib.Path,
  labels: pathlib.Path | None,
  problems: list[str],
  warnings: list[str] | None = None,
  columns: Mapping[str, str] | None = None,
) -> list[Entry]:
  """Reads a study's stacks with their labels; nothing is opened but the CSV files.

  Args:
    manifest: the CSV of the stacks.
    root: folder that relative paths start from.
    labels: the CSV of the labels, or a folder of them; None if the manifest's own columns
      tell them. With a folder, stacks that nobody labelled yet are left out.
    problems: where what is wrong in a row is noted.
    warnings: where columns are noted that nobody understands, stacks that are left out, and stacks that
      somebody could not read.
    columns: the files' headers for some of our columns; None where the command does not ask for them.

  Raises:
    UserError: if a file as a whole cannot be understood.
  """
  renamed, columns = columns, columns or {}
  known = dict.fromkeys((*MANIFEST_COLUMNS, *LABELS_COLUMNS, *_SPLIT_COLUMNS))
  for ours in columns:
    if ours not in known:
      raise UserError(f"--columns={ours}=…: no column {ours}{nearest(ours, known)}")
  table = read_table(
    manifest,
    ("stack_id", "patient_id", "path"),
    known=MANIFEST_COLUMNS,
    renamed=renamed,
    keep=True,
  )
  if not table.rows:
    raise UserError(f"{manifest}: no row below the header; add one for each stack")
  in_folder = labels is not None and labels.is_dir()
  tables, said = [table], Said({}, {}, {})
  if in_folder:
    said = read_folder(labels, tables)
  elif labels:
    tables.append(read_table(labels, ("stack_id",), known=LABELS_COLUMNS, renamed=renamed))
    said = Said(read_labels(tables[1]), {}, {})
  _check_renamed(columns, tables)
  for read in tables:
    _check_transitions(read)
    if warnings is not None:
      warnings.extend(read.warnings)
  readings = said.readings
  unread = {column_name(header) for header in table.unknown} - {*MANIFEST_COLUMNS}
  other = ("source", *sorted(unread))
  entries, first_by = [], {}
  for row in table.rows:
    found = names.find(root, row.raw["path"])
    for column, key in (("stack_id", row["stack_id"]), ("path", names.identity(found))):
      first = first_by.setdefault((column, key), row.place)
      if first != row.place:
        number = first.rpartition(" ")[2]
        problems.append(f"{row.place}: {column} {row[column]!r} is already in row {number}")
        break
    else:
      with collected(problems):
        of_stack = readings.get(row["stack_id"], ())
        if of_stack or not in_folder:
          entry = _entry(row, found, of_stack, labels)
          told = {name: row[name] for name in other if row[name]}
          decided = said.adjudicated.get(row["stack_id"])
          entries.append(dataclasses.replace(entry, adjudicated=decided, columns=told))
  if warnings is not None and in_folder:
    warnings.extend(left_out(table, said))
  if in_folder and not entries and not problems:
    raise UserError(f"{labels}: nobody has labelled a stack yet; python -m tfds_rcm.label does it")
  known = {row["stack_id"] for row in table.rows}
  for stack_id, of_stack in readings.items():
    if stack_id not in known:
      place = of_stack[0].rows[0].place
      problems.append(
        f"{place}: stack_id {stack_id!r} is not in {manifest.name}{nearest(stack_id, known)}"
      )
  return entries


def _check_renamed(columns: Mapping[str, str], tables: Sequence[Table]) -> None:
  """Refuses a --columns that names what is not there: it would change nothing, silently."""
  headers = [header for table in tables for header in table.headers]
  found = {column_name(header) for header in headers}
  for ours, header in columns.items():
    if ours not in _SPLIT_COLUMNS and column_name(header) not in found:
      where = " and ".join(str(table.path) for table in tables)
      near = nearest(header, headers)
      raise UserError(f"--columns={ours}={header}: no column {header!r} in {where}{near}")


def _check_transitions(table: Table) -> None:
  """Refuses a boundary's column that would not be read, and give its stratum to another."""
  if not any(row[name] for row in table.rows for name in TRANSITIONS):
    return
  for header in table.unknown:
    name = column_name(header)
    if any(word in name for word in _STRATUM_WORDS) and any(row[name] for row in table.rows):
      raise UserError(
        f"{table.path}, row 1: column {header!r} is not understood, expected one of "
        f"{', '.join(TRANSITIONS)}; if it is one of them, say so by --columns=dej_um=… (which "
        "renames no units), else remove it"
      )


def _entry(
  row: Row, path: pathlib.Path, readings: Sequence[Reading], labels: pathlib.Path | None
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
    path=path,
    step_um=row.number("step_um"),
    pixel_um=row.number("pixel_um"),
    site=row["site"],
    source=row["source"],
    place=row.place,
    readings=tuple(readings) or (Reading(row[FOR_READER], (row,)),),
  )
