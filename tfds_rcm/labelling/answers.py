"""What a reader says about a stack, and the labels that follow from it."""

from __future__ import annotations

from collections.abc import Mapping
import dataclasses
from typing import Any

from tfds_rcm.errors import UserError
from tfds_rcm.study.annotations import STRATA

DRAFT, DONE, UNREADABLE = "draft", "done", "unreadable"
STATES = (DRAFT, DONE, UNREADABLE)
NOT_LABELLED = -1
_MAX_TEXT = 2000


@dataclasses.dataclass(frozen=True)
class Answer:
  """One reader's answer about one stack of T slices.

  Attributes:
    state: draft, done or unreadable.
    starts: first slice of epidermis, DEJ and dermis; None while undecided, T if the stratum is
      never reached. Counts if `labels` is None.
    labels: index into STRATA of each slice, −1 while undecided, for stacks that do not
      follow the order; None for those that do.
    reason: why the stack cannot be read, empty otherwise.
    note: whatever the reader wants to say.
  """

  state: str = DRAFT
  starts: tuple[int | None, int | None, int | None] = (0, None, None)
  labels: tuple[int, ...] | None = None
  reason: str = ""
  note: str = ""

  @property
  def empty(self) -> bool:
    """Whether nothing has been said yet."""
    return self == Answer(starts=(self.starts[0], None, None))

  def strata(self, count: int) -> tuple[int, ...]:
    """Index into STRATA of each of `count` slices, −1 where it is undecided."""
    if self.labels is not None:
      return self.labels
    found = []
    for t in range(count):
      label, decided = 0, True
      for stratum, start in enumerate(self.starts, start=1):
        if start is None:
          decided = False  # until a deeper boundary says more
        elif t >= start:
          label, decided = stratum, True
        else:
          break
      found.append(label if decided else NOT_LABELLED)
    return tuple(found)

  def as_json(self) -> dict[str, Any]:
    """JSON values that `parse` understands."""
    return dataclasses.asdict(self)


def parse(values: Any, count: int, place: str) -> Answer:
  """Checks an answer about a stack of `count` slices.

  Raises:
    UserError: it cannot be one, or is called done and is not.
  """

  def refuse(what: str) -> UserError:
    return UserError(f"{place}: {what}")

  if not isinstance(values, Mapping):
    raise refuse("an answer must be an object")
  known = {field.name for field in dataclasses.fields(Answer)}
  if unknown := sorted(set(values) - known):
    raise refuse(f"unknown field {unknown[0]!r} in an answer; expected {', '.join(sorted(known))}")
  state, reason, note = (values.get(name, "") for name in ("state", "reason", "note"))
  if state not in STATES:
    raise refuse(f"state is {state!r}, expected one of {', '.join(STATES)}")
  for name, text in (("reason", reason), ("note", note)):
    if not isinstance(text, str) or len(text) > _MAX_TEXT:
      raise refuse(f"{name} must be a text of at most {_MAX_TEXT} characters")
  starts = values.get("starts", [0, None, None])
  if not isinstance(starts, list | tuple) or len(starts) != len(STRATA) - 1:
    raise refuse(f"starts must be {len(STRATA) - 1} slices or null")
  for start in starts:
    if start is not None and not _is_index(start, 0, count):
      raise refuse(f"a stratum starts at {start!r}, expected 0 to {count}")
  told = [start for start in starts if start is not None]
  if told != sorted(told):
    raise refuse(f"strata start at {told}, expected rising slices")
  labels = values.get("labels")
  if labels is not None:
    if not isinstance(labels, list | tuple) or len(labels) != count:
      raise refuse(f"labels must be {count} strata, a slice each")
    if not all(_is_index(label, NOT_LABELLED, len(STRATA) - 1) for label in labels):
      raise refuse(f"a label must be {NOT_LABELLED} to {len(STRATA) - 1}")
  answer = Answer(
    state, tuple(starts), None if labels is None else tuple(labels), reason.strip(), note.strip()
  )
  if state == DONE and NOT_LABELLED in answer.strata(count):
    raise refuse("done, but not every slice has a label; set the boundaries that are missing")
  if (state == UNREADABLE) != bool(answer.reason):
    raise refuse("a reason belongs to a stack that cannot be read, and to no other")
  return answer


def _is_index(value: Any, low: int, high: int) -> bool:
  return isinstance(value, int) and not isinstance(value, bool) and low <= value <= high
