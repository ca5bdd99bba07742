"""How far a long piece of work is: a bar on a terminal, and a line a minute in a log."""

from __future__ import annotations

from collections.abc import Callable, Iterator
import contextlib
import threading
import time

from rich.console import Console
from rich.progress import (
  BarColumn,
  MofNCompleteColumn,
  Progress,
  TextColumn,
  TimeElapsedColumn,
  TimeRemainingColumn,
)

Advance = Callable[[int, int], None]  # (done, total)

SECONDS_BETWEEN_LINES = 60.0


@contextlib.contextmanager
def shown(name: str, console: Console) -> Iterator[Advance]:
  """Shows how far the block is, also while it does not say so itself.

  Args:
    name: of the work.
    console: where it is shown.

  Yields:
    A function to be called with what is done and what there is to do.
  """
  if not console.is_terminal:
    with _Lines(name, console) as advance:
      yield advance
    return
  columns = (
    TextColumn("{task.description}"),
    BarColumn(),
    MofNCompleteColumn(),
    TimeElapsedColumn(),
    TimeRemainingColumn(),
  )
  with Progress(*columns, console=console, transient=True) as bar:
    task = bar.add_task(name, total=None)
    yield lambda done, total: bar.update(task, completed=done, total=total)


class _Lines:
  """A line every `SECONDS_BETWEEN_LINES`, from a thread: compiling says nothing for minutes."""

  def __init__(self, name: str, console: Console):
    self._name, self._console = name, console
    self._started = time.monotonic()
    self._first: tuple[float, int] | None = None  # when it first told what was done, and what was
    self._now: tuple[int, int] | None = None
    self._ended = threading.Event()
    self._thread = threading.Thread(target=self._tell, name="progress", daemon=True)

  def __enter__(self) -> Advance:
    self._thread.start()
    return self._advance

  def __exit__(self, *_: object) -> None:
    self._ended.set()
    self._thread.join()

  def _advance(self, done: int, total: int) -> None:
    if self._first is None:
      self._first = time.monotonic(), done
    self._now = done, total

  def _tell(self) -> None:
    while not self._ended.wait(SECONDS_BETWEEN_LINES):
      with contextlib.suppress(OSError):  # a full disk is for the work itself to tell of
        self._console.print(self._line(), soft_wrap=True)

  def _line(self) -> str:
    line = f"{self._name}: {_span(time.monotonic() - self._started)} so far"
    if self._now is None:
      return line
    (done, total), (when, first) = self._now, self._first
    line = f"{line}, {done} of {total}"
    if done > first:  # what an earlier run had done says nothing of this one's pace
      left = (time.monotonic() - when) * (total - done) / (done - first)
      line = f"{line}, about {_span(left)} to go"
    return line


def _span(seconds: float) -> str:
  if seconds < 120:
    return f"{seconds:.0f} s"
  return f"{seconds / 60:.0f} min" if seconds < 7200 else f"{seconds / 3600:.1f} h"
