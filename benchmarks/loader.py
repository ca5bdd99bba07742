"""What the training loader hands over at 299 px, from decoded slices that the system holds in memory.

The batches are those of `rcm_jax.cnn.training` where a split does not stay on the device. Nothing is
trained: `benchmarks.pipeline` has the loader beside a step.
"""

from __future__ import annotations

from collections.abc import Callable
import functools
import pathlib
import tempfile

import grain

from benchmarks import pipeline, timing
from rcm_jax.data import batches as batches_lib

SIDE, SLICES = 299, 8192  # px; on disk, 730 MB
BATCHES = (32, 256)
LOADED = 4096  # slices a call
THREADS = (1, 2, 4)


def rows(peers: bool) -> list[dict]:
  """Seconds a slice, by threads; "ours" has as many as there are cores."""
  del peers  # nothing of the kind exists for this data
  floor = 2 * SIDE * SIDE / timing.copy_bytes_per_second()  # each slice is read and written once
  with tempfile.TemporaryDirectory() as directory:
    path = pipeline._write(pathlib.Path(directory), SIDE, SLICES)
    found = []
    for batch in BATCHES:
      calls: dict[str, Callable[[], None]] = {
        "ours": functools.partial(_load, path, batch, batches_lib._reading()),
        **{
          f"{count} threads": functools.partial(
            _load, path, batch, grain.ReadOptions(num_threads=count, prefetch_buffer_size=8)
          )
          for count in THREADS
        },
      }
      timed = timing.alternate(calls, repeats=5, warmup=1, min_seconds=0)
      for name, seconds in timed.items():
        each = {k: v / LOADED for k, v in seconds.items()}
        case = f"a slice of {SIDE} px, batches of {batch}"
        found.append(timing.row("loader", case, name, each, floor))
  return found


def _load(path: pathlib.Path, batch: int, reading: grain.ReadOptions) -> None:
  taken = batches_lib.training_batches(
    pipeline._open(path, SIDE),
    batch_size=batch,
    context=1,
    seed=0,
    start=0,
    stop=LOADED // batch,
    reading=reading,
  )
  for _ in taken:
    pass
