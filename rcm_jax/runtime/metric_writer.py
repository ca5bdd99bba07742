"""What a person sees while a run goes on: progress bars, metrics.jsonl, TensorBoard."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
import contextlib
import json
import pathlib
import time

from rich.console import Console
from tensorboardX import event_file_writer, summary
from tensorboardX.proto import event_pb2

from rcm_jax.runtime import devices, files
from tfds_rcm import progress as progress_lib
from tfds_rcm.progress import Advance


class Writer:
  """Writes one run's metrics below its work directory and its progress to the terminal.

  Args:
    workdir: gets `metrics.jsonl`, one line a step and stage, and TensorBoard's events.
    console: where progress goes; the standard error stream by default.
  """

  def __init__(self, workdir: pathlib.Path, console: Console | None = None):
    self.console = console or Console(
      stderr=True, highlight=False, markup=False, quiet=not devices.is_first()
    )
    self._path = workdir / "metrics.jsonl"
    folder = workdir / "tensorboard"
    folder.mkdir(parents=True, exist_ok=True)
    # Not SummaryWriter: its thread dies when the clock is set back, and the training hangs with it.
    self._events = event_file_writer.EventsWriter(str(folder / "events"))

  def resume(self, stage: str, step: int) -> None:
    """Forgets what `stage` wrote at or after `step`, since it is about to come again."""
    if not self._path.exists():
      return
    kept = []
    for line in self._path.read_text().splitlines():
      try:
        entry = json.loads(line)
      except ValueError:  # cut off by a kill
        continue
      if entry["stage"] != stage or entry["step"] < step:
        kept.append(line)
    files.write_text(self._path, "".join(f"{line}\n" for line in kept))

  def scalars(self, stage: str, step: int, values: Mapping[str, float]) -> None:
    """Records one step's metrics."""
    numbers = {key: float(value) for key, value in values.items()}
    with self._path.open("a") as file:
      file.write(json.dumps({"stage": stage, "step": step, **numbers}) + "\n")
    for key, value in numbers.items():
      scalar = summary.scalar(f"{stage}/{key}", value)
      self._events.write_event(event_pb2.Event(wall_time=time.time(), step=step, summary=scalar))
    self._events.flush()

  @contextlib.contextmanager
  def progress(self, stage: str) -> Iterator[Advance]:
    """Shows a bar on a terminal, else a line a minute; and how long it took anywhere."""
    start = time.perf_counter()
    if not self.console.is_terminal:
      self.console.print(f"{stage} …")
    with progress_lib.shown(stage, self.console) as advance:
      yield advance
    self.console.print(f"{stage}: {time.perf_counter() - start:.1f} s")

  def close(self) -> None:
    """Closes TensorBoard's file."""
    self._events.close()
