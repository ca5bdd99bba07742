"""Batches of slices, in shuffled order for training and in their own for extraction."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import grain
import numpy as np

from rcm_jax.data.slices import Slices
from tfds_rcm.cores import num_cores

_MOST_THREADS = 16  # of the loader; more only wait for the same memory


def with_context(split: Slices, rows: np.ndarray, context: int) -> np.ndarray:
  """Returns slices with their neighbours as channels, [len(rows), height, width, context].

  Args:
    split: where the slices are.
    rows: which slices.
    context: slices seen at once, odd; 1 is the slice alone. Beyond an end of the stack
      the end slice is repeated (our choice: the paper does not say).
  """
  if context == 1:
    return split.slices[rows][..., None]
  seen = neighbour_rows(split, rows, context)
  return np.stack([split.slices[column] for column in seen.T], axis=-1)


def neighbour_rows(split: Slices, rows: np.ndarray, context: int) -> np.ndarray:
  """Returns which slices `with_context` shows for each row, [len(rows), context]."""
  first = np.searchsorted(split.stack, split.stack[rows], side="left")
  last = np.searchsorted(split.stack, split.stack[rows], side="right") - 1
  offsets = np.arange(-(context // 2), context // 2 + 1)
  return np.clip(rows[:, None] + offsets, first[:, None], last[:, None]).astype(np.int32)


def _reading() -> grain.ReadOptions:
  """A thread a core, for a GPU that wants thousands of slices a second, and batches ahead for each."""
  threads = min(max(2, num_cores()), _MOST_THREADS)
  return grain.ReadOptions(num_threads=threads, prefetch_buffer_size=max(8, 2 * threads))


def training_rows(split: Slices, *, batch_size: int, seed: int) -> grain.MapDataset:
  """Returns the endless sequence of shuffled row batches; every slice comes once an epoch.

  Batch n is the same however the sequence was entered, so a resumed training needs its
  step and nothing else. The last batch of an epoch is filled up from the next.
  """
  return grain.MapDataset.range(len(split)).seed(seed).shuffle().repeat().batch(batch_size)


def training_batches(
  split: Slices,
  *,
  batch_size: int,
  context: int,
  seed: int,
  start: int,
  stop: int,
  own: slice = slice(None),
  pick: Callable[[Slices, np.ndarray, int], np.ndarray] = with_context,
  reading: grain.ReadOptions | None = None,
) -> Iterator[tuple[np.ndarray, np.ndarray]]:
  """Yields batches number `start` to `stop` of `training_rows`, or of each the rows in `own`.

  `reading` has the threads; by default one a core.

  Yields:
    uint8 slices [batch, height, width, context], or whatever else `pick` takes for rows and context;
    and labels [batch].
  """
  batches = training_rows(split, batch_size=batch_size, seed=seed)[start:stop].map(
    lambda batch: (
      pick(split, batch[own], context),
      split.labels[batch[own]].astype(np.int32),
    )
  )
  yield from batches.to_iter_dataset(reading or _reading())


def sequential_batches(
  split: Slices, *, batch_size: int, context: int, own: slice = slice(None), start: int = 0
) -> Iterator[tuple[np.ndarray, np.ndarray]]:
  """Yields all slices from row `start` on; the last batch is filled up by repeating its last row.

  Yields:
    uint8 slices [batch, height, width, context], or those in `own` of the batch alone, and the
    rows [≤ batch] that the whole batch comes from.
  """
  count = len(split)

  def batch(first: int) -> tuple[np.ndarray, np.ndarray]:
    rows = np.arange(first, min(first + batch_size, count))
    filled = np.pad(rows, (0, batch_size - len(rows)), mode="edge")
    return with_context(split, filled[own], context), rows

  firsts = grain.MapDataset.range(start, count, batch_size)
  yield from firsts.map(batch).to_iter_dataset(_reading())
