"""Being asked to stop: SIGTERM, and the SIGUSR1 that Slurm sends ahead with `--signal=USR1@SECONDS`.

Where a training goes on, the signal is noted, and the training saves at its next step. Anywhere
else the run ends at once: what lies on disk is whole, and the same command goes on from there.
"""

from __future__ import annotations

from collections.abc import Iterator
import contextlib
import signal
import threading
from types import FrameType

EXIT_CODE = 75  # EX_TEMPFAIL of sysexits.h: "the user is invited to retry"; for Slurm's RequeueExit
SIGNALS = (signal.SIGTERM, signal.SIGUSR1)

_asked = threading.Event()
_patient = 0  # depth of `at_safe_points`


class Preempted(SystemExit):
  """The run was asked to stop, and has saved what it had."""

  def __init__(self, where: str = "between two trainings"):
    super().__init__(EXIT_CODE)
    self.where = where


def request() -> None:
  """Asks the process to stop, as a signal does."""
  _asked.set()


def clear() -> None:
  """Forgets that the process was asked."""
  _asked.clear()


def install() -> None:
  """Handles the signals, but those that whoever started this process lets it ignore."""
  clear()
  for number in SIGNALS:
    if signal.getsignal(number) is not signal.SIG_IGN:
      signal.signal(number, _note)


def asked() -> bool:
  """Returns whether this process was asked to stop."""
  return _asked.is_set()


@contextlib.contextmanager
def at_safe_points() -> Iterator[None]:
  """Inside, a signal is only noted; the caller looks at `asked`, saves and raises `Preempted`."""
  global _patient
  _patient += 1
  try:
    yield
  finally:
    _patient -= 1


def _note(number: int, frame: FrameType | None) -> None:
  del number, frame
  _asked.set()
  if not _patient:
    raise Preempted
