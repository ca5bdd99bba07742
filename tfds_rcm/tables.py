"""CSV files as spreadsheets write them in any country."""

from __future__ import annotations

import codecs
from collections.abc import Mapping
import csv
import dataclasses
import io
import math
import pathlib

from tfds_rcm.errors import UserError
from tfds_rcm.formats.raw import check_path, decoding

_DELIMITERS = ",;\t"


@dataclasses.dataclass(frozen=True)
class Row:
  """One row of a table.

  Attributes:
    place: file and row, for messages; the header is row 1.
    cells: text by column; column names are lower case with underscores.
    decimal_comma: True where 1,5 means one and a half.
  """

  place: str
  cells: Mapping[str, str]
  decimal_comma: bool = False

  def __getitem__(self, column: str) -> str:
    return self.cells.get(column, "")

  def number(self, column: str) -> float | None:
    """The cell's finite number, None if it is empty.

    Raises:
      UserError: if it is something else.
    """
    text = self[column]
    try:
      value = float(text.replace(",", ".") if self.decimal_comma else text) if text else None
    except ValueError:
      value = math.nan
    if value is not None and not math.isfinite(value):
      raise UserError(f"{self.place}: {column} is {text!r}, expected a number")
    return value


@dataclasses.dataclass(frozen=True)
class Table:
  """A CSV file: where it lies, its columns and its rows."""

  path: pathlib.Path
  columns: tuple[str, ...]
  rows: tuple[Row, ...]


def read_table(path: pathlib.Path, required: tuple[str, ...] = ()) -> Table:
  """Reads a CSV with or without BOM, in UTF-8, UTF-16 or Latin-1, split by , ; or tab.

  Args:
    path: the file.
    required: columns that must be there, and filled in every row.

  Raises:
    UserError: if the file is missing, no CSV, or lacks a column or a cell.
  """
  check_path(path)
  text = _decode(path)
  if "\0" in text:
    raise UserError(f"{path}: holds bytes that are no text; save it as CSV (UTF-8) again")
  first_line = text.lstrip().partition("\n")[0]
  delimiter = max(_DELIMITERS, key=first_line.count)
  reader = csv.reader(io.StringIO(text, newline=""), delimiter=delimiter, strict=True)
  try:
    lines = [
      (reader.line_num, [" ".join(c.splitlines()).strip() for c in cells]) for cells in reader
    ]
  except csv.Error as error:
    raise UserError(f"{path}, row {reader.line_num}: not CSV ({error}); save it again") from error
  lines = [(number, cells) for number, cells in lines if any(cells)]
  if not lines:
    raise UserError(f"{path}: holds no rows")
  columns = tuple("_".join(name.lower().split()) for name in lines[0][1])
  missing = [name for name in required if name not in columns]
  if missing:
    raise UserError(
      f"{path}, row 1: no column {', '.join(missing)}; the columns are {', '.join(columns)}"
    )
  twice = sorted({name for name in columns if name and columns.count(name) > 1})
  if twice:
    raise UserError(f"{path}, row 1: column {twice[0]} comes twice; remove one")
  rows = []
  for number, cells in lines[1:]:
    place = f"{path}, row {number}"
    if len(cells) > len(columns) and any(cells[len(columns) :]):
      raise UserError(f"{place}: {len(cells)} cells, expected {len(columns)} as in the header")
    row = Row(place, dict(zip(columns, cells)), decimal_comma=delimiter != ",")
    empty = [name for name in required if not row[name]]
    if empty:
      raise UserError(f"{place}: {empty[0]} is empty; fill it in")
    rows.append(row)
  return Table(path, columns, tuple(rows))


def _decode(path: pathlib.Path) -> str:
  data = path.read_bytes()
  if data.startswith((b"PK\x03\x04", b"\xd0\xcf\x11\xe0")):
    raise UserError(f"{path}: a spreadsheet, expected CSV; save it as CSV (UTF-8)")
  if data.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
    with decoding(path):
      return data.decode("utf-16")
  try:
    return data.decode("utf-8-sig")
  except UnicodeDecodeError:
    return data.decode("latin-1")
