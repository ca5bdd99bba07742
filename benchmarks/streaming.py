"""Heads on more stacks than the memory holds: stacks a second, and memory, by number of stacks.

python -m benchmarks.streaming [--stacks 2000 100000] [--folder=DIR] [--batch=32] [--in_memory=2000]

Writes features of stacks of 43 slices on average into DIR (22 KB a stack), trains one head on them for
two epochs, and tells the most memory of the process besides the pages of files, which the system takes
back when it needs them. `--in_memory` trains on so many stacks in memory, too.
"""

from __future__ import annotations

import argparse
import dataclasses
import pathlib
import tempfile
import threading
import time

import numpy as np

from benchmarks import heads
from benchmarks.gru import FEATURES
from rcm_jax.arrays import MAX_SLICES
from rcm_jax.data.slices import Slices
from rcm_jax.data.stored import StoredStacks
from rcm_jax.heads import streaming
from rcm_jax.heads import training as head_training
from rcm_jax.heads.objective import Member

_MEAN_SLICES = 43  # the paper's
_VALIDATION = 500
_BLOCK = 200_000  # slices written at once
SPEC = heads.spec_of("toeplitz", 1)
EPOCHS = 2


def main(argv: list[str] | None = None) -> None:
  """Runs everything and prints one line a training."""
  parser = argparse.ArgumentParser(prog="python -m benchmarks.streaming", description=__doc__)
  parser.add_argument("--stacks", type=int, nargs="+", default=[2_000, 100_000])
  parser.add_argument("--folder", type=pathlib.Path, help="where there is room (default: /tmp)")
  parser.add_argument("--batch", type=int, default=32, help="stacks a step")
  parser.add_argument("--in_memory", type=int, default=2_000, help="stacks; 0: none")
  options = parser.parse_args(argv)
  with tempfile.TemporaryDirectory(dir=options.folder) as name:
    folder = pathlib.Path(name)
    validation = write(folder, _VALIDATION, 1)
    if options.in_memory:
      stacks = write(folder, options.in_memory, 0)
      every = lambda stored: stored.take(np.arange(len(stored)))
      _told("in memory", options, head_training.train, every(stacks), every(validation), folder)
    for count in options.stacks:
      _told("from disk", options, streaming.train, write(folder, count, 0), validation, folder)


def write(folder: pathlib.Path, count: int, seed: int) -> StoredStacks:
  """Writes features that tell strata, float16, and opens them."""
  rng = np.random.default_rng(seed)
  lengths = np.clip(rng.poisson(_MEAN_SLICES, count), 5, MAX_SLICES)
  stack = np.repeat(np.arange(count), lengths)
  place = (np.arange(len(stack)) - np.repeat(np.cumsum(lengths) - lengths, lengths)) / np.repeat(
    lengths, lengths
  )
  ends = np.sort(rng.uniform(0.2, 0.9, (count, 2)), axis=1)[stack]
  labels = (place[:, None] > ends).sum(1).astype(np.int8)
  path = folder / f"{count}_{seed}.npy"
  directions = np.random.default_rng(99).normal(size=(3, FEATURES)).astype(np.float32)
  rows = np.lib.format.open_memmap(path, "w+", np.float16, (len(stack), FEATURES))
  for start in range(0, len(rows), _BLOCK):
    part = labels[start : start + _BLOCK]
    noise = rng.standard_normal((len(part), FEATURES), np.float32)
    rows[start : start + _BLOCK] = 0.1 * directions[part] + noise
  rows.flush()
  names = tuple(map(str, range(count)))
  images = np.empty((len(stack), 0, 0), np.uint8)
  split = Slices(images, labels, 100 * place.astype(np.float32), stack, names, names)
  return StoredStacks(split, np.load(path, mmap_mode="r", allow_pickle=False), MAX_SLICES)


def _told(where, options, train, stacks, validation, folder) -> None:
  directory = folder / f"{where}_{len(stacks)}"
  directory.mkdir()
  member = Member(0, 1, heads.RATE, heads.L1, heads.DROPOUT)
  if not isinstance(stacks, StoredStacks):
    names = {"stack_id": (), "patient_id": ()}
    stacks, validation = (dataclasses.replace(x, **names) for x in (stacks, validation))
  with _Memory() as memory:
    train(SPEC, [member], stacks, validation, directory, epochs=EPOCHS, batch_size=options.batch)
  history = head_training.load(SPEC, [member], directory).history
  rate = EPOCHS * len(stacks) / history["seconds"]
  print(
    f"{len(stacks)} stacks {where}: {rate:.0f} stacks a second, validation accuracy "
    f"{history['validation_accuracy'][0][-1]:.3f}, {memory.most:.2f} GB of memory at most",
    flush=True,
  )


class _Memory:
  """Most memory of this process that no file stands behind, in GB, looked at every 50 ms."""

  def __enter__(self):
    self.most, self._ended = 0.0, threading.Event()
    self._thread = threading.Thread(target=self._watch, daemon=True)
    self._thread.start()
    return self

  def __exit__(self, *error):
    self._ended.set()
    self._thread.join()

  def _watch(self):
    while not self._ended.is_set():
      for line in pathlib.Path("/proc/self/status").read_text().splitlines():
        if line.startswith("RssAnon:"):
          self.most = max(self.most, int(line.split()[1]) / 1e6)
      time.sleep(0.05)


if __name__ == "__main__":
  main()
