"""Labelled stacks, read by a finished model as `rcm_jax.predict` reads them; nothing is learned."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
import dataclasses

import numpy as np

from rcm_jax.data.labelled import LabelledStack
from rcm_jax.evaluation.predictions import StackPrediction
from rcm_jax.inference import seen_patients
from rcm_jax.inference.description import Description
from rcm_jax.inference.predictor import Prediction, Predictor
from tfds_rcm.errors import UserError


@dataclasses.dataclass(frozen=True)
class ReadStack:
  """A stack and what the model says of it.

  Attributes:
    known: the stack, without its images.
    said: the model's answer.
    seen: whether the model has learned from this patient; None where it does not tell from whom.
  """

  known: LabelledStack
  said: Prediction
  seen: bool | None

  def prediction(self, name: str, sees: str, ordered: bool) -> StackPrediction:
    """Returns it as a line-by-line prediction of a method `name`; whatever its split, it tests."""
    return StackPrediction(
      method=name,
      input=sees,
      seed=0,
      split="test",
      stack_id=self.known.stack_id,
      patient_id=self.known.patient_id,
      depth_um=self.known.depth_um,
      labels=self.known.labels,
      probabilities=self.said.averaged,
      ordered=ordered,
    )


def read(
  predictor: Predictor,
  stacks: Iterable[LabelledStack],
  source: str,
  advance: Callable[[], None] = lambda: None,
) -> tuple[list[ReadStack], list[str]]:
  """Reads stacks, each by itself.

  Args:
    predictor: of the model.
    stacks: to be read.
    source: that they come from, as `seen_patients.people` takes it.
    advance: called after each stack.

  Returns:
    What was read, and a line for each stack that the model cannot read.

  Raises:
    UserError: the model reads none of them.
  """
  description, found, faults = predictor.bundle.description, [], []
  for stack in stacks:
    try:
      said = predictor.predict(stack.slices, stack.depth_um, pixel_um=stack.pixel_um)
    except UserError as error:
      faults.append(f"stack '{stack.stack_id}': {error}")
    else:
      known = dataclasses.replace(stack, slices=stack.slices[:0])
      found.append(ReadStack(known, said, _seen(description, source, stack.patient_id)))
    advance()
  if not found:
    raise UserError(f"--source={source}: the model can read no stack; the first: {faults[0]}")
  return found, faults


def _seen(description: Description, source: str, patient_id: str) -> bool | None:
  if not description.patients:
    return None
  [person] = seen_patients.people([source], [patient_id])
  return seen_patients.has_seen(description.patients, person)


def relabelled(stacks: Sequence[ReadStack], reader: str) -> list[ReadStack]:
  """Returns the stacks that one reader has labelled throughout, with that one's labels."""
  return [
    dataclasses.replace(s, known=dataclasses.replace(s.known, labels=labels.astype(np.int32)))
    for s in stacks
    if (labels := s.known.readings.get(reader)) is not None and (labels >= 0).all()
  ]
