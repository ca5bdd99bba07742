"""Training state on disk: asynchronous, atomic Orbax checkpoints that survive corruption."""

from __future__ import annotations

import pathlib
from typing import Any
import warnings

import jax
from orbax.checkpoint import v1 as ocp


class Checkpoints:
  """The last few states of one training, by step.

  Args:
    directory: where the steps lie; made when missing.
    keep: how many of the newest steps stay.
  """

  def __init__(self, directory: pathlib.Path, *, keep: int = 2):
    directory.mkdir(parents=True, exist_ok=True)
    self._checkpointer = ocp.training.Checkpointer(
      directory.absolute(),
      save_decision_policy=ocp.training.save_decision_policies.FixedIntervalPolicy(1),
      preservation_policy=ocp.training.preservation_policies.LatestN(keep),
      cleanup_tmp_directories=True,
    )

  def save(self, step: int, state: Any) -> None:
    """Starts to write `state`, a pytree of arrays; a copy is taken before this returns."""
    self._checkpointer.save_async(step, state)

  def restore(self, like: Any) -> tuple[int, Any] | None:
    """Returns the newest readable (step, state), or None where there is none.

    Args:
      like: a pytree of arrays or `jax.ShapeDtypeStruct` with the shapes, types and
        shardings wanted, so that a checkpoint fits another number of devices.
    """
    steps = sorted((c.step for c in self._checkpointer.checkpoints), reverse=True)
    for step in steps:
      try:
        state = self._checkpointer.load(step, jax.tree.map(_abstract, like))
        return step, state
      except Exception as error:  # Orbax raises many types for a damaged checkpoint
        reason = str(error).split("\n")[0][:120]
        warnings.warn(
          f"checkpoint of step {step} cannot be read ({reason}); trying the one before",
          stacklevel=2,
        )
        self._checkpointer.delete(step)
    return None

  def close(self) -> None:
    """Waits for pending writes."""
    self._checkpointer.close()

  def __enter__(self) -> Checkpoints:
    return self

  def __exit__(self, *_: object) -> None:
    self.close()


def _abstract(leaf: Any) -> jax.ShapeDtypeStruct:
  sharding = getattr(leaf, "sharding", None)
  if sharding is None:
    sharding = jax.sharding.SingleDeviceSharding(jax.devices()[0])
  return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding)


def save_tree(path: pathlib.Path, tree: Any) -> None:
  """Writes one pytree of arrays, all or nothing."""
  ocp.save(path.absolute(), tree, overwrite=True)


def load_tree(path: pathlib.Path, like: Any) -> Any:
  """Reads what `save_tree` wrote, in the shapes, types and shardings of `like`."""
  return ocp.load(path.absolute(), jax.tree.map(_abstract, like))
