"""The stacks of a study to be labelled, with a manifest or without, and their slices as PNG."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence
import contextlib
import csv
import dataclasses
import io
import math
import pathlib
import threading

import numpy as np

from tfds_rcm import stack_io
from tfds_rcm.errors import UserError
from tfds_rcm.formats.csv_table import read_table
from tfds_rcm.formats.png import encode_png
from tfds_rcm.labelling import files
from tfds_rcm.rcm_dryad.convert import find_stacks
from tfds_rcm.study import manifest as manifest_lib

DRAFT = "manifest.draft.csv"
_OPEN_READERS = 3
_CACHED_BYTES = 256 << 20
_PERCENTILES = (0.5, 99.5)


@dataclasses.dataclass(frozen=True)
class StudyStack:
  """A stack of a study, before anybody labelled it.

  Attributes:
    stack_id: unique name.
    patient_id: whose skin, empty if nobody told.
    path: folder or file.
    step_um: distance between slices in µm; None if the files tell their depth or nobody does.
    pixel_um: side of a pixel in µm; None if the files tell it or nobody knows.
  """

  stack_id: str
  patient_id: str
  path: pathlib.Path
  step_um: float | None = None
  pixel_um: float | None = None


def find(
  source: pathlib.Path, *, step_um: float | None = None, pixel_um: float | None = None
) -> list[StudyStack]:
  """The stacks of a study: the rows of its manifest, else all that lie below its folder.

  Without a manifest a stack is called by its path, and a draft of a manifest is left beside the
  stacks, for its patients to be filled in.

  Args:
    source: the study's folder.
    step_um: distance between slices in µm where neither manifest nor files tell.
    pixel_um: side of a pixel in µm, likewise.

  Raises:
    UserError: no such folder, no stacks in it, or a manifest that cannot be understood.
  """
  if not source.is_dir():
    raise UserError(f"{source}: no such folder; give the study's folder as --source")
  for name, value in (("step_um", step_um), ("pixel_um", pixel_um)):
    if value is not None and not (math.isfinite(value) and value > 0):
      raise UserError(f"--{name}={value}: expected a number of µm above 0")
  if any(source.rglob(manifest_lib.MANIFEST)):
    return listed(manifest_of(source), step_um, pixel_um)
  found = [
    StudyStack(name, "", path, step_um, pixel_um) for name, path in find_stacks(source).items()
  ]
  text = io.StringIO()
  writer = csv.writer(text, lineterminator="\n")
  writer.writerow(("stack_id", "patient_id", "path", "step_um", "pixel_um", "site", "source"))
  for stack in found:
    where = stack.path.relative_to(source).as_posix()
    writer.writerow((stack.stack_id, "", where, step_um or "", pixel_um or "", "", ""))
  files.write_whole(source / DRAFT, text.getvalue())
  return found


def manifest_of(source: pathlib.Path) -> pathlib.Path:
  """The manifest below the folder of a study; the page has no option that names another."""
  return manifest_lib.find_manifest(source, "give the folder with yours as --source")


def listed(
  manifest: pathlib.Path, step_um: float | None = None, pixel_um: float | None = None
) -> list[StudyStack]:
  """The rows of a manifest; see `find`."""
  stacks: dict[str, StudyStack] = {}
  for row in read_table(manifest, required=("stack_id", "patient_id", "path")).rows:
    if row["stack_id"] in stacks:
      raise UserError(f"{row.place}: stack_id {row['stack_id']!r} is there twice; rename one")
    stacks[row["stack_id"]] = StudyStack(
      row["stack_id"],
      row["patient_id"],
      manifest.parent / row["path"].replace("\\", "/"),
      row.number("step_um") or step_um,
      row.number("pixel_um") or pixel_um,
    )
  if not stacks:
    raise UserError(f"{manifest}: no row below the header; add one for each stack")
  return list(stacks.values())


def open_stack(stack: StudyStack) -> tuple[stack_io.StackReader, bool]:
  """Opens a stack, and says whether its depths are known.

  A reader can label slices whose depth nobody knows; only what is measured in µm has to wait.

  Raises:
    UserError: as `stack_io.open_stack`, but for a missing step.
  """
  try:
    return stack_io.open_stack(stack.path, step_um=stack.step_um, pixel_um=stack.pixel_um), True
  except UserError:
    if stack.step_um is not None:
      raise
  return stack_io.open_stack(stack.path, step_um=1, pixel_um=stack.pixel_um), False


@dataclasses.dataclass(frozen=True)
class Shown:
  """What the page needs to know of a stack.

  Attributes:
    count: slices.
    depth_um: depth of each in µm, None if unknown.
    height: rows of pixels.
    width: columns of pixels.
    pixel_um: side of a pixel in µm, None if unknown.
  """

  count: int
  depth_um: tuple[float, ...] | None
  height: int
  width: int
  pixel_um: float | None


class Slices:
  """Stacks opened when they are looked at, and slices encoded once; safe for several threads."""

  def __init__(self, stacks: Sequence[StudyStack]):
    self._stacks = {stack.stack_id: stack for stack in stacks}
    self._readers: OrderedDict[str, tuple[stack_io.StackReader, bool]] = OrderedDict()
    self._shown: dict[str, Shown] = {}
    self._encoded: OrderedDict[tuple[str, int], tuple[bytes, tuple[int, int]]] = OrderedDict()
    self._bytes = 0
    self._lock = threading.Lock()

  def shown(self, stack_id: str) -> Shown:
    """Size and depths of a stack.

    Raises:
      UserError: it cannot be read.
    """
    with self._lock:
      if stack_id not in self._shown:
        reader, known = self._reader(stack_id)
        count, height, width = reader.shape
        depth_um = tuple(np.round(reader.depth_um, 4).tolist()) if known else None
        self._shown[stack_id] = Shown(count, depth_um, height, width, reader.pixel_um)
      return self._shown[stack_id]

  def png(self, stack_id: str, t: int) -> tuple[bytes, tuple[int, int]]:
    """A slice as a PNG file, and the gray levels between which nearly all its pixels lie.

    Raises:
      UserError: it cannot be read.
      IndexError: there is no such slice.
    """
    with self._lock:
      key = stack_id, t
      if key not in self._encoded:
        pixels = self._reader(stack_id)[0][t]
        low, high = np.percentile(pixels[::4, ::4], _PERCENTILES).astype(int).tolist()
        self._encoded[key] = encode_png(pixels), (low, high)
        self._bytes += len(self._encoded[key][0])
        while self._bytes > _CACHED_BYTES and len(self._encoded) > 1:
          self._bytes -= len(self._encoded.popitem(last=False)[1][0])
      self._encoded.move_to_end(key)
      return self._encoded[key]

  def close(self) -> None:
    """Closes all files."""
    with self._lock, contextlib.ExitStack() as stack:
      for reader, _ in self._readers.values():
        stack.enter_context(reader)
      self._readers.clear()

  def _reader(self, stack_id: str) -> tuple[stack_io.StackReader, bool]:
    if stack_id not in self._readers:
      self._readers[stack_id] = open_stack(self._stacks[stack_id])
      while len(self._readers) > _OPEN_READERS:
        _, (oldest, _) = self._readers.popitem(last=False)
        with oldest:
          pass
    self._readers.move_to_end(stack_id)
    return self._readers[stack_id]
