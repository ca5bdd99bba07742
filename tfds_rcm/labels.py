"""What readers said about a stack, and the one label a slice that comes of it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
import dataclasses
import itertools

from jaxtyping import Float, Int
import numpy as np

from tfds_rcm.errors import UserError
from tfds_rcm.tables import Row

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
  """

  reader: str
  rows: tuple[Row, ...]


@dataclasses.dataclass(frozen=True)
class Merged:
  """One stack's labels.

  Attributes:
    labels: indices into STRATA.
    disagreements: slices on which readers differ.
    warnings: what is odd but allowed, with its place.
  """

  labels: Int[np.ndarray, " T"]
  disagreements: int
  warnings: tuple[str, ...]


def parse_label_map(text: str) -> dict[str, int]:
  """Reads `0=epidermis,1=dej,2=dermis`: what stands in the file = the stratum it means.

  Raises:
    UserError: if a part is not of that form or names an unknown stratum.
  """
  mapping = {}
  for part in filter(None, (p.strip() for p in text.split(","))):
    given, equals, stratum = part.partition("=")
    if not equals or _plain(stratum) not in _NAMES:
      raise UserError(
        f"label_map: {part!r}, expected FOUND=STRATUM with one of {', '.join(STRATA)}"
      )
    mapping[_plain(given)] = _NAMES[_plain(stratum)]
  return mapping


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
    per_slice = "slice" in reading.rows[0].cells
    read = _slice_labels if per_slice else _transition_labels
    labels = read(reading, names, depth_um, rules)
    told = np.flatnonzero(labels >= 0)
    backwards = told[:-1][np.diff(labels[told]) < 0]
    if per_slice and len(backwards):
      who = f" of {reading.reader}" if reading.reader else ""
      at = ", ".join(str(t + rules.first_slice) for t in backwards[:5])
      warnings.append(f"{place}: labels{who} run backwards after slice {at}")
    if not per_slice:
      warnings.extend(_backwards_transitions(reading.rows[0]))
    votes.append(labels)
  merged, disagreements = _majority(np.stack(votes))
  unlabelled = np.flatnonzero(merged < 0)
  if len(unlabelled):
    shown = ", ".join(str(t + rules.first_slice) for t in unlabelled[:5])
    more = f" and {len(unlabelled) - 5} more" if len(unlabelled) > 5 else ""
    raise UserError(f"{place}: slices {shown}{more} have no label; label them or move them away")
  return Merged(merged, disagreements, tuple(warnings))


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
    t = _slice_index(row, names, rules.first_slice)
    if labels[t] >= 0:
      raise UserError(f"{row.place}: slice {row['slice']} has a label already; remove one")
    labels[t] = _stratum(row, rules.label_map)
  return labels


def _slice_index(row: Row, names: Sequence[str], first_slice: int) -> int:
  text = row["slice"]
  if text.isdecimal():
    t = int(text) - first_slice
    if 0 <= t < len(names):
      return t
    hint = "; if the file counts from 1, give --first_slice=1" if t == len(names) else ""
    raise UserError(
      f"{row.place}: slice {text} does not exist, the stack's slices are {first_slice} to "
      f"{len(names) - 1 + first_slice}{hint}"
    )
  files = [name.replace("\\", "/").rpartition("/")[2] for name in names]
  if text in files:
    return files.index(text)
  stems = [name.rpartition(".")[0] for name in files]
  if text in stems:
    return stems.index(text)
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
  hint = (
    f"say what it means, for example --label_map={row['label']}=epidermis" if text else "fill it in"
  )
  raise UserError(f"{row.place}: label {row['label']!r} is unknown; {hint}")


def _plain(text: str) -> str:
  text = "_".join(text.lower().replace("-", " ").replace("_", " ").split())
  return text.removesuffix(".0")  # spreadsheets turn 2 into 2.0
