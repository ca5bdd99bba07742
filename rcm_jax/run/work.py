"""What jobs need to know of a method before it runs: what it shares with others, what it costs."""

from __future__ import annotations

from collections.abc import Callable, Mapping
import dataclasses
from typing import Any, NamedTuple

from rcm_jax.run import stages


class Work(NamedTuple):
  """What a method computes beyond the CNN of its settings and that CNN's features.

  Attributes:
    train_passes: forward passes of the CNN over the training slices; a training step costs three.
    other_passes: the same over all other slices.
    head_trainings: trainings of heads, each of all members.
    encodings: dense encodings of all slices' textures.
  """

  train_passes: int = 0
  other_passes: int = 0
  head_trainings: int = 0
  encodings: int = 0


@dataclasses.dataclass(frozen=True)
class Method:
  """A kind of model: what it does with a run, and what jobs need to know of it beforehand.

  Attributes:
    run: run → its result.
    work: a configuration's fields by dotted name → what it computes.
    trains_members: whether its heads are members of one program, see `configs/base.py`.
    shared: beginnings of the fields that determine what it shares with other jobs, the CNN's
      features; empty where there is nothing to share.
  """

  run: Callable[[stages.Run], stages.Result]
  work: Callable[[Mapping[str, Any]], Work]
  trains_members: bool = False
  shared: tuple[str, ...] = ()

  def __call__(self, run: stages.Run) -> stages.Result:
    return self.run(run)


ON_CNN = ("data.", "cnn.", "augmentation.", "features.", "init")  # what determines a CNN's features


def of_nothing(fields: Mapping[str, Any]) -> Work:
  """Nothing but the CNN and its features."""
  del fields
  return Work()


def of_heads(fields: Mapping[str, Any]) -> Work:
  """One program of heads."""
  del fields
  return Work(head_trainings=1)


def of_cnns(fields: Mapping[str, Any]) -> Work:
  """A CNN a seed, the first of which may be shared."""
  more = len(fields["seeds"]) - 1
  return Work(more * (3 * fields["cnn.epochs"] + 1), more)


def of_views(fields: Mapping[str, Any]) -> Work:
  """Heads on the CNN and on each view of textures."""
  views = fields["textures.views"]
  factors = {factor for view in views for factor in view}
  return Work(head_trainings=1 + len(views), encodings=len(factors))


def of_end_to_end(fields: Mapping[str, Any]) -> Work:
  """Heads first, then both again, and the tuned CNN's features."""
  epochs = fields["end_to_end.epochs"]
  step = 3 + fields["end_to_end.remat"]
  return Work(epochs * step + 1, epochs + 1, head_trainings=1)  # of the others, validation alone


def of_encodings(fields: Mapping[str, Any]) -> Work:
  """A texture classifier a seed."""
  return Work(encodings=len(fields["seeds"]))
