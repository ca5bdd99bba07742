"""Training state on disk: asynchronous, atomic Orbax checkpoints that survive corruption."""

from __future__ import annotations

from collections.abc import Mapping
from concurrent import futures
import contextlib
import math
import pathlib
import shutil
import time
from typing import Any
import warnings

import jax
import numpy as np
from orbax.checkpoint import v1 as ocp

from rcm_jax.runtime import devices, stage_cache

_DAMAGED = "damaged"
_NO_STEP = -1
MAX_STALL = 0.01  # share of a training's time that regular saves may take


class Checkpoints:
  """The last few states of one training, by step.

  Of several processes all must save and restore together. The first one writes; each reads for
  itself, and takes the step that all can read.

  A step is written as one vector a type: Orbax takes a millisecond for every array, and the CNN's
  training has a thousand.

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
    self._directory, self._keep = directory.absolute(), keep
    self._about = None if about is None else dict(about)
    if devices.is_first():
      directory.mkdir(parents=True, exist_ok=True)
      _remove_unfinished(directory, "*")
    self._sealer = futures.ThreadPoolExecutor(1, "seal")
    self._sealing: futures.Future | None = None
    self._saved, self._stall = time.monotonic(), 0.0

  @property
  def affordable(self) -> bool:
    """Whether a save now would hold the training up for less than 1 % of the time since the last."""
    waited = time.monotonic() - self._saved
    return devices.is_first() and waited >= self._stall / MAX_STALL

  def _steps(self) -> list[int]:
    """Returns the steps on disk, newest first."""
    names = (path.name for path in self._directory.iterdir())
    return sorted((int(name) for name in names if name.isdecimal()), reverse=True)

  def save(self, step: int, state: Any) -> None:
    """Starts to write `state`, a pytree of arrays; a copy is taken before this returns.

    Raises:
      ValueError: the step before could not be written (Orbax tells of a full disk by it).
    """
    started = time.monotonic()
    self.wait()
    packed = _pack(jax.device_get(devices.local(state)))
    with _patient():
      written = ocp.save_async(
        self._directory / str(step), packed, overwrite=True, custom_metadata=self._about
      )
    self._saved = time.monotonic()
    self._stall = self._saved - started
    self._sealing = self._sealer.submit(self._seal, step, written)

  def _seal(self, step: int, written: Any) -> None:
    written.result()
    if not devices.is_first():
      return
    stage_cache.seal(self._directory / str(step), limit=None)
    for old in self._steps()[self._keep :]:
      shutil.rmtree(self._directory / str(old))

  def wait(self) -> None:
    """Waits until what was saved last is on disk."""
    sealing, self._sealing = self._sealing, None
    if sealing is not None:
      sealing.result()

  def kept(self, unit: str) -> str:
    """Says where a training that has to end could go on; `unit` is what its steps count."""
    self.wait()
    newest = max(self._steps(), default=_NO_STEP)
    if newest == _NO_STEP:
      return "nothing had been saved yet"
    return f"the last good state, after {unit} {newest}, is kept in {self._directory}"

  def restore(self, like: Any) -> tuple[int, Any] | None:
    """Returns the newest readable (step, state), or None where there is none.

    What cannot be read is moved aside, to `damaged` beside the steps, with a warning.

    Args:
      like: a pytree of arrays or `jax.ShapeDtypeStruct` with the shapes, types and
        shardings wanted, so that a checkpoint fits another number of devices.
    """
    while True:
      newest = max(self._steps(), default=_NO_STEP) if devices.is_first() else _NO_STEP
      step = int(devices.told_by_first(np.int32(newest)))
      if step == _NO_STEP:
        return None
      reason = packed = None
      try:
        packed = self._read(step, like)
      except Exception as error:  # Orbax raises many types for a damaged checkpoint
        reason = str(error).split("\n")[0][:120]
      if not devices.any_process(reason is not None):
        return step, _unpack(packed, like)
      if devices.is_first():
        aside = self._move_aside(self._directory / str(step))
        warnings.warn(
          f"checkpoint of step {step} cannot be read ({reason or 'another process failed'}); "
          f"moved to {aside}, trying the one before",
          stacklevel=2,
        )

  def _read(self, step: int, like: Any) -> dict[str, Any]:
    folder = self._directory / str(step)
    # A run that was killed between writing and sealing leaves a step that is whole as it is.
    changed = (folder / stage_cache.SEAL).exists() and not stage_cache.is_sealed(folder)
    # All processes load, even when one knows better: Orbax numbers the loads and saves of each, and
    # lets them meet in a save by its number.
    packed = load_tree(folder, _packed_shapes(like))
    if changed:
      raise ValueError("its files have changed since they were written")
    return packed

  def _move_aside(self, folder: pathlib.Path) -> pathlib.Path:
    aside = self._directory / _DAMAGED
    aside.mkdir(exist_ok=True)
    number = sum(1 for _ in aside.iterdir())
    return folder.rename(aside / f"step_{folder.name}_{number}")

  def close(self) -> None:
    """Waits for pending writes."""
    try:
      self.wait()
    finally:
      self._sealer.shutdown()

  def __enter__(self) -> Checkpoints:
    return self

  def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
    # What ended the block says more than what then fails to be written.
    with contextlib.suppress(Exception) if kind else contextlib.nullcontext():
      self.close()


def _pack(tree: Any) -> dict[str, Any]:
  """Joins a tree's leaves into one vector a type, in the order of the tree."""
  leaves: dict[str, list] = {}
  for leaf in jax.tree.leaves(tree):
    leaves.setdefault(str(leaf.dtype), []).append(leaf.ravel())
  return {name: np.concatenate(vectors) for name, vectors in leaves.items()}


def _packed_shapes(like: Any) -> dict[str, jax.ShapeDtypeStruct]:
  sizes: dict[str, int] = {}
  for leaf in jax.tree.leaves(like):
    sizes[str(leaf.dtype)] = sizes.get(str(leaf.dtype), 0) + math.prod(leaf.shape)
  return {name: jax.ShapeDtypeStruct((size,), name) for name, size in sizes.items()}


def _unpack(packed: Mapping[str, Any], like: Any) -> Any:
  """Takes `_pack`'s vectors apart; a leaf lies on the devices where `like` has one on devices."""
  rest = {name: np.asarray(vector) for name, vector in packed.items()}

  def take(leaf: Any) -> Any:
    name, size = str(leaf.dtype), math.prod(leaf.shape)
    mine, rest[name] = rest[name][:size].reshape(leaf.shape), rest[name][size:]
    place = getattr(leaf, "sharding", None)
    return mine if place is None else devices.put(mine, place)

  return jax.tree.map(take, like)


def _abstract(leaf: Any) -> jax.ShapeDtypeStruct:
  place = getattr(leaf, "sharding", None)
  if place is None or jax.process_count() > 1:
    place = jax.sharding.SingleDeviceSharding(jax.local_devices()[0])
  return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=place)


def _patient() -> ocp.Context:
  """Keeps Orbax from giving up a save when the clock is set, by which it measures its patience.

  Threads that wait for a folder have a patience of their own; hence it is made before they start.
  A process that waits for one that died is ended by `sharding.SECONDS_OF_SILENCE`.
  """
  context = ocp.Context()
  context.asynchronous.timeout_secs = None
  context.asynchronous.create_directories_asynchronously = False
  return context


def _alone() -> ocp.Context:
  """Keeps Orbax from waiting for the other processes when this one reads."""
  context = ocp.Context()
  if jax.process_count() > 1:
    me = jax.process_index()
    context.multiprocessing.primary_host = me
    context.multiprocessing.active_processes = {me}
    context.multiprocessing.barrier_sync_key_prefix = f"process_{me}"
  return context


def save_tree(path: pathlib.Path, tree: Any) -> None:
  """Writes one pytree of arrays, all or nothing; all processes must call it.

  Of several processes the first one's `path` counts.
  """
  path = devices.path_of_first(path.absolute())
  if devices.is_first():
    _remove_unfinished(path.parent, path.name)
  with _patient():
    ocp.save(path, jax.device_get(devices.local(tree)), overwrite=True)


def load_tree(path: pathlib.Path, like: Any) -> Any:
  """Reads what `save_tree` wrote, in the shapes, types and shardings of `like`."""
  with _alone():
    return ocp.load(path.absolute(), jax.tree.map(_abstract, like))


def _remove_unfinished(folder: pathlib.Path, name: str) -> None:
  """Removes what a killed run had begun to write."""
  for leftover in folder.glob(f"{name}.orbax-checkpoint-tmp*"):
    shutil.rmtree(leftover)
