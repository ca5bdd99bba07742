"""CSV files as spreadsheets write them in any country."""

from __future__ import annotations

import codecs
from collections.abc import Collection, Iterable, Mapping, Sequence
import csv
import dataclasses
import difflib
import io
import math
import pathlib
import re
import unicodedata

from tfds_rcm import disk, names
from tfds_rcm.errors import UserError
from tfds_rcm.formats.raw import check_path, decoding

_DELIMITERS = ",;\t"
KEPT = "kept as written"  # what becomes of columns that a data set takes along
_LIKE = 0.6  # how like a known name an unknown one must be for it to be proposed


@dataclasses.dataclass(frozen=True)
class Row:
  """One row of a table.

  Attributes:
    place: file and row, for messages; the header is row 1.
    cells: text in one line by column, see `column_name`.
    decimal_comma: True where 1,5 means one and a half.
    raw: text as it is in the file, for names of files.
  """

  place: str
  cells: Mapping[str, str]
  decimal_comma: bool = False
  raw: Mapping[str, str] = dataclasses.field(default_factory=dict)

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
  """A CSV file: where it lies, its columns and its rows.

  Attributes:
    path: the file.
    columns: names of the columns, see `column_name`.
    headers: the same as they are written.
    rows: all but the first.
    unknown: headers of the columns that nobody understands.
    warnings: lines that name them.
  """

  path: pathlib.Path
  columns: tuple[str, ...]
  headers: tuple[str, ...]
  rows: tuple[Row, ...]
  unknown: tuple[str, ...] = ()
  warnings: tuple[str, ...] = ()


def column_name(header: str) -> str:
  """The name of a column however it is written: `DEJ (µm)` and `dej_um` are dej_um.

  Lower case, either character µ as u, and an underscore for whatever is no letter or digit.
  """
  text = unicodedata.normalize("NFKC", header).lower().replace("μ", "u")
  return "_".join(re.findall(r"[^\W_]+", text))


def read_table(
  path: pathlib.Path,
  required: tuple[str, ...] = (),
  *,
  known: Collection[str] = (),
  renamed: Mapping[str, str] | None = None,
  keep: bool = False,
) -> Table:
  """Reads a CSV with or without BOM, in UTF-8, UTF-16 or Latin-1, split by , ; or tab.

  Args:
    path: the file.
    required: columns that must be there, and filled in every row.
    known: columns that are read, others are named in a warning; any if empty.
    renamed: the file's header for some of ours; one that the file lacks changes nothing. None where
      the command has no --columns to say so.
    keep: whether the caller keeps what other columns say, for the warning's words.

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
    lines = [(reader.line_num, cells) for cells in reader]
  except csv.Error as error:
    raise UserError(f"{path}, row {reader.line_num}: not CSV ({error}); save it again") from error
  lines = [(number, cells) for number, cells in lines if any(map(str.strip, cells))]
  if not lines:
    raise UserError(f"{path}: holds no rows")
  headers = tuple(map(_one_line, lines[0][1]))
  columns = _named(headers, renamed or {})
  missing = [name for name in required if name not in columns]
  if missing:
    raise UserError(
      f"{path}, row 1: no column {', '.join(missing)}; the columns are {', '.join(headers)}: rename one"
      + ("" if renamed is None else f", or say which it is by --columns={missing[0]}=…")
    )
  twice = [name for name in dict.fromkeys(columns) if name and columns.count(name) > 1]
  twice = [name for name in twice if name in known or not known]
  if twice:
    both = " and ".join(h for h, name in zip(headers, columns) if name == twice[0])
    raise UserError(f"{path}, row 1: column {twice[0]} comes twice ({both}); remove one")
  rows = []
  for number, cells in lines[1:]:
    place = f"{path}, row {number}"
    if len(cells) > len(columns) and any(map(str.strip, cells[len(columns) :])):
      raise UserError(f"{place}: {len(cells)} cells, expected {len(columns)} as in the header")
    raw = dict(zip(columns, cells))
    cleaned = {name: _one_line(cell) for name, cell in raw.items()}
    row = Row(place, cleaned, decimal_comma=delimiter != ",", raw=raw)
    empty = [name for name in required if not row[name]]
    if empty:
      raise UserError(f"{place}: {empty[0]} is empty; fill it in")
    rows.append(row)
  unknown = {h: name for h, name in zip(headers, columns) if h and known and name not in known}
  kept = [h for h, name in unknown.items() if keep and name]  # without one, another has its name
  rest = [h for h in unknown if h not in kept]
  absent = [name for name in known if name not in columns]
  warnings = [*passed_over(path, kept, absent, KEPT), *passed_over(path, rest, absent)]
  return Table(path, columns, headers, tuple(rows), tuple(unknown), tuple(warnings))


def write_table(
  path: pathlib.Path, columns: Sequence[str], rows: Iterable[Sequence[object]]
) -> None:
  """Writes a CSV in UTF-8, whole or not at all; names of files as the bytes that they are."""
  text = io.StringIO(newline="")
  writer = csv.writer(text)
  writer.writerows([columns, *rows])
  disk.write_whole(path, text.getvalue().encode("utf-8", "surrogateescape"))


def _named(headers: tuple[str, ...], renamed: Mapping[str, str]) -> tuple[str, ...]:
  """Names of the columns; one whose name was given to another column has none."""
  columns = tuple(map(column_name, headers))
  ours = {column_name(header): name for name, header in renamed.items()}
  ours = {column: name for column, name in ours.items() if column in columns}
  taken = set(ours.values())
  return tuple(ours.get(column, "" if column in taken else column) for column in columns)


def passed_over(
  path: pathlib.Path, unknown: Sequence[str], absent: Sequence[str], fate: str = "passed over"
) -> list[str]:
  """The warning about columns that nobody understands, with the known names that they resemble.

  Args:
    path: the table.
    unknown: their headers; no warning if there are none.
    absent: known columns that the table has not.
    fate: what becomes of them.
  """
  named = []
  for header in unknown:
    near = difflib.get_close_matches(column_name(header), absent, n=1, cutoff=_LIKE)
    hint = f" (is it {near[0]}? then give --columns={near[0]}=…)" if near else ""
    named.append(f"{header!r}{hint}")
  many = "s" if len(named) > 1 else ""
  return [f"{path}, row 1: unknown column{many} {fate}: {', '.join(named)}"] if named else []


def _one_line(cell: str) -> str:
  return " ".join(cell.splitlines()).strip()


def _decode(path: pathlib.Path) -> str:
  data = path.read_bytes()
  if data.startswith((b"PK\x03\x04", b"\xd0\xcf\x11\xe0")):
    raise UserError(f"{path}: a spreadsheet, expected CSV; save it as CSV (UTF-8)")
  if data.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
    with decoding(path):
      return data.decode("utf-16")
  return names.decode(data.removeprefix(codecs.BOM_UTF8))
