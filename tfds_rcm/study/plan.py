"""A study on disk, understood: every stack opened, labelled and put into a split.

`make_plan` is what stands between a user's folder and a dataset. It finds all
problems before anything is written, so that a bad row costs seconds, not a night.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
import contextlib
import dataclasses
import functools
import math
import pathlib
from typing import Any

import numpy as np

from tfds_rcm import stack_io, staging
from tfds_rcm.errors import UserError
from tfds_rcm.formats.png import encode_png
from tfds_rcm.study import annotations as labels_lib
from tfds_rcm.study import manifest as manifest_lib
from tfds_rcm.study import patients
from tfds_rcm.study import splits as splits_lib

# Part of the staged shards' names: to be raised when what is stored changes.
_FORMAT = 5
# Protocol buffers hold no more than 2 GiB. A record's other fields are small.
MAX_PIXELS = 2**31 - 2**20


@dataclasses.dataclass(frozen=True)
class Options:
  """How a study is to be read.

  Attributes:
    folder: where relative paths start from.
    manifest: the CSV of the stacks, see `manifest`.
    labels: the CSV of the labels or a folder of them, None if the manifest tells them.
    splits: the CSV of the splits; written if it is not there, obeyed if it is.
    split_sizes: stacks in train, validation and test, as counts or fractions; the
      paper's fractions if None.
    seed: for the splits.
    rules: how labels are to be understood.
    value_range: stored values that become black and white in pixels deeper than 8
      bit; each stack's own range if None.
    channel: which of several channels is read, counted from 1.
    compress: slices as PNG files, smaller and slower, see `record.stack_features`.
    columns: the CSVs' headers for some of our columns.
    distinct_patients: ids that are as many patients, however alike, see `patients`.
  """

  folder: pathlib.Path
  manifest: pathlib.Path
  labels: pathlib.Path | None
  splits: pathlib.Path
  split_sizes: tuple[float, ...] | None = None
  seed: int = 0
  rules: labels_lib.Rules = dataclasses.field(default_factory=labels_lib.Rules)
  value_range: stack_io.Range | None = None
  channel: int | None = None
  compress: bool = False
  columns: Mapping[str, str] = dataclasses.field(default_factory=dict)
  distinct_patients: tuple[str, ...] = ()


@dataclasses.dataclass(frozen=True)
class Examined:
  """A stack that could be opened and labelled.

  Attributes:
    entry: its row of the manifest.
    shape: slices, height and width.
    depth_um: depth of each slice in µm.
    pixel_um: side of a pixel in µm, None if unknown.
    labels: index into labels.STRATA of each slice.
    by_reader: the same of each named reader, −1 where there is none.
    read_again: slices that two or more readers labelled.
    disagreements: those on which readers differ.
    deep: whether stored values have more than 8 bit, and are scaled.
    warnings: what is odd but allowed.
  """

  entry: manifest_lib.Entry
  shape: tuple[int, int, int]
  depth_um: tuple[float, ...]
  pixel_um: float | None
  labels: tuple[int, ...]
  read_again: int
  disagreements: int
  deep: bool
  warnings: tuple[str, ...]
  by_reader: Mapping[str, tuple[int, ...]] = dataclasses.field(default_factory=dict)

  @property
  def field_um(self) -> float | None:
    """Side of the square that can be cut from a slice, in µm."""
    return None if self.pixel_um is None else min(self.shape[1:]) * self.pixel_um

  @property
  def for_split(self) -> splits_lib.Stack:
    """What the splits are balanced by."""
    counts = np.bincount(self.labels, minlength=len(labels_lib.STRATA))
    entry = self.entry
    return splits_lib.Stack(entry.stack_id, entry.patient_id, entry.source, tuple(counts.tolist()))


@dataclasses.dataclass(frozen=True)
class Plan:
  """What a run is going to write, or why it cannot.

  Attributes:
    options: how the study was read.
    stacks: all that could be examined.
    split_of: split of each stack_id; empty if there are problems.
    problems: what must be mended, a line each.
    warnings: what is odd but allowed, a line each.
  """

  options: Options
  stacks: tuple[Examined, ...]
  split_of: dict[str, str]
  problems: tuple[str, ...]
  warnings: tuple[str, ...]

  def jobs(self, split: str) -> Iterator[Job]:
    """What `make_record` is to make for a split."""
    for stack in self.stacks:
      if self.split_of[stack.entry.stack_id] == split:
        yield Job(stack, self.options)

  @functools.cached_property
  def fingerprint(self) -> str:
    """Names all that determines the dataset."""
    return staging.fingerprint([
      [job.key, split] for split in splits_lib.SPLITS for job in self.jobs(split)
    ])  # fmt: skip

  def raise_problems(self) -> None:
    """Refuses to go on if anything is wrong.

    Raises:
      UserError: with the first problem and the number of others.
    """
    if self.problems:
      rest = len(self.problems) - 1
      more = f" (and {rest} more, listed above)" if rest else ""
      raise UserError(self.problems[0] + more)


@dataclasses.dataclass(frozen=True)
class Job:
  """One stack to be decoded and packed."""

  stack: Examined
  options: Options

  @functools.cached_property
  def key(self) -> str:
    """Changes with all that the record is made of, the files' sizes and dates included."""
    stack, entry = self.stack, self.stack.entry
    described = [entry.stack_id, entry.patient_id, entry.site, entry.step_um, stack.pixel_um]
    files = sorted(entry.path.iterdir()) if entry.path.is_dir() else [entry.path]
    stamps = [(str(f), f.stat().st_size, f.stat().st_mtime_ns) for f in files if f.is_file()]
    how = (_FORMAT, self.options.value_range, self.options.channel, self.options.compress)
    told = (sorted(entry.columns.items()), sorted(stack.by_reader.items()))
    return staging.fingerprint(how, described, stack.labels, told, stamps)


def make_record(job: Job) -> dict[str, Any]:
  """Decodes a stack to the arguments of `record.stack_record`.

  Raises:
    UserError: if a slice cannot be read.
  """
  entry = job.stack.entry
  with _at_row(entry), _open(entry, job.options) as reader:
    slices = [encode_png(pixels) if job.options.compress else pixels for pixels in reader.once()]
  return {
    "stack_id": entry.stack_id,
    "patient_id": entry.patient_id,
    "site": entry.site,
    "slices": slices,
    "labels": list(job.stack.labels),
    "depth_um": list(job.stack.depth_um),
    "pixel_um": job.stack.pixel_um,
    "columns": dict(entry.columns),
    "readings": job.stack.by_reader,
  }


def make_plan(options: Options, *, decode: bool = False, workers: int | None = None) -> Plan:
  """Reads the CSV files, opens every stack and divides the patients.

  Args:
    options: how the study is to be read.
    decode: decode every slice too, so that damaged ones are found.
    workers: processes that decode, see `staging.in_parallel`.

  Raises:
    UserError: if a CSV as a whole cannot be understood; what is wrong with a row or a
      stack is among the plan's problems.
  """
  problems: list[str] = []
  warnings: list[str] = []
  entries = manifest_lib.read_manifest(
    options.manifest, options.folder, options.labels, problems, warnings, options.columns
  )
  with manifest_lib.collected(problems):
    patients.check(_first_rows(entries), options.distinct_patients)
  examine = functools.partial(_examine, options=options, decode=decode)
  stacks = []
  # Opening takes less time than starting processes does; decoding does not.
  for found in staging.in_parallel(examine, entries, workers=workers if decode else 1):
    if isinstance(found, Examined):
      stacks.append(found)
      warnings.extend(found.warnings)
    elif found:
      problems.append(found)
  warnings.extend(_of_all(stacks, options))
  readings = (reading for entry in entries for reading in entry.readings)
  if unknown := labels_lib.unknown_labels(readings, options.rules.label_map):
    problems.append(unknown)
  split_of: dict[str, str] = {}
  if not problems:
    with manifest_lib.collected(problems):
      split_of = _split(options, stacks, warnings)
  return Plan(options, tuple(stacks), split_of, tuple(problems), tuple(warnings))


def _of_all(stacks: Sequence[Examined], options: Options) -> Iterator[str]:
  """What is odd about stacks beside each other."""
  of_stack = lambda stack: f"'{stack.entry.stack_id}'"
  deep = [stack for stack in stacks if stack.deep]
  if deep and len(deep) < len(stacks) and options.value_range is None:
    yield (
      f"stack {of_stack(deep[0])} and {len(deep) - 1} others have more than 8 bit and are scaled to "
      "their own range, the rest are not; give --value_range to have one scale"
    )
  fields = {stack.field_um: stack for stack in stacks}
  known = sorted(field for field in fields if field is not None)
  if known and None in fields:
    yield (
      f"stack {of_stack(fields[None])} does not tell its pixel size, others do: no model can be "
      "trained on both; give pixel_um in the manifest"
    )
  if known and known[-1] > 1.05 * known[0]:
    yield (
      f"fields of {known[0]:.4g} to {known[-1]:.4g} µm: a model sees one, given by "
      f"--config.data.field_um={known[0]:.4g} --config.data.image_size=PIXELS"
    )


def _first_rows(entries: Sequence[manifest_lib.Entry]) -> dict[str, str]:
  """Where each patient stands first."""
  places: dict[str, str] = {}
  for entry in entries:
    places.setdefault(entry.patient_id, entry.place)
  return places


def _split(options: Options, stacks: Sequence[Examined], warnings: list[str]) -> dict[str, str]:
  sizes = options.split_sizes or splits_lib.PAPER_FRACTIONS
  wanted = splits_lib.targets(sizes, len(stacks))
  obeyed = options.splits.exists()
  if obeyed:
    patient_of = {s.entry.stack_id: s.entry.patient_id for s in stacks}
    split_of = splits_lib.read(options.splits, patient_of, warnings, options.columns)
  else:
    split_of = splits_lib.divide([s.for_split for s in stacks], wanted, options.seed)
  got = tuple(list(split_of.values()).count(split) for split in splits_lib.SPLITS)
  counts = f"{'/'.join(map(str, got))} stacks instead of {'/'.join(map(str, wanted))}"
  if got != wanted and obeyed and options.split_sizes:
    raise UserError(
      f"{options.splits}: {counts} as split_sizes asks for; give no split_sizes to have the file "
      "obeyed, or remove it to have a new one made"
    )
  empty = [s for s, count, size in zip(splits_lib.SPLITS, got, sizes) if not count and size]
  if empty:
    raise UserError(
      f"{options.splits if obeyed else 'splits'}: no stack is in {' or '.join(empty)}; give "
      f"--split_sizes={','.join(map(str, got))} if that is meant"
    )
  if got != wanted and not obeyed:
    warnings.append(f"splits: {counts}: whole patients come no nearer")
  return split_of


def _open(entry: manifest_lib.Entry, options: Options) -> stack_io.StackReader:
  return stack_io.open_stack(
    entry.path,
    step_um=entry.step_um,
    pixel_um=entry.pixel_um,
    value_range=options.value_range,
    channel=options.channel,
  )


@contextlib.contextmanager
def _at_row(entry: manifest_lib.Entry) -> Iterator[None]:
  """Adds the manifest's row to an error that names no row."""
  try:
    yield
  except labels_lib.UnknownLabel:
    raise
  except UserError as error:
    places = [row.place for reading in entry.readings for row in reading.rows]
    if str(error).startswith((entry.place, *places)):
      raise
    raise UserError(f"{entry.place}: {error}") from error


def _examine(entry: manifest_lib.Entry, *, options: Options, decode: bool) -> Examined | str:
  """A stack, or the problem with it, empty if it is told elsewhere."""
  try:
    with _at_row(entry), _open(entry, options) as reader:
      readings = (entry.adjudicated,) if entry.adjudicated else entry.readings
      if math.prod(reader.shape) > MAX_PIXELS:
        raise UserError(
          f"{entry.path}: {' x '.join(map(str, reader.shape))} pixels, expected at most "
          f"{MAX_PIXELS:,} in a stack; crop or shrink its slices"
        )
      if decode:
        for _ in reader:
          pass
      merged = labels_lib.merge_readings(
        entry.place, readings, reader.names, reader.depth_um, options.rules
      )
      named = [reading for reading in (*entry.readings, entry.adjudicated) if reading]
      by_reader = {
        reading.reader: tuple(
          labels_lib.labels_of(reading, reader.names, reader.depth_um, options.rules).tolist()
        )
        for reading in named
        if reading.reader
      }
      return Examined(
        entry=entry,
        shape=reader.shape,
        depth_um=tuple(reader.depth_um.tolist()),
        pixel_um=reader.pixel_um,
        labels=tuple(merged.labels.tolist()),
        read_again=merged.read_again,
        disagreements=merged.disagreements,
        deep=reader.deep,
        warnings=(*(f"{entry.place}: {line}" for line in reader.warnings), *merged.warnings),
        by_reader=by_reader,
      )
  except labels_lib.UnknownLabel:
    return ""  # `make_plan` tells those of all stacks at once
  except UserError as error:
    return str(error)
