"""What readers said about a stack, and the one label a slice that comes of it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
import csv
import dataclasses
import difflib
import io
import itertools
import os
import shlex

from jaxtyping import Float, Int
import numpy as np

from tfds_rcm import names as names_lib
from tfds_rcm.errors import UserError
from tfds_rcm.formats.csv_table import Row

STRATA = ("stratum_corneum", "epidermis", "dej", "dermis")  # the labels on disk, shallow to deep
_NAMES = {
  "stratum_corneum": 0, "corneum": 0, "sc": 0,
  "epidermis": 1, "viable_epidermis": 1,
  "dej": 2, "junction": 2, "dermal_epidermal_junction": 2, "dermo_epidermal_junction": 2,
  "dermoepidermal_junction": 2,
  "dermis": 3, "papillary_dermis": 3, "upper_dermis": 3,
}  # fmt: skip
TRANSITIONS = tuple(f"{name}_{unit}" for name in STRATA[1:] for unit in ("um", "index"))


@dataclasses.dataclass(frozen=True)
class Rules:
  """How labels are to be understood; the same for a whole study.

  Attributes:
    label_map: stratum by what stands in the file, besides the strata's own names.
    reader_order: readers by seniority.
    first_slice: number of the shallowest slice in the files, 0 or 1.
  """

  label_map: Mapping[str, int] = dataclasses.field(default_factory=dict)
  reader_order: tuple[str, ...] = ()
  first_slice: int = 0


@dataclasses.dataclass(frozen=True)
class Reading:
  """One reader's rows about one stack: a label a slice, or where the strata begin.

  Attributes:
    reader: name, empty if the file has no such column.
    rows: the rows that say it.
    per_slice: True for a label a slice.
  """

  reader: str
  rows: tuple[Row, ...]
  per_slice: bool = False


@dataclasses.dataclass(frozen=True)
class Merged:
  """One stack's labels.

  Attributes:
    labels: indices into STRATA.
    read_again: slices that two or more readers labelled.
    disagreements: those on which readers differ.
    warnings: what is odd but allowed, with its place.
  """

  labels: Int[np.ndarray, " T"]
  read_again: int
  disagreements: int
  warnings: tuple[str, ...]


class UnknownLabel(UserError):
  """A label that is no stratum's name and stands in no label_map."""


def parse_label_map(text: str) -> dict[str, int]:
  """Reads `0=epidermis,1=dej,2=dermis`: what stands in the file = the stratum it means.

  A part with a comma in it stands in double quotes, as in CSV.

  Raises:
    UserError: if a part is not of that form or names an unknown stratum.
  """
  mapping = {}
  for part in filter(None, map(str.strip, next(csv.reader([text], skipinitialspace=True), ()))):
    given, equals, stratum = part.rpartition("=")
    if not equals or _plain(stratum) not in _NAMES:
      raise UserError(
        f"label_map: {part!r}, expected FOUND=STRATUM with one of {', '.join(STRATA)}"
      )
    mapping[_plain(given)] = _NAMES[_plain(stratum)]
  return mapping


def unknown_labels(readings: Iterable[Reading], label_map: Mapping[str, int]) -> str:
  """One line about all labels that cannot be understood, empty if there are none.

  It ends in the option that would explain them. What a number means nobody can guess, so a
  question mark stands where no stratum's name is similar.
  """
  counts: Counter[str] = Counter()
  written: dict[str, Row] = {}
  for reading in readings:
    for row in reading.rows if reading.per_slice else ():
      text = _plain(row["label"])
      if text and text not in label_map and text not in _NAMES:
        counts[text] += 1
        written.setdefault(text, row)
  if not counts:
    return ""
  told, options = [], []
  for text, count in sorted(counts.items()):
    row = written[text]
    number = row.place.rpartition(" ")[2]
    often = f"{count} rows, first in " if count > 1 else ""
    told.append(f"{row['label']!r} ({often}row {number})")
    near = difflib.get_close_matches(text, _NAMES, n=1, cutoff=0.75)
    options.append(f"{row['label']}={STRATA[_NAMES[near[0]]] if near else '?'}")
  option = io.StringIO()
  csv.writer(option, lineterminator="").writerow(options)
  first = next(iter(written.values()))
  labels = "label" if len(counts) == 1 else "labels"
  return (
    f"{first.place}: unknown {labels}: {', '.join(told)}; say what they mean, one of "
    f"{', '.join(STRATA)}, by {shlex.quote('--label_map=' + option.getvalue())}"
  )


def merge_readings(
  place: str,
  readings: Sequence[Reading],
  names: Sequence[str],
  depth_um: Float[np.ndarray, " T"],
  rules: Rules,
) -> Merged:
  """One label a slice from all readers of a stack.

  The majority decides. Where it ties, the reader who comes first in the rules does (else
  the one who comes first in the file), as a senior reader would: a rule like "the
  shallower stratum" would shift every boundary of a study with two readers.

  Args:
    place: the stack, for messages.
    readings: one or more readers' rows.
    names: where each slice comes from; a label may name a slice by its file.
    depth_um: depth of each slice in µm.
    rules: how to understand them.

  Raises:
    UserError: if a slice has no label or a label no slice, or a cell cannot be understood.
  """
  order = {reader: rank for rank, reader in enumerate(rules.reader_order)}
  readings = sorted(readings, key=lambda r: order.get(r.reader, len(order)))
  warnings, votes = [], []
  for reading in readings:
    labels = labels_of(reading, names, depth_um, rules)
    told = np.flatnonzero(labels >= 0)
    backwards = told[:-1][np.diff(labels[told]) < 0]
    if reading.per_slice and len(backwards):
      who = f" of {reading.reader}" if reading.reader else ""
      at = ", ".join(str(t + rules.first_slice) for t in backwards[:5])
      warnings.append(f"{place}: labels{who} run backwards after slice {at}")
    if not reading.per_slice:
      warnings.extend(_backwards_transitions(reading.rows[0]))
    votes.append(labels)
  merged, disagreements = _majority(np.stack(votes))
  read_again = int(((np.stack(votes) >= 0).sum(0) > 1).sum())
  unlabelled = np.flatnonzero(merged < 0)
  if len(unlabelled):
    shown = ", ".join(str(t + rules.first_slice) for t in unlabelled[:5])
    more = f" and {len(unlabelled) - 5} more" if len(unlabelled) > 5 else ""
    raise UserError(f"{place}: slices {shown}{more} have no label; label them or move them away")
  return Merged(merged, read_again, disagreements, tuple(warnings))


def labels_of(
  reading: Reading, names: Sequence[str], depth_um: Float[np.ndarray, " T"], rules: Rules
) -> Int[np.ndarray, " T"]:
  """Returns what one reader said of each slice, −1 where nothing; see `merge_readings`."""
  read = _slice_labels if reading.per_slice else _transition_labels
  return read(reading, names, depth_um, rules)


def _majority(votes: Int[np.ndarray, "R T"]) -> tuple[Int[np.ndarray, " T"], int]:
  """Most frequent label of each slice, ties to the first reader; −1 where nobody voted."""
  counts = (votes[:, :, None] == np.arange(len(STRATA))).sum(0)  # [T, strata]
  tied = counts == counts.max(1, keepdims=True)
  winners = np.take_along_axis(tied.T, np.maximum(votes, 0), axis=0) & (votes >= 0)
  first = winners.argmax(0)
  merged = np.where(winners.any(0), votes[first, np.arange(votes.shape[1])], -1)
  return merged, int(((counts > 0).sum(1) > 1).sum())


def _slice_labels(
  reading: Reading, names: Sequence[str], depth_um: Float[np.ndarray, " T"], rules: Rules
) -> Int[np.ndarray, " T"]:
  del depth_um
  labels = np.full(len(names), -1)
  for row in reading.rows:
    if any(row[name] for name in TRANSITIONS):
      raise UserError(
        f"{row.place}: a transition, but other rows label slices of this stack; keep one way a reader"
      )
    t = _slice_index(row, names, rules.first_slice)
    if labels[t] >= 0:
      raise UserError(f"{row.place}: slice {row['slice']} has a label already; remove one")
    labels[t] = _stratum(row, rules.label_map)
  return labels


def _slice_index(row: Row, names: Sequence[str], first_slice: int) -> int:
  text = row["slice"]
  if not text:
    raise UserError(f"{row.place}: slice is empty; fill it in")
  if text.isdecimal():
    t = int(text) - first_slice
    if 0 <= t < len(names):
      return t
    hint = "; if the file counts from 1, give --first_slice=1" if t == len(names) else ""
    raise UserError(
      f"{row.place}: slice {text} does not exist, the stack's slices are {first_slice} to "
      f"{len(names) - 1 + first_slice}{hint}"
    )
  written = row.raw.get("slice", text)
  files = [os.path.basename(name) for name in names]
  for known in (files, [os.path.splitext(name)[0] for name in files]):
    if written in known:
      return known.index(written)
    alike = [t for t, name in enumerate(known) if names_lib.keys(name) & names_lib.keys(written)]
    if len(alike) == 1:
      return alike[0]
  raise UserError(f"{row.place}: slice {text!r} is neither a number nor a file of the stack")


def _transition_labels(
  reading: Reading, names: Sequence[str], depth_um: Float[np.ndarray, " T"], rules: Rules
) -> Int[np.ndarray, " T"]:
  if len(reading.rows) > 1:
    raise UserError(f"{reading.rows[1].place}: a second row for this stack; remove one")
  [row] = reading.rows
  starts = _starts(row, depth_um, rules.first_slice)
  if not starts:
    raise UserError(f"{row.place}: no transition is given; fill in one of {', '.join(TRANSITIONS)}")
  # A stack begins in the stratum above the first transition that the file can express.
  labels = np.full(len(names), min(starts) - 1)
  for stratum, start in sorted(starts.items()):
    labels[start:] = np.maximum(labels[start:], stratum)
  return labels


def _starts(row: Row, depth_um: Float[np.ndarray, " T"], first_slice: int) -> dict[int, int]:
  """First slice of each stratum whose transition the row gives."""
  starts = {}
  for stratum, name in enumerate(STRATA[1:], start=1):
    index, um = row.number(f"{name}_index"), row.number(f"{name}_um")
    if index is not None and um is not None:
      raise UserError(f"{row.place}: both {name}_index and {name}_um are given; leave one empty")
    if index is not None:
      if index != int(index) or not 0 <= index - first_slice < len(depth_um):
        raise UserError(
          f"{row.place}: {name}_index {row[f'{name}_index']} does not exist, the stack's slices "
          f"are {first_slice} to {len(depth_um) - 1 + first_slice}; leave it empty if never reached"
        )
      starts[stratum] = int(index) - first_slice
    elif um is not None:
      if not 0 <= um <= depth_um[-1] + 1e-6:
        raise UserError(
          f"{row.place}: {name}_um {row[f'{name}_um']} lies outside the stack (0 to "
          f"{depth_um[-1]:g} µm); leave it empty if never reached"
        )
      starts[stratum] = int(np.searchsorted(depth_um, um - 1e-6))
  return starts


def _backwards_transitions(row: Row) -> list[str]:
  for unit in ("um", "index"):
    given = [(name, row.number(f"{name}_{unit}")) for name in STRATA[1:]]
    given = [(name, value) for name, value in given if value is not None]
    for (above, a), (below, b) in itertools.pairwise(given):
      if b < a:
        return [
          f"{row.place}: transitions run backwards: {below}_{unit} {b:g} lies above "
          f"{above}_{unit} {a:g}; {above} is left out there"
        ]
  return []


def _stratum(row: Row, label_map: Mapping[str, int]) -> int:
  text = _plain(row["label"])
  if text in label_map:
    return label_map[text]
  if text in _NAMES:
    return _NAMES[text]
  if not text:
    raise UserError(f"{row.place}: label is empty; fill it in")
  raise UnknownLabel(unknown_labels([Reading("", (row,), per_slice=True)], label_map))


def _plain(text: str) -> str:
  text = "_".join(text.lower().replace("-", " ").replace("_", " ").split())
  return text.removesuffix(".0")  # spreadsheets turn 2 into 2.0
