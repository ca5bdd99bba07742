"""Directories of finished work, named by a hash of what determines it.

A stage computes into its directory and seals it last. A sealed directory lists its
files with their sizes and checksums; a directory without a seal, or one whose files
do not match it, is work in progress and is continued or made again.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
import contextlib
import json
import pathlib
import shutil
from typing import Any

import numpy as np

from rcm_jax.runtime import devices
from rcm_jax.runtime.files import digest, file_digest, write_text
from tfds_rcm import locks
from tfds_rcm.errors import UserError

SEAL = "sealed.json"
_LOCK = ".lock"
_CHECKSUM_LIMIT = 64 << 20  # larger files are checked by their size alone


@contextlib.contextmanager
def locked(directory: pathlib.Path, *, wait: bool) -> Iterator[None]:
  """Holds a directory for one process; the lock ends with the process that holds it.

  Args:
    directory: made when missing.
    wait: whether to wait for another holder.

  Raises:
    UserError: the directory is held elsewhere and `wait` is False, or cannot be written.
  """
  with contextlib.ExitStack() as stack:
    try:
      stack.enter_context(locks.held(directory / _LOCK, wait=wait))
    except OSError as error:
      raise UserError(
        f"{directory}: cannot be written ({error.strerror}); choose another directory"
      ) from error
    yield


def is_sealed(directory: pathlib.Path) -> bool:
  """Returns whether a stage's result is whole: sealed, and every file as it was then."""
  try:
    files = json.loads((directory / SEAL).read_text())["files"]
    return all(_matches(directory / name, *entry) for name, entry in files.items())
  except (OSError, ValueError, KeyError, TypeError, AttributeError):  # the seal is no seal
    return False


def _matches(path: pathlib.Path, size: int, checksum: str | None) -> bool:
  if not path.is_file() or path.stat().st_size != size:
    return False
  return checksum is None or file_digest(path) == checksum


def seal(directory: pathlib.Path, *, limit: int | None = _CHECKSUM_LIMIT) -> None:
  """Declares everything that lies in `directory` finished.

  Args:
    directory: of the result.
    limit: files of more bytes get no checksum; None means that all get one.
  """
  files = {}
  for path in sorted(directory.rglob("*")):
    if path.is_file() and path.name not in (SEAL, _LOCK):
      size = path.stat().st_size
      checksum = file_digest(path) if limit is None or size <= limit else None
      files[str(path.relative_to(directory))] = (size, checksum)
  write_text(directory / SEAL, json.dumps({"files": files}, indent=1))


def stage(
  root: pathlib.Path,
  name: str,
  spec: Mapping[str, Any],
  compute: Callable[[pathlib.Path], None],
  *,
  everywhere: bool = False,
) -> pathlib.Path:
  """Returns the directory of a stage's result, which `compute` fills if it must.

  Of several processes the first one holds the directory and seals it.

  Args:
    root: the cache.
    name: of the stage.
    spec: all that determines the result; names the directory.
    compute: called with the directory. It may find there what an interrupted call
      left, and must leave nothing but its result.
    everywhere: whether all processes compute together; otherwise they wait for the first.

  Returns:
    `root/name-HASH`, sealed.
  """
  directory = root / f"{name}-{digest(spec)}"
  first = devices.is_first()
  with locked(directory, wait=True) if first else contextlib.nullcontext():
    missing = bool(devices.told_by_first(np.int32(first and not is_sealed(directory))))
    if missing:
      if first:
        _prepare(directory, spec)
      if everywhere:
        devices.wait_for_all(f"{name} is prepared")
      if first or everywhere:
        compute(directory)
      devices.wait_for_all(f"{name} is computed")
      if first:
        seal(directory)
  return directory


def _prepare(directory: pathlib.Path, spec: Mapping[str, Any]) -> None:
  if (directory / SEAL).exists():  # sealed once, damaged since: nothing in it can be trusted
    for path in directory.iterdir():
      if path.name != _LOCK:
        shutil.rmtree(path) if path.is_dir() else path.unlink()
  write_text(directory / "spec.json", json.dumps(spec, indent=1, sort_keys=True, default=list))
