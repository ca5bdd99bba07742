"""A reader's session: what the page asks for, answered with JSON values; no HTTP in here."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
import dataclasses
import string
from typing import Any

from jaxtyping import Int
import numpy as np

from tfds_rcm.errors import UserError
from tfds_rcm.labelling import answers, journal, predictions, stacks
from tfds_rcm.study.annotations import STRATA

NEW = "new"  # nothing has been said about the stack yet


@dataclasses.dataclass(frozen=True)
class Session:
  """One reader labelling one study.

  Readings are called by their number in the reader's order, and by nothing else: a stack's name
  may tell the patient, and that it comes a second time.

  Attributes:
    journal: where answers go.
    slices: the stacks.
    plan: the readings in order.
    corneum: whether stratum corneum is labelled apart from the viable epidermis.
    predictions: a model's answers by stack_id.
    others: other readers' labels by stack_id, for a reader who decides between them.
  """

  journal: journal.Journal
  slices: stacks.Slices
  plan: Sequence[journal.Key]
  corneum: bool = False
  predictions: Mapping[str, predictions.Prediction] = dataclasses.field(default_factory=dict)
  others: Mapping[str, Sequence[Int[np.ndarray, " T"]]] = dataclasses.field(default_factory=dict)

  def overview(self) -> dict[str, Any]:
    """The reader, the strata and the state of every reading."""
    return {
      "reader": self.journal.reader,
      "strata": STRATA,
      "corneum": self.corneum,
      "adjudicating": bool(self.others),
      "states": [self._state(self.journal[key]) for key in self.plan],
    }

  def find(self, stack_id: str) -> int:
    """Number of a stack's first reading.

    Raises:
      KeyError: it is not among them.
    """
    for number, key in enumerate(self.plan):
      if key == (stack_id, journal.FIRST):
        return number
    raise KeyError(stack_id)

  def task(self, number: int) -> dict[str, Any]:
    """All that the page shows of a stack, but for its slices.

    Raises:
      IndexError: there is no such reading.
      UserError: the stack cannot be read.
    """
    key = self._key(number)
    shown = self.slices.shown(key[0])
    others = self.others.get(key[0], ())
    return {
      **dataclasses.asdict(shown),
      **self._entry(self.journal[key]),
      "can_predict": key[0] in self.predictions,
      "prediction": self._prediction(key) if self.journal[key].predictions != journal.NO else None,
      "others": [
        {"name": letter, "labels": labels.tolist()}
        for letter, labels in zip(string.ascii_uppercase, others)
      ],
    }

  def png(self, number: int, t: int) -> tuple[bytes, tuple[int, int]]:
    """A slice, see `stacks.Slices.png`.

    Raises:
      IndexError: there is no such reading or slice.
      UserError: it cannot be read.
    """
    return self.slices.png(self._key(number)[0], t)

  def answer(self, number: int, values: Any) -> dict[str, Any]:
    """Saves an answer: `{"revision": …, "answer": …, "window": …}`.

    Raises:
      IndexError: there is no such reading.
      UserError: it is no answer.
      journal.Conflict: another window changed the stack first.
      OSError: it cannot be written.
    """
    key = self._key(number)
    if not isinstance(values, dict) or not isinstance(values.get("revision"), int):
      raise UserError("an answer needs a revision")
    count = self.slices.shown(key[0]).count
    answer = answers.parse(values.get("answer"), count, "answer")
    window = str(values.get("window", ""))[:40]
    return self._entry(self.journal.save(key, answer, count, values["revision"], window))

  def show_prediction(self, number: int, window: str) -> dict[str, Any]:
    """Notes that the reader asked for the model's answer, then gives it.

    Raises:
      IndexError: there is no such reading.
      UserError: there is no prediction, or one of other slices.
      OSError: it cannot be noted.
    """
    key = self._key(number)
    prediction = self._prediction(key)
    entry = self.journal[key]
    if entry.predictions == journal.NO:
      entry = self.journal.show_predictions(key, window[:40])
    return {**self._entry(entry), "prediction": prediction}

  def conflict(self, error: journal.Conflict) -> dict[str, Any]:
    """What another window left, for the page that comes too late."""
    return self._entry(error.entry)

  def _key(self, number: int) -> journal.Key:
    if not 0 <= number < len(self.plan):
      raise IndexError(number)
    return self.plan[number]

  def _state(self, entry: journal.Entry) -> str:
    if entry.answer.state == answers.DRAFT and entry.answer.empty:
      return NEW
    return entry.answer.state

  def _entry(self, entry: journal.Entry) -> dict[str, Any]:
    first = entry.answer
    if not entry.revision and self.corneum:
      first = dataclasses.replace(first, starts=(None, None, None))
    return {
      "answer": first.as_json(),
      "revision": entry.revision,
      "state": self._state(entry),
      "predictions": entry.predictions,
    }

  def _prediction(self, key: journal.Key) -> dict[str, Any]:
    found = self.predictions.get(key[0])
    if found is None:
      raise UserError("there is no prediction of this stack")
    count = self.slices.shown(key[0]).count
    if len(found.labels) != count:
      raise UserError(
        f"{found.path}: of {len(found.labels)} slices, the stack has {count}; predict it again"
      )
    return {
      "labels": found.labels,
      "boundaries": found.boundaries,
      "method": found.method,
      "warnings": found.warnings,
    }
