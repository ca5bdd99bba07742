"""One whole run, from data to tables.

    python -m rcm_jax.main --config=configs/METHOD.py[:PRESET] --workdir=DIR

`--config` takes any file, or the name of a configuration that ships: `--config=toeplitz_d1`.
"""

from __future__ import annotations

if __name__ == "__main__":  # before what takes seconds to import
  from tfds_rcm import interrupts

  interrupts.install("rcm_jax")

from collections.abc import Callable, Sequence
import contextlib
import errno
import os
import pathlib
import re
import sys
import threading
from typing import Any, NoReturn

from absl import app, flags, logging
import jax
from ml_collections import config_flags

from rcm_jax.run import config_files, pipeline, renamed
from rcm_jax.runtime import devices, preemption
from tfds_rcm.errors import UserError

_CONFIG = config_flags.DEFINE_config_file(
  "config",
  None,
  "A configuration's file, or the name of one that ships (such as toeplitz_d1), and behind a colon "
  "its preset, see configs/base.py.",
)
_WORKDIR = flags.DEFINE_string("workdir", None, "Directory of this run's results.")
_COORDINATOR = flags.DEFINE_string(
  "coordinator",
  None,
  "HOST:PORT of the first of several processes that compute one run together. A Slurm step of "
  "several tasks needs none of these three.",
)
_PROCESSES = flags.DEFINE_integer("processes", None, "Number of these processes.")
_PROCESS = flags.DEFINE_integer("process", None, "Number of this one, from 0.")
_GPUS = flags.DEFINE_list(
  "gpus",
  None,
  "With --coordinator: numbers of this machine's GPUs that this process takes, such as 0,1; "
  "default: of several, one by the process' number.",
)
_CACHE_DIR = flags.DEFINE_string(
  "cache_dir",
  None,
  "Directory of stages' results, shared by runs; default: `cache` beside the work directory.",
)
_disk_is_full = threading.Event()  # the main thread has met it
_SECONDS_OF_CONSEQUENCES = 1.0  # within which it does so, where another thread's fault is due to it


def main(argv: Sequence[str]) -> None:
  """Hands the flags to the pipeline."""
  if len(argv) > 1:
    _fail(f"unexpected argument '{argv[1]}'; options begin with --")
  if _CONFIG.value is None or _WORKDIR.value is None:
    _fail("both --config=configs/METHOD.py and --workdir=DIR are needed")
  logging.set_verbosity(logging.FATAL)  # TFDS and Orbax advise much
  threading.excepthook = _unless_disk_is_full(threading.__excepthook__)
  sys.unraisablehook = _unless_disk_is_full(sys.__unraisablehook__)
  try:
    devices.start(_COORDINATOR.value, _PROCESSES.value, _PROCESS.value, _gpus(_GPUS.value))
  except UserError as error:
    _fail(str(error))
  workdir = pathlib.Path(_WORKDIR.value)
  cache_dir = pathlib.Path(_CACHE_DIR.value) if _CACHE_DIR.value else workdir.parent / "cache"
  try:
    pipeline.run(_CONFIG.value, workdir, cache_dir)
  except UserError as error:
    _fail(str(error))
  except preemption.Preempted as stopped:
    stopped.tell()
    if jax.distributed.is_initialized():
      raise  # the others wait for an orderly exit
    stopped.end()
  except Exception as error:  # Orbax tells of a full disk by a ValueError
    if not _is_disks_fault(error):
      raise
    _disk_is_full.set()
    where = getattr(error, "filename", None) or f"{workdir} or {cache_dir}"
    _tell(
      f"{where}: cannot be written (disk full, or no permission); make room or choose another "
      "directory, then run the same command again: it goes on where it stopped"
    )
    os._exit(1)  # whatever else flushes at exit would fail in the same way, at length


def _gpus(numbers: Sequence[str] | None) -> list[int] | None:
  wrong = [number for number in numbers or () if not number.isdecimal()]
  if wrong:
    raise UserError(f"--gpus: '{wrong[0]}' is no number; give numbers from 0, such as --gpus=0,1")
  return None if numbers is None else [int(number) for number in numbers]


def _is_disks_fault(error: BaseException | None) -> bool:
  return "No space left on device" in str(error) or (
    isinstance(error, OSError)
    and error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES)
  )


def _unless_disk_is_full(hook: Callable[[Any], None]) -> Callable[[Any], None]:
  """Leaves it to the main thread, which meets the same disk, to tell of it and of what follows."""

  def held_back(failed: Any) -> None:
    if _is_disks_fault(failed.exc_value):
      return
    if threading.current_thread() is not threading.main_thread():
      _disk_is_full.wait(_SECONDS_OF_CONSEQUENCES)
    if not _disk_is_full.is_set():
      hook(failed)

  return held_back


def parse(argv: Sequence[str]) -> list[str]:
  """Parses flags; what is wrong with one is told in a line."""
  try:
    argv = _with_config_file(argv)
  except UserError as error:
    _fail(str(error))
  given = [renamed.argument(argument) for argument in argv]
  try:
    left = flags.FLAGS(given)
    if _CONFIG.value is not None:  # a file that could not be loaded complains on first use
      for name in renamed.modernize(_CONFIG.value):
        print(f"rcm_jax: {renamed.told(name)}", file=sys.stderr)
    for old, new in zip(argv, given, strict=True):
      if old != new:
        print(f"rcm_jax: {renamed.told(old.partition('.')[2].partition('=')[0])}", file=sys.stderr)
    return left
  except (flags.Error, KeyError, AttributeError, TypeError, ValueError, OSError) as error:
    text = str(error)
    if "Traceback" in text:  # of a configuration that refused its preset
      root: BaseException = error
      while root.__cause__ or root.__context__:
        root = root.__cause__ or root.__context__
      text = str(root)
    _fail(_unknown_key(argv, text) or " ".join(text.split()))


def _with_config_file(argv: Sequence[str]) -> list[str]:
  """Returns the arguments with the file that `--config=NAME` or `--config NAME` means."""
  found = []
  for before, argument in zip(["", *argv], argv):
    option, equals, value = argument.partition("=")
    if equals and option in ("-config", "--config"):
      argument = f"{option}={config_files.find(value)}"
    elif before in ("-config", "--config"):
      argument = config_files.find(argument)
    found.append(argument)
  return found


def _unknown_key(argv: Sequence[str], text: str) -> str | None:
  """Says which override has a key that ml_collections does not know, and its nearest one."""
  found = re.search(r'Did you mean "(\w+)" instead of "(\w+)"', text)
  names = [argument.lstrip("-").split("=")[0] for argument in argv[1:]]
  for name in names:
    if found and name.startswith("config.") and found[2] in name.split("."):
      near = ".".join(found[1] if part == found[2] else part for part in name.split("."))
      return f"--{name}: the configuration has no such key; did you mean --{near}?"
    if name.startswith("config.") and text.strip("\"'") in name.split("."):
      return f"--{name}: the configuration has no such key; see configs/base.py"
  return None


def _tell(message: str) -> None:
  with contextlib.suppress(OSError):  # a log may lie on the full disk, too
    print(f"rcm_jax: {message}", file=sys.stderr, flush=True)


def _fail(message: str) -> NoReturn:
  _tell(message)
  if jax.distributed.is_initialized():
    os._exit(1)  # an orderly exit would wait for processes that wait for this one
  raise SystemExit(1)


if __name__ == "__main__":
  app.run(main, flags_parser=parse)
