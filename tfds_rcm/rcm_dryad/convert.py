"""Makes a manifest of the archive that Hames et al. left at Dryad.

THE ARCHIVE'S LAYOUT COULD NOT BE CHECKED BY THE AUTHORS OF THIS PROGRAM: its file
names, image format and label columns are unknown to them. So nothing is taken for
granted here. Stacks are folders of images or volumes in one file; tables are CSV
or tab-separated files whose columns have telling names. Whatever cannot be inferred
is asked for, in one line that names the option to give. The result are two files for
a person to look at, manifest.csv and labels.csv; a manifest.csv of the user's own in
the folder is taken instead.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
import dataclasses
import itertools
import os
import pathlib
import re

import tifffile

from tfds_rcm import names, stack_io
from tfds_rcm.errors import UserError, nearest
from tfds_rcm.formats import images, tiff, volume
from tfds_rcm.formats.csv_table import Row, Table, column_name, passed_over, read_table, write_table
from tfds_rcm.study import manifest as manifest_lib
from tfds_rcm.study.annotations import TRANSITIONS

NOTE = (
  "note        the layout of the Dryad archive (doi:10.5061/dryad.rg58m) could not be checked by "
  "the authors of this program: look into the manifest and the labels below before you trust them"
)
_TABLES = (".csv", ".tsv", ".txt")
_NAMES = {
  "stack_id": ("stack_id", "stack", "stack_name", "stack_number", "folder", "series", "id"),
  "patient_id": ("patient_id", "patient", "subject_id", "subject", "participant", "volunteer"),
  "slice": (
    "slice", "slice_number", "slice_no", "image", "image_number", "image_no", "frame", "file",
    "filename",
  ),
  "label": ("label", "class", "layer", "stratum", "strata"),
  "reader": ("reader", "annotator", "observer", "rater", "expert"),
  "site": ("site", "body_site", "location"),
}  # fmt: skip


@dataclasses.dataclass(frozen=True)
class Hints:
  """What a user says about the archive.

  Attributes:
    columns: the archive's column for stack_id, patient_id, slice, label, reader, site or a
      transition.
    patient_pattern: regular expression whose group in a stack's path is its patient.
    step_um: distance between slices in µm.
    pixel_um: side of a pixel in µm.
    labels: the table of the labels.
  """

  columns: Mapping[str, str] = dataclasses.field(default_factory=dict)
  patient_pattern: str | None = None
  step_um: float | None = None
  pixel_um: float | None = None
  labels: pathlib.Path | None = None


def convert(
  folder: pathlib.Path, out: pathlib.Path, hints: Hints, warnings: list[str] | None = None
) -> tuple[pathlib.Path, pathlib.Path]:
  """Writes manifest.csv and labels.csv for an unpacked archive.

  Args:
    folder: the archive, unpacked.
    out: where the two files go.
    hints: what the user says about it.
    warnings: where columns are noted that nobody reads.

  Returns:
    The two files.

  Raises:
    UserError: with the option to give, if something cannot be inferred.
  """
  stacks = find_stacks(folder)
  labels = _find_labels(folder, hints)
  stack_of = _matcher(stacks, labels)
  rows = [(row, stack_of(row)) for row in labels.table.rows]
  patients = _patients(folder, stacks, labels, rows, hints)
  sites = {name: row[labels.columns["site"]] for row, name in rows if "site" in labels.columns}
  if warnings is not None:
    warnings.extend(labels.warnings)
  labelled = {name for _, name in rows}
  table_path, labels_path = out / manifest_lib.MANIFEST, out / manifest_lib.LABELS
  step, pixel = hints.step_um or "", hints.pixel_um or ""
  entries = [
    (name, patients[name], path.relative_to(folder).as_posix(), step, pixel, sites.get(name, ""))
    for name, path in stacks.items() if name in labelled
  ]  # fmt: skip
  header = ("stack_id", "patient_id", "path", "step_um", "pixel_um", "site", "source")
  write_table(table_path, header, [(*entry, "dryad") for entry in entries])
  given = [c for c in ("slice", "label", "reader", *TRANSITIONS) if c in labels.columns]
  cells = [(name, *(_cell(row, c, labels.columns[c]) for c in given)) for row, name in rows]
  write_table(labels_path, ("stack_id", *given), cells)
  return table_path, labels_path


def find_stacks(folder: pathlib.Path) -> dict[str, pathlib.Path]:
  """Stacks below a folder by their readable path from it; links are not followed.

  A folder with at least two images is a stack, and so is every file with several
  slices.

  Raises:
    UserError: if there are none.
  """
  found: list[tuple[pathlib.Path, str]] = []
  for parent, folders, files in os.walk(folder):
    folders.sort()
    paths = [pathlib.Path(parent, name) for name in sorted(files) if not name.startswith(".")]
    slices = [p for p in paths if p.suffix.lower() in stack_io.SUFFIXES]
    volumes = [p for p in slices if _is_volume(p)]
    for path in volumes:
      found.append((path, path.suffix))
    if not volumes and len(slices) > 1:
      found.append((pathlib.Path(parent), ""))
  if not found:
    kinds = ", ".join(sorted(stack_io.SUFFIXES))
    raise UserError(f"{folder}: no folder with images and no volume in it (of {kinds})")
  stacks: dict[str, pathlib.Path] = {}
  for path, suffix in found:
    whole = names.readable(path.relative_to(folder).as_posix())
    name = whole.removesuffix(suffix)
    if name in stacks:  # a.npy beside a.tif
      name = whole
    if name in stacks:
      raise UserError(f"{path}: reads like {stacks[name]}; rename one of them")
    stacks[name] = path
  return stacks


def _is_volume(path: pathlib.Path) -> bool:
  suffix = path.suffix.lower()
  if suffix in volume.SUFFIXES:
    return True
  if suffix in images.SUFFIXES:
    return False
  if suffix in tiff.SUFFIXES:
    try:
      with tifffile.TiffFile(path) as tif:
        return len(list(itertools.islice(tif.pages, 2))) > 1
    except (OSError, ValueError):
      return False  # Damaged: told with its reason when the stack is examined.
  return False


@dataclasses.dataclass(frozen=True)
class _Labels:
  table: Table
  columns: dict[str, str]  # the table's column for each of ours

  @property
  def warnings(self) -> list[str]:
    used = self.columns.values()
    headers = zip(self.table.headers, self.table.columns)
    unknown = [header for header, column in headers if header and column not in used]
    absent = [name for name in (*_NAMES, *TRANSITIONS) if name not in self.columns]
    return passed_over(self.table.path, unknown, absent)


def _find_labels(folder: pathlib.Path, hints: Hints) -> _Labels:
  """The one table that tells labels."""
  known = (*_NAMES, *TRANSITIONS)
  for ours in hints.columns:
    if ours not in known:
      raise UserError(f"--columns={ours}=…: no column {ours}{nearest(ours, known)}")
  paths = [hints.labels] if hints.labels else sorted(folder.rglob("*.*"))
  found, seen = [], []
  for path in paths:
    if hints.labels or (path.suffix.lower() in _TABLES and path.is_file()):
      try:
        table = read_table(path)
      except UserError:
        if hints.labels:
          raise
        seen.append(f"{path.name} (no table)")  # above all a README
        continue
      columns = _columns(table, hints.columns)
      seen.append(f"{path.name} ({', '.join(table.headers)})")
      if ("label" in columns and "slice" in columns) or set(TRANSITIONS) & set(columns):
        found.append(_Labels(table, columns))
  if len(found) == 1:
    [labels] = found
    for ours, header in hints.columns.items():
      if ours not in labels.columns:
        headers = labels.table.headers
        near = nearest(header, headers)
        raise UserError(
          f"--columns={ours}={header}: no column {header!r} in {labels.table.path}{near}"
        )
    return labels
  if found:
    names = ", ".join(str(labels.table.path) for labels in found)
    raise UserError(f"{folder}: several tables tell labels ({names}); choose by --labels")
  raise UserError(
    f"{folder}: no table with a slice and a label was recognised among "
    f"{'; '.join(seen) or 'no CSV files'}; give --labels=FILE and "
    "--columns=stack_id=…,slice=…,label=…"
  )


def _columns(table: Table, given: Mapping[str, str]) -> dict[str, str]:
  """The table's column for each of ours: as given, else by its name without remarks."""
  columns = {name: name for name in TRANSITIONS if name in table.columns}
  pairs = list(zip(table.headers, table.columns))[::-1]
  by_bare = {_bare(header): column for header, column in pairs}
  for ours, likely in _NAMES.items():
    match = next((by_bare[name] for name in likely if name in by_bare), None)
    if match:
      columns[ours] = match
  for ours, header in given.items():
    columns.pop(ours, None)
    name = column_name(header)
    if name in table.columns:
      columns[ours] = name
    elif _bare(header) in by_bare:
      columns[ours] = by_bare[_bare(header)]
  return columns


def _bare(header: str) -> str:
  """A column's name without what people add: `Class (1 = SC)` is class, `Image no.` image_no."""
  return column_name(re.sub(r"\(.*\)", "", header)) or column_name(header)


def _matcher(stacks: Mapping[str, pathlib.Path], labels: _Labels) -> Callable[[Row], str]:
  """A function from a row of the labels to the stack that it is about."""
  places: dict[str, set[str]] = {}
  for name in stacks:
    last = name.rpartition("/")[2]
    keys = {name, last, *(str(int(n)) for n in re.findall(r"\d+", last)[-1:])}
    for key in set().union(*map(names.keys, keys)):
      places.setdefault(key.lower(), set()).add(name)

  def stack_of(row: Row) -> str:
    written = _stack_key(row, labels)
    found: set[str] = set()
    for key in (written, written.replace("\\", "/").strip("/")):
      for spelled in () if found else names.keys(key):
        found |= places.get(spelled.lower(), set())
      if not found and key.isdecimal():
        found = places.get(str(int(key)), set())
    if len(found) != 1:
      how = f"fits {len(found)} folders ({', '.join(sorted(found)[:3])})" if found else "fits none"
      raise UserError(
        f"{row.place}: stack {written!r} {how} of the {len(stacks)} found, such as "
        f"{next(iter(stacks))}; say by --columns=stack_id=… which column names a stack's folder"
      )
    return next(iter(found))

  return stack_of


def _stack_key(row: Row, labels: _Labels) -> str:
  if "stack_id" in labels.columns:
    return row[labels.columns["stack_id"]]
  image = row[labels.columns["slice"]].replace("\\", "/") if "slice" in labels.columns else ""
  if "/" not in image:
    raise UserError(
      f"{row.place}: no column tells the stack among {', '.join(labels.table.headers)}; give "
      "--columns=stack_id=…"
    )
  return image.rpartition("/")[0].strip("/")


def _cell(row: Row, ours: str, column: str) -> str:
  if ours != "slice":
    return row[column]
  return row.raw[column].replace("\\", "/").rpartition("/")[2]


def _patients(
  folder: pathlib.Path,
  stacks: Mapping[str, pathlib.Path],
  labels: _Labels,
  rows: Sequence[tuple[Row, str]],
  hints: Hints,
) -> dict[str, str]:
  """Patient of each labelled stack."""
  if hints.patient_pattern:
    return _patients_by_pattern(stacks, hints.patient_pattern)
  if "patient_id" in labels.columns:
    column = labels.columns["patient_id"]
    first: dict[str, Row] = {}
    for row, name in rows:
      before = first.setdefault(name, row)
      if row[column] != before[column]:
        number = before.place.rpartition(" ")[2]
        raise UserError(
          f"{row.place}: patient {row[column]!r}, expected {before[column]!r} as of the same stack "
          f"in row {number}"
        )
    return {name: row[column] for name, row in first.items()}
  raise UserError(
    f"{folder}: whose stacks they are cannot be inferred from the columns "
    f"{', '.join(labels.table.headers)}; give --columns=patient_id=… or --patient_pattern=REGEX "
    f"with a group for the patient in paths like {next(iter(stacks))}"
  )


def _patients_by_pattern(stacks: Mapping[str, pathlib.Path], pattern: str) -> dict[str, str]:
  try:
    compiled = re.compile(pattern)
  except re.error as error:
    raise UserError(f"--patient_pattern={pattern}: no regular expression ({error})") from error
  if compiled.groups != 1:
    raise UserError(f"--patient_pattern={pattern}: {compiled.groups} groups, expected one: (…)")
  patients = {}
  for name in stacks:
    match = compiled.search(name)
    if not match:
      raise UserError(f"--patient_pattern={pattern}: does not match the path {name}")
    patients[name] = match.group(1)
  return patients
