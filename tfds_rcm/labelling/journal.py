"""What one reader has said about a study: labels/NAME.csv, and the log that it is made from.

The log (NAME.log.jsonl) only grows: a line for every change, on the disk before the change counts.
NAME.csv is written anew, whole, after each. It holds the finished stacks, a row a slice
(stack_id, reader, slice, label, note), as `tfds_rcm.prepare` reads labels, and one row for each
stack that cannot be read. Drafts, second readings and what the reader had seen stand in the log.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
import contextlib
import csv
import dataclasses
import datetime
import io
import pathlib
import re
import threading
from typing import Any

from tfds_rcm.errors import UserError
from tfds_rcm.labelling import answers, files
from tfds_rcm.study.annotations import STRATA

COLUMNS = ("stack_id", "reader", "slice", "label", "note")
UNREADABLE = "unreadable"  # stands in the column label, with no slice
LOG_SUFFIX = ".log.jsonl"
FIRST, SECOND = 1, 2  # a stack's first and second reading
NO, AFTER, BEFORE, REVISED = "no", "after", "before", "revised"

Key = tuple[str, int]  # stack_id, FIRST or SECOND


class Conflict(Exception):
  """Somebody else changed the stack first; carries what it is now."""

  def __init__(self, entry: Entry):
    super().__init__("changed in another window")
    self.entry = entry


@dataclasses.dataclass(frozen=True)
class Entry:
  """What stands about one reading of a stack.

  Attributes:
    answer: as it is now.
    count: slices of the stack.
    revision: of the answer, 0 before the first change.
    predictions: whether a model's answer was seen: `no`, `after` the reader's own as it
      stands, `before` it, or `revised`: answered, looked, and changed.
    time: of the last change, ISO 8601; empty before the first.
  """

  answer: answers.Answer = dataclasses.field(default_factory=answers.Answer)
  count: int = 0
  revision: int = 0
  predictions: str = NO
  time: str = ""


def check_reader(name: str) -> str:
  """Returns a reader's name if a file can be called so.

  Raises:
    UserError: otherwise.
  """
  if not re.fullmatch(r"[^\W_][\w-]{0,63}", name):
    raise UserError(
      f"--reader={name}: expected a name of letters, digits, - and _, at most 64 of them"
    )
  return name


def fold(lines: Iterable[Mapping[str, Any]], place: str) -> dict[Key, Entry]:
  """The state that a log's lines lead to.

  Raises:
    UserError: a line does not say what a log's line says.
  """
  state: dict[Key, Entry] = {}
  for number, line in enumerate(lines, start=1):
    if line.get("event") != "start":
      where = f"{place}, line {number}"
      key = line.get("stack_id"), line.get("reading")
      if not isinstance(key[0], str) or key[1] not in (FIRST, SECOND):
        raise UserError(f"{where}: names no stack; restore the file from a copy")
      state[key] = _advance(state.get(key, Entry()), line, where)
  return state


def _advance(old: Entry, line: Mapping[str, Any], where: str) -> Entry:
  """What a stack's entry becomes by one line."""
  if line.get("event") == "predictions":
    seen = old.predictions
    if seen == NO:
      seen = BEFORE if old.answer.state == answers.DRAFT else AFTER
    return dataclasses.replace(old, predictions=seen)
  count = line.get("count")
  if line.get("event") != "answer" or not isinstance(count, int) or not 0 < count < 1_000_000:
    raise UserError(f"{where}: not a line of a label log; restore the file from a copy")
  answer = answers.parse(line.get("answer"), count, where)
  seen = old.predictions
  if seen == AFTER and _said(answer) != _said(old.answer):
    seen = REVISED
  return Entry(answer, count, old.revision + 1, seen, str(line.get("time", "")))


def _said(answer: answers.Answer) -> answers.Answer:
  return dataclasses.replace(answer, note="")


def to_csv(state: Mapping[Key, Entry], reader: str) -> str:
  """First readings that are finished, as labels.csv has them."""
  of_stacks = (
    rows(key[0], reader, entry) for key, entry in sorted(state.items()) if key[1] == FIRST
  )
  return _joined(of_stacks)


def rows(stack_id: str, reader: str, entry: Entry) -> str:
  """One stack's lines of the CSV; none for a draft."""
  text = io.StringIO()
  writer = csv.writer(text, lineterminator="\n")
  answer, note = entry.answer, _one_line(entry.answer.note)
  if answer.state == answers.UNREADABLE:
    reason = _one_line(answer.reason)
    said = f"{reason}; {note}" if note else reason
    writer.writerow((stack_id, reader, "", UNREADABLE, said))
  elif answer.state == answers.DONE:
    for t, label in enumerate(answer.strata(entry.count)):
      writer.writerow((stack_id, reader, t, STRATA[label], "" if t else note))
  return text.getvalue()


def _joined(of_stacks: Iterable[str]) -> str:
  return ",".join(COLUMNS) + "\n" + "".join(of_stacks)


def _one_line(text: str) -> str:
  return " ".join(text.split())


class Journal:
  """One reader's answers, saved at once. One process holds it; safe for several threads."""

  def __init__(self, folder: pathlib.Path, reader: str):
    """Opens a reader's journal, or begins one.

    Args:
      folder: where NAME.csv lies.
      reader: NAME.

    Raises:
      UserError: another process holds it, a file is damaged, or the CSV is not what the log
        leads to, which means that somebody edited it.
    """
    self.reader = check_reader(reader)
    self.path = folder / f"{reader}.csv"
    self._cleanup = contextlib.ExitStack()
    self._cleanup.enter_context(files.held(folder / f".{reader}.lock"))
    try:
      lines = files.read_log(folder / f"{reader}{LOG_SUFFIX}")
      self._state = fold(lines, str(folder / f"{reader}{LOG_SUFFIX}"))
      self._check_csv(lines)
      self._log = files.Log(folder / f"{reader}{LOG_SUFFIX}")
      self._cleanup.callback(self._log.close)
      self._rows = {
        key[0]: rows(key[0], reader, entry) for key, entry in self._state.items() if key[1] == FIRST
      }
      files.write_whole(self.path, to_csv(self._state, reader))
    except BaseException:
      self._cleanup.close()
      raise
    self._mutex = threading.Lock()

  def close(self) -> None:
    """Lets others open it."""
    self._cleanup.close()

  def __getitem__(self, key: Key) -> Entry:
    return self._state.get(key, Entry())

  def started(self, **facts: Any) -> None:
    """Notes that a server began, and with which options."""
    with self._mutex:
      line = {"time": _now(), "event": "start", "reader": self.reader, **facts}
      with self._log.appended(line):
        pass

  def save(
    self, key: Key, answer: answers.Answer, count: int, revision: int, window: str = ""
  ) -> Entry:
    """Replaces an answer; when this returns it is on the disk, in log and CSV.

    Args:
      key: stack and reading.
      answer: a checked one.
      count: slices of the stack.
      revision: of the answer that the reader saw when changing it.
      window: which window it came from, for the log.

    Raises:
      Conflict: the answer has another revision by now, and says something else.
      OSError: the disk is full, or such; nothing has changed then.
    """
    with self._mutex:
      old = self[key]
      if old.revision != revision:
        if old.answer == answer and old.count == count:  # the reply to this change got lost
          return old
        raise Conflict(old)
      line = self._line("answer", key, window) | {
        "revision": revision + 1,
        "count": count,
        "answer": answer.as_json(),
      }
      return self._apply(key, line)

  def show_predictions(self, key: Key, window: str = "") -> Entry:
    """Notes that the reader is about to see the model's answer, before it is shown.

    Raises:
      OSError: the disk is full, or such.
    """
    with self._mutex:
      return self._apply(key, self._line("predictions", key, window))

  def _line(self, event: str, key: Key, window: str) -> dict[str, Any]:
    return {
      "time": _now(), "event": event, "stack_id": key[0], "reading": key[1], "window": window
    }  # fmt: skip

  def _apply(self, key: Key, line: dict[str, Any]) -> Entry:
    """Log first: a kill between the two leaves the CSV one change behind, which is mended."""
    after = _advance(self[key], line, self.reader)
    changed = self._rows | ({key[0]: rows(key[0], self.reader, after)} if key[1] == FIRST else {})
    with self._log.appended(line):
      files.write_whole(self.path, _joined(changed[name] for name in sorted(changed)))
    self._rows, self._state[key] = changed, after
    return after

  def _check_csv(self, lines: list[dict[str, Any]]) -> None:
    """The CSV may be one change behind its log, if the process was killed between the two."""
    if not self.path.exists():
      return
    found = self.path.read_text(encoding="utf-8", errors="replace")
    place = str(self.path)
    for known in (lines, lines[:-1]):
      if found == to_csv(fold(known, place), self.reader):
        return
    raise UserError(
      f"{self.path}: is not what {self.path.stem}{LOG_SUFFIX} beside it leads to, so somebody "
      "changed it; move it elsewhere to go on by the log, or choose another --reader"
    )


def _now() -> str:
  return datetime.datetime.now(datetime.UTC).isoformat(timespec="milliseconds")
