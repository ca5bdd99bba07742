"""Signals to the process of the tests itself, which must survive them."""

from __future__ import annotations

from collections.abc import Collection, Iterator
import contextlib
import os
import signal
import time

from tfds_rcm import interrupts


@contextlib.contextmanager
def handled(ignored: Collection[int] = ()) -> Iterator[list[tuple[int, str]]]:
  """Handles signals as a command does; yields the ends that they would have meant: code, line.

  Args:
    ignored: what the process was started to ignore. Tests may themselves run under nohup, or in the
      background of a shell.
  """
  before = {
    number: signal.signal(number, signal.SIG_IGN if number in ignored else signal.SIG_DFL)
    for number in interrupts.SIGNALS
  }
  ends: list[tuple[int, str]] = []
  leave, interrupts._leave = interrupts._leave, lambda line: ends.append((interrupts._code, line))
  interrupts.install("test")
  try:
    yield ends
  finally:
    signal.set_wakeup_fd(-1)
    for number, handler in before.items():
      signal.signal(number, handler)
    interrupts._leave, interrupts._program = leave, None
    interrupts.clear()


def send(number: int) -> None:
  """Sends this process a signal, and waits until it is noted."""
  seen = interrupts._when
  os.kill(os.getpid(), number)
  deadline = time.monotonic() + 60
  while interrupts._when == seen and time.monotonic() < deadline:
    time.sleep(0.001)
