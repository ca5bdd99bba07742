"""What each reader of a study said, reader by reader, for comparison; nothing is merged here."""

from __future__ import annotations

from collections.abc import Mapping
import dataclasses
import pathlib

from jaxtyping import Float, Int
import numpy as np

from tfds_rcm import stack_io
from tfds_rcm.errors import UserError
from tfds_rcm.labelling import answers, files, journal
from tfds_rcm.study import annotations as labels_lib
from tfds_rcm.study import manifest as manifest_lib


@dataclasses.dataclass(frozen=True)
class ReadStack:
  """A stack and what was said about it.

  Attributes:
    stack_id: its name.
    patient_id: whose skin.
    site: where on the body, may be empty.
    depth_um: depth of each of T slices in µm.
    by_reader: index into labels.STRATA of each slice, by reader.
    adjudicated: the labels of a reader who had seen the others', None if nobody decided.
    consensus: what `tfds_rcm.prepare` makes of them: adjudicated, else the majority.
  """

  stack_id: str
  patient_id: str
  site: str
  depth_um: Float[np.ndarray, " T"]
  by_reader: Mapping[str, Int[np.ndarray, " T"]]
  adjudicated: Int[np.ndarray, " T"] | None
  consensus: Int[np.ndarray, " T"]

  @property
  def differing(self) -> float:
    """Share of the slices on which its readers differ, corneum counted as epidermis."""
    votes = merged_classes(np.stack(list(self.by_reader.values())))
    return float((votes != votes[0]).any(0).mean())


@dataclasses.dataclass(frozen=True)
class Journals:
  """What only the label page's logs tell.

  Attributes:
    repeated: a reader's first and second labels of stacks that came twice, by reader and stack_id.
    predictions: stacks by what the reader had seen of a model (`journal.NO`, …), by reader.
    unreadable: reason by reader and stack_id.
    open: drafts by reader.
  """

  repeated: Mapping[str, Mapping[str, tuple[Int[np.ndarray, " T"], Int[np.ndarray, " T"]]]]
  predictions: Mapping[str, Mapping[str, int]]
  unreadable: Mapping[str, Mapping[str, str]]
  open: Mapping[str, int]


def read_study(
  manifest: pathlib.Path,
  labels: pathlib.Path | None,
  rules: labels_lib.Rules,
  notes: list[str],
) -> list[ReadStack]:
  """Reads every reader's labels of every stack that has any.

  Args:
    manifest: the CSV of the stacks.
    labels: the CSV of the labels or a folder of them, None if the manifest tells them.
    rules: how labels are to be understood.
    notes: where it is noted what was left out, and what is odd.

  Raises:
    UserError: with the first of the problems, if a row or a stack cannot be understood.
  """
  problems: list[str] = []
  entries = manifest_lib.read_manifest(manifest, manifest.parent, labels, problems, notes)
  stacks = []
  for entry in entries:
    with manifest_lib.collected(problems):
      stacks.append(_read(entry, rules, notes))
  if problems:
    more = f" (and {len(problems) - 1} more)" if len(problems) > 1 else ""
    raise UserError(problems[0] + more)
  return stacks


def _read(entry: manifest_lib.Entry, rules: labels_lib.Rules, notes: list[str]) -> ReadStack:
  with stack_io.open_stack(entry.path, step_um=entry.step_um, pixel_um=entry.pixel_um) as reader:

    def merged(readings, odd=None):
      found = labels_lib.merge_readings(entry.place, readings, reader.names, reader.depth_um, rules)
      if odd is not None:
        odd.extend(found.warnings)
      return found.labels

    decided = [entry.adjudicated] if entry.adjudicated else []
    return ReadStack(
      stack_id=entry.stack_id,
      patient_id=entry.patient_id,
      site=entry.site,
      depth_um=reader.depth_um,
      by_reader={r.reader or "(unnamed)": merged([r], notes) for r in entry.readings},
      adjudicated=merged(decided) if decided else None,
      consensus=merged(decided or entry.readings),
    )


def read_journals(folder: pathlib.Path) -> Journals:
  """Reads the logs of a folder of labels; empty without any.

  Raises:
    UserError: a log is damaged.
  """
  found = Journals({}, {}, {}, {})
  for path in sorted(folder.glob(f"*{journal.LOG_SUFFIX}")):
    reader = path.name.removesuffix(journal.LOG_SUFFIX)
    state = journal.fold(files.read_log(path), str(path))
    repeated, seen, unreadable, drafts = {}, {}, {}, 0
    for (stack_id, reading), entry in state.items():
      if reading == journal.SECOND:
        first = state.get((stack_id, journal.FIRST))
        done = first and {first.answer.state, entry.answer.state} == {answers.DONE}
        if done and first.count == entry.count:
          repeated[stack_id] = tuple(
            np.array(e.answer.strata(e.count), np.int64) for e in (first, entry)
          )
        continue
      if entry.answer.state == answers.DRAFT:
        drafts += not entry.answer.empty
        continue
      seen[entry.predictions] = seen.get(entry.predictions, 0) + 1
      if entry.answer.state == answers.UNREADABLE:
        unreadable[stack_id] = entry.answer.reason
    found.repeated[reader], found.predictions[reader] = repeated, seen
    found.unreadable[reader], found.open[reader] = unreadable, drafts
  return found


def merged_classes(labels: Int[np.ndarray, "*shape"]) -> Int[np.ndarray, "*shape"]:
  """Epidermis 0, DEJ 1, dermis 2: corneum and viable epidermis are one, as in the paper."""
  return np.maximum(labels - 1, 0)
