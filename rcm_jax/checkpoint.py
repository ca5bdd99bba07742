"""Training state on disk: asynchronous, atomic Orbax checkpoints that survive corruption."""

from __future__ import annotations

from collections.abc import Mapping
from concurrent import futures
import contextlib
import pathlib
import shutil
from typing import Any
import warnings

import jax
from orbax.checkpoint import v1 as ocp

from rcm_jax import cache

_DAMAGED = "damaged"


class Checkpoints:
  """The last few states of one training, by step.

  Orbax makes a step appear whole or not at all. A changed byte of an array it would not notice, so
  that every step is sealed with checksums once it is written.

  Args:
    directory: where the steps lie; made when missing.
    keep: how many of the newest steps stay.
    about: JSON that every step carries, such as the training's configuration and revision.
  """

  def __init__(
    self, directory: pathlib.Path, *, keep: int = 2, about: Mapping[str, Any] | None = None
  ):
    directory.mkdir(parents=True, exist_ok=True)
    self._directory, self._keep = directory.absolute(), keep
    self._about = None if about is None else dict(about)
    self._checkpointer = self._open()
    self._sealer = futures.ThreadPoolExecutor(1, "seal")
    self._sealing: futures.Future | None = None

  def _open(self) -> ocp.training.Checkpointer:
    return ocp.training.Checkpointer(
      self._directory,
      save_decision_policy=ocp.training.save_decision_policies.FixedIntervalPolicy(1),
      preservation_policy=ocp.training.preservation_policies.LatestN(self._keep),
      cleanup_tmp_directories=True,
    )

  def save(self, step: int, state: Any) -> None:
    """Starts to write `state`, a pytree of arrays; a copy is taken before this returns.

    Raises:
      ValueError: the step before could not be written (Orbax tells of a full disk by it).
    """
    self.wait()
    written = self._checkpointer.save_async(step, state, custom_metadata=self._about)
    self._sealing = self._sealer.submit(self._seal, step, written)

  def _seal(self, step: int, written: Any) -> None:
    written.result()
    cache.seal(self._directory / str(step), limit=None)

  def wait(self) -> None:
    """Waits until what was saved last is on disk."""
    sealing, self._sealing = self._sealing, None
    if sealing is not None:
      sealing.result()

  def restore(self, like: Any) -> tuple[int, Any] | None:
    """Returns the newest readable (step, state), or None where there is none.

    What cannot be read is moved aside, to `damaged` beside the steps, with a warning.

    Args:
      like: a pytree of arrays or `jax.ShapeDtypeStruct` with the shapes, types and
        shardings wanted, so that a checkpoint fits another number of devices.
    """
    steps = sorted((c.step for c in self._checkpointer.checkpoints), reverse=True)
    for step in steps:
      try:
        folder = self._directory / str(step)
        # A run that was killed between writing and sealing leaves a step that is whole as it is.
        if (folder / cache.SEAL).exists() and not cache.is_sealed(folder):
          raise ValueError("its files have changed since they were written")
        return step, self._checkpointer.load(step, jax.tree.map(_abstract, like))
      except Exception as error:  # Orbax raises many types for a damaged checkpoint
        reason = str(error).split("\n")[0][:120]
        aside = self._move_aside(step)
        warnings.warn(
          f"checkpoint of step {step} cannot be read ({reason}); moved to {aside}, "
          "trying the one before",
          stacklevel=2,
        )
    return None

  def _move_aside(self, step: int) -> pathlib.Path:
    aside = self._directory / _DAMAGED
    aside.mkdir(exist_ok=True)
    number = sum(1 for _ in aside.iterdir())
    self._checkpointer.close()
    target = (self._directory / str(step)).rename(aside / f"step_{step}_{number}")
    self._checkpointer = self._open()  # it remembers the steps that it has found
    return target

  def close(self) -> None:
    """Waits for pending writes."""
    try:
      self.wait()
    finally:
      self._sealer.shutdown()
      self._checkpointer.close()

  def __enter__(self) -> Checkpoints:
    return self

  def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
    # What ended the block says more than what then fails to be written.
    with contextlib.suppress(Exception) if kind else contextlib.nullcontext():
      self.close()


def discard(directory: pathlib.Path) -> None:
  """Removes all steps of a training that has ended."""
  shutil.rmtree(directory)


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
