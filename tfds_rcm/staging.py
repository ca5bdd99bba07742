"""Finished files on disk, made by all cores, so that an interrupted run goes on where it was.

A file is there complete or not at all. Memory holds a few stacks at a time, however many there
are. `save` and `load` keep one stack's fields (the arguments of `record.stack_record`) in a
zip of record.json and its PNG slices.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent import futures
from concurrent.futures import process
import ctypes
import hashlib
import itertools
import json
import multiprocessing
import os
import pathlib
import threading
import time
from typing import Any, TypeVar
import zipfile

from tfds_rcm import interrupts
from tfds_rcm.cores import num_cores
from tfds_rcm.errors import UserError

Job = TypeVar("Job")
Fields = dict[str, Any]
_RECORD = "record.json"


def fingerprint(*parts: Any) -> str:
  """A short name for what determines a result; parts must be JSON values."""
  return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()[:20]


def save(path: pathlib.Path, fields: Fields) -> None:
  """Writes one stack's fields, `slices` being PNG files' bytes."""
  path.parent.mkdir(parents=True, exist_ok=True)
  partial = path.with_suffix(f".{os.getpid()}.partial")
  try:
    with zipfile.ZipFile(partial, "w") as archive:
      rest = {key: value for key, value in fields.items() if key != "slices"}
      archive.writestr(_RECORD, json.dumps(rest))
      for t, png in enumerate(fields["slices"]):
        archive.writestr(f"{t:04d}.png", png)
    os.replace(partial, path)
  finally:
    partial.unlink(missing_ok=True)


def load(path: pathlib.Path) -> Fields | None:
  """One stack's fields, None if the file is missing or damaged."""
  try:
    with zipfile.ZipFile(path) as archive:
      names = sorted(name for name in archive.namelist() if name != _RECORD)
      fields = json.loads(archive.read(_RECORD))
      return {**fields, "slices": [archive.read(name) for name in names]}
  except (OSError, zipfile.BadZipFile, KeyError, json.JSONDecodeError):
    return None


def keep_freed_memory() -> None:
  """Has glibc reuse freed memory: the kernel's zeroing of fresh pages costs more than a copy does."""
  try:
    libc = ctypes.CDLL("libc.so.6")
  except OSError:  # another system
    return
  trim_threshold, mmap_max = -1, -4
  libc.mallopt(mmap_max, 0)
  libc.mallopt(trim_threshold, 2**31 - 1)


def finished(
  folder: pathlib.Path,
  jobs: Iterable[tuple[str, Job]],
  make: Callable[[Job, pathlib.Path], None],
  is_whole: Callable[[Job, pathlib.Path], bool],
  *,
  workers: int | None = None,
) -> Iterator[pathlib.Path]:
  """Yields the file of every job, in order, making those that `folder` does not hold.

  Args:
    folder: where finished files are kept.
    jobs: a `fingerprint` of all that determines the file, and what `make` is given.
    make: writes a file; a function of a module, as `is_whole` (they are sent to other
      processes).
    is_whole: whether a file that an earlier run left can be used.
    workers: processes; all cores if None; 1 makes files in this process.

  Raises:
    Whatever `make` raises; files finished by then stay.
  """
  folder.mkdir(parents=True, exist_ok=True)
  tasks = ((make, is_whole, job, folder / key) for key, job in jobs)
  return in_parallel(_finish, tasks, workers=workers)


def in_parallel(
  function: Callable[[Job], Any], jobs: Iterable[Job], *, workers: int | None = None
) -> Iterator[Any]:
  """Maps over jobs in order, by all cores, with only a few jobs ahead of the reader."""
  workers = num_cores() if workers is None else workers
  return map(function, jobs) if workers <= 1 else _in_parallel(function, jobs, workers)


def _finish(task: tuple[Callable, Callable, Any, pathlib.Path]) -> pathlib.Path:
  make, is_whole, job, path = task
  if not (path.exists() and is_whole(job, path)):
    partial = path.with_name(f"{path.name}.{os.getpid()}.partial")
    try:
      make(job, partial)
      os.replace(partial, path)
    finally:
      partial.unlink(missing_ok=True)
  return path


def _start_worker() -> None:
  keep_freed_memory()
  threading.Thread(target=_leave_with_parent, daemon=True).start()


def _leave_with_parent() -> None:
  """Ends this process when a killed parent cannot: else it would wait for work for ever."""
  multiprocessing.parent_process().join()
  os._exit(1)


def _in_parallel(function: Callable, jobs: Iterable, workers: int) -> Iterator[Any]:
  # Forking a process that runs threads (JAX, TFDS) can deadlock.
  context = multiprocessing.get_context("spawn")
  jobs = iter(jobs)

  def submit(count: int) -> list[futures.Future]:
    with interrupts.not_for_children():
      return [pool.submit(function, job) for job in itertools.islice(jobs, count)]

  with (
    interrupts.at_safe_points(),
    futures.ProcessPoolExecutor(workers, mp_context=context, initializer=_start_worker) as pool,
  ):
    try:
      waiting = deque(submit(2 * workers))
      while waiting:
        result = waiting.popleft().result()
        if interrupts.asked():
          raise interrupts.Preempted("between two stacks")
        waiting.extend(submit(1))
        yield result
    except process.BrokenProcessPool as error:
      time.sleep(interrupts.SECONDS_OF_ONE_REQUEST)  # what ended a worker may be meant for all
      if interrupts.asked():
        raise interrupts.Preempted("between two stacks") from None
      raise UserError(
        "a worker process ended before its work (killed, perhaps for want of memory); run the same "
        "command again: it goes on where it stopped"
      ) from error
    finally:
      pool.shutdown(wait=True, cancel_futures=True)
