"""Trainings that can be stopped or killed at any moment, and then go on from their last saved state.

A training is a row of legs (an epoch, some epochs). Between two of them its state is saved if that
costs less than 1 % of the time, or if the process was asked to stop. What a finished training leaves
is its best parameters and `history.json`, written last.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
import json
import pathlib
import shutil
from typing import Any, TypeVar

from rcm_jax.runtime import devices, files, preemption
from rcm_jax.runtime.checkpoints import Checkpoints, save_tree

HISTORY = "history.json"
_CHECKPOINTS = "checkpoints"
State = TypeVar("State")


class Session:
  """What a leg may ask of the training that it belongs to.

  Args:
    checkpoints: where states are saved.
    name: of the stage.
    unit: what steps are counted in, "step" or "epoch".
    total: steps in all.
  """

  def __init__(self, checkpoints: Checkpoints, name: str, unit: str, total: int):
    self._checkpoints, self._name, self._unit, self._total = checkpoints, name, unit, total

  def kept(self) -> str:
    """Says where a training that has to end could go on."""
    return self._checkpoints.kept(self._unit)

  def save(self, done: int, tree: Any) -> None:
    """Saves a state, and ends the training where it was asked to stop.

    Raises:
      preemption.Preempted: it was, and the state is on disk.
    """
    self._checkpoints.save(done, tree)
    if devices.any_process(preemption.asked()):
      self._checkpoints.wait()
      raise preemption.Preempted(f"in {self._name}, after {self._unit} {done} of {self._total}")


def finished(directory: pathlib.Path) -> bool:
  """Whether a training has ended here, and was perhaps killed before its result was sealed."""
  if not (directory / HISTORY).exists():
    return False
  shutil.rmtree(directory / _CHECKPOINTS, ignore_errors=True)
  return True


def run(
  leg: Callable[[int, State, Session], tuple[int, State]],
  directory: pathlib.Path,
  like: Any,
  start: Callable[[], State],
  *,
  name: str,
  unit: str,
  total: int,
  about: Mapping[str, Any],
  resumed: Callable[[int], None] = lambda done: None,
  to_tree: Callable[[State], Any] = lambda state: state,
  from_tree: Callable[[Any], State] = lambda tree: tree,
) -> State:
  """Returns the state after all legs; those that were saved in `directory` are not run again.

  Args:
    leg: (steps done, state, session) → (steps done, state): one part of the training, between two
      looks at whether to save or to stop.
    directory: of the stage.
    like: a tree with the shapes and types of what is saved.
    start: makes the first state, where nothing was saved.
    name: of the stage, for messages.
    unit: what steps are counted in, "step" or "epoch".
    total: steps in all.
    about: JSON that every saved state carries.
    resumed: called with the steps that need not be done again.
    to_tree: what to save of a state.
    from_tree: the state that was saved.

  Raises:
    preemption.Preempted: the process was asked to stop, and the state is saved.
  """
  with (
    preemption.at_safe_points(),
    Checkpoints(directory / _CHECKPOINTS, about=about) as checkpoints,
  ):
    session = Session(checkpoints, name, unit, total)
    found = checkpoints.restore(like)
    done, state = (0, start()) if found is None else (found[0], from_tree(found[1]))
    resumed(done)
    while done < total:
      done, state = leg(done, state, session)
      if devices.any_process(preemption.asked() or checkpoints.affordable):
        session.save(done, to_tree(state))
  return state


def finish(
  directory: pathlib.Path, trees: Mapping[str, Any], history: Callable[[], Mapping[str, Any]]
) -> None:
  """Writes a training's result; all processes must call it.

  Args:
    directory: of the stage; its saved states are removed.
    trees: parameters by the name that they get.
    history: called on the first process alone, JSON of how the training went.
  """
  for name, tree in trees.items():
    save_tree(directory / name, tree)
  if devices.is_first():
    files.write_text(directory / HISTORY, json.dumps(history()))
    shutil.rmtree(directory / _CHECKPOINTS)
