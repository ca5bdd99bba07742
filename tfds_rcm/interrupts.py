"""Being asked to stop: Ctrl-C, SIGTERM, a closed terminal, and the SIGUSR1 that Slurm sends ahead.

One mechanism for every command. `install` comes before a command imports anything large. From then
on a signal ends the process at once, with one line and exit code 75 (130 for Ctrl-C), wherever it is:
what lies on disk is whole at any moment, as it must be for a power cut. Only `at_safe_points`, where
work would be lost, a signal is noted, and the work looks at `asked`, saves and raises `Preempted`. A
second signal ends the process there, too.

Python runs handlers between two instructions of the main thread, so not while that thread compiles,
and an exception raised there unwinds libraries that are not made for it, down to a segmentation fault.
Here a thread of its own reads the signals from a pipe, which the system's handler fills at any time,
and ends the process without unwinding.
"""

from __future__ import annotations

from collections.abc import Iterator
import contextlib
import os
import signal
import sys
import threading
import time
from typing import NoReturn

EXIT_CODE = 75  # EX_TEMPFAIL of sysexits.h: "the user is invited to retry"; for Slurm's RequeueExit
CTRL_C_CODE = 130  # 128 + SIGINT, as shells have it
SIGNALS = (signal.SIGTERM, signal.SIGUSR1, signal.SIGHUP, signal.SIGINT)
# Within this time, signals are one request: `timeout` and Slurm send it to the group and the process.
SECONDS_OF_ONE_REQUEST = 0.5

_lock = threading.RLock()
_asked = threading.Event()
_code = EXIT_CODE
_when = 0.0
_patient = 0  # depth of `at_safe_points`
_linger = 0.0  # seconds
_program: str | None = None  # that signals end; None where they are not handled
_pipe: tuple[int, int] | None = None


class Preempted(SystemExit):
  """The process was asked to stop, and has saved what it had."""

  def __init__(self, where: str = "between two steps of its work"):
    super().__init__(_code)
    self.where = where

  def tell(self) -> None:
    """Says so, in a line."""
    _write(f"{_program}: stopped on request {self.where}; the same command goes on from there")

  def end(self) -> NoReturn:
    """Ends the process, whose work is saved, without unwinding anything."""
    for stream in (sys.stdout, sys.stderr):
      with contextlib.suppress(OSError, ValueError):
        stream.flush()
    os._exit(self.code)


def install(program: str) -> None:
  """Handles the signals, but those that whoever started this process lets it ignore.

  Args:
    program: its name, for the line that it ends with.
  """
  global _program, _pipe
  clear()
  _program = program
  if _pipe is None:
    _pipe = os.pipe()
    for end in _pipe:
      os.set_blocking(end, end == _pipe[0])
    threading.Thread(target=_watch, args=(_pipe[0],), name="signals", daemon=True).start()
  signal.set_wakeup_fd(_pipe[1], warn_on_full_buffer=False)
  for number in SIGNALS:
    if signal.getsignal(number) is not signal.SIG_IGN:
      signal.signal(number, _leave_it_to_the_thread)
      signal.siginterrupt(number, False)  # system calls of libraries go on


def end_after_others(seconds: float) -> None:
  """Has this process end some time after its line, so that those that need it have ended before."""
  global _linger
  _linger = seconds


def request() -> None:
  """Asks the process to stop, as a signal does."""
  _asked.set()


def clear() -> None:
  """Forgets that the process was asked."""
  global _code
  _asked.clear()
  _code = EXIT_CODE


def asked() -> bool:
  """Returns whether this process was asked to stop."""
  return _asked.is_set()


@contextlib.contextmanager
def at_safe_points() -> Iterator[None]:
  """Inside, a signal is only noted; the caller looks at `asked`, saves and raises `Preempted`."""
  global _patient
  with _lock:
    _patient += 1
  try:
    yield
  finally:
    with _lock:
      _patient -= 1
  if _asked.is_set() and _program is not None and not _patient:  # it came behind the last look
    _end()


@contextlib.contextmanager
def not_for_children() -> Iterator[None]:
  """Processes that start inside hear nothing of Ctrl-C and the like: the parent ends them.

  SIGTERM is left to them, by which their pool ends them.
  """
  mine = signal.pthread_sigmask(signal.SIG_BLOCK, {*SIGNALS} - {signal.SIGTERM})
  try:
    yield
  finally:
    signal.pthread_sigmask(signal.SIG_SETMASK, mine)


def _leave_it_to_the_thread(number: int, frame: object) -> None:
  del number, frame


def _watch(pipe: int) -> None:
  while numbers := os.read(pipe, 64):
    for number in numbers:
      if number in SIGNALS and _program is not None:
        _arrived(number)


def _arrived(number: int) -> None:
  global _code, _when
  with _lock:
    again = _asked.is_set()
    if again and time.monotonic() - _when < SECONDS_OF_ONE_REQUEST:
      return
    _code = CTRL_C_CODE if number == signal.SIGINT else EXIT_CODE
    _when = time.monotonic()
    _asked.set()
    if again:
      _leave(f"{_program}: ended at once; the same command goes on from what was saved before")
    elif not _patient:
      _end()


def _end() -> None:
  _leave(f"{_program}: stopped on request; run the same command again to go on")


def _leave(line: str) -> NoReturn:
  """Ends the process without unwinding anything."""
  _write(line)
  time.sleep(_linger)
  os._exit(_code)


def _write(line: str) -> None:
  # Not by sys.stderr, whose lock somebody may hold. On a terminal a progress bar may have hidden the
  # cursor, and stands in this line.
  shown = "\r\x1b[2K\x1b[?25h" if os.isatty(2) else ""
  with contextlib.suppress(OSError):
    os.write(2, f"{shown}{line}\n".encode(errors="replace"))
