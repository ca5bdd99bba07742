"""TFDS records → decoded slices on disk → batches.

Records are decoded once into one flat file of gray levels a split, so that training
reads whole batches through the page cache and never holds the images in memory.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
import dataclasses
import importlib
import pathlib
from typing import Any

import grain
import numpy as np
from PIL import Image
import tensorflow_datasets as tfds

from rcm_jax import cache
from rcm_jax.arrays import Features
from tfds_rcm.errors import UserError
from tfds_rcm.features import LABELS, read_record
from tfds_rcm.staging import num_cores

SPLITS = ("train", "validation", "test")
_MOST_THREADS = 16  # of the loader; more only wait for the same memory
_MODULES = {
  name: f"tfds_rcm.{name}.{name}_dataset_builder"
  for name in ("rcm_phantom", "rcm_dryad", "rcm_clinical")
}


@dataclasses.dataclass(frozen=True)
class Slices:
  """One split's slices, stack after stack, shallow to deep.

  Attributes:
    slices: gray levels, a memory map.
    labels: stratum of each slice (stratum corneum counts as epidermis).
    depth_um: depth of each slice in µm.
    stack: index of each slice's stack into `stack_id` and `patient_id`.
    stack_id: one name a stack.
    patient_id: one name a stack.
  """

  slices: np.ndarray
  labels: np.ndarray
  depth_um: np.ndarray
  stack: np.ndarray
  stack_id: tuple[str, ...]
  patient_id: tuple[str, ...]

  def __len__(self) -> int:
    return len(self.labels)

  @property
  def lengths(self) -> np.ndarray:
    """Slices in each stack."""
    return np.bincount(self.stack, minlength=len(self.stack_id))

  def rows(self, stack: int) -> slice:
    """Where the slices of one stack lie."""
    start, stop = np.searchsorted(self.stack, (stack, stack + 1))
    return slice(int(start), int(stop))

  def first(self, stacks: int) -> Slices:
    """Returns the leading stacks.

    Raises:
      UserError: there are fewer.
    """
    if not 1 <= stacks <= len(self.stack_id):
      raise UserError(
        f"config.data.train_stacks: {stacks} is not between 1 and {len(self.stack_id)}, the stacks "
        "that there are"
      )
    rows = slice(0, self.rows(stacks - 1).stop)
    return Slices(
      self.slices[rows],
      self.labels[rows],
      self.depth_um[rows],
      self.stack[rows],
      self.stack_id[:stacks],
      self.patient_id[:stacks],
    )


def open_builder(source: str, data_dir: str | None) -> tfds.core.DatasetBuilder:
  """Returns the prepared TFDS builder of `source`, such as "rcm_phantom/demo".

  Raises:
    UserError: no such builder, or not prepared below `data_dir`.
  """
  name, _, preset = source.partition("/")
  if name not in _MODULES:
    raise UserError(f"config.data.sources: no dataset '{name}'; known are {', '.join(_MODULES)}")
  importlib.import_module(_MODULES[name])
  try:
    builder = tfds.builder(
      name, config=preset or None, data_dir=data_dir, file_format="array_record"
    )
  except ValueError as error:
    raise UserError(f"config.data.sources: '{source}': {str(error).splitlines()[0]}") from error
  if not builder.info.splits:
    option = f" --preset={preset}" if preset else ""
    option = option if name == "rcm_phantom" else " --source=STUDY"
    raise UserError(
      f"{builder.data_dir}: dataset '{source}' is not prepared; run: "
      f"python -m tfds_rcm.prepare {name}{option} --data_dir={builder.data_dir_root}"
    )
  empty = [
    split
    for split in SPLITS
    if split not in builder.info.splits or not builder.info.splits[split].num_examples
  ]
  if empty:
    raise UserError(
      f"{builder.data_dir}: split '{empty[0]}' of '{source}' has no stacks; every one of "
      f"{', '.join(SPLITS)} needs some: divide the stacks anew and prepare the dataset again"
    )
  return builder


def fingerprint(builder: tfds.core.DatasetBuilder) -> dict[str, Any]:
  """Returns what identifies a prepared dataset's content: names, sizes, leading bytes."""
  folder = pathlib.Path(builder.data_dir)
  return {
    "name": builder.info.full_name,
    "files": {
      path.name: (path.stat().st_size, cache.file_digest(path, 1 << 20))
      for path in sorted(folder.iterdir())
      if path.is_file()
    },
  }


class _Records:
  """TFDS records in random access; a record that cannot be decoded names itself."""

  def __init__(self, builder: tfds.core.DatasetBuilder, split: str):
    self._name = f"{builder.data_dir}: {split}"
    self._source = builder.as_data_source(split)

  def __len__(self) -> int:
    return len(self._source)

  def __getitem__(self, index: int) -> dict[str, Any]:
    try:
      return self._source[index]
    except Exception as error:  # TFDS, ArrayRecord and Pillow raise many types for damaged bytes
      reason = str(error).strip().split("\n")[0]
      raise UserError(
        f"{self._name} record {index} cannot be decoded ({reason}); delete this "
        "folder and prepare the dataset again"
      ) from error


def _decode_record(example: dict[str, Any], image_size: int | None) -> dict[str, Any]:
  record = read_record(example)
  name = f"stack '{record.stack_id}'"
  slices = [image[..., 0] for image in record.slices]
  if not slices:
    raise UserError(f"{name} has no slices; remove it and prepare the dataset again")
  if not len(record.labels) == len(record.depth_um) == len(slices):
    raise UserError(
      f"{name} has {len(slices)} slices, {len(record.labels)} labels and "
      f"{len(record.depth_um)} depths; expected as many of each"
    )
  outside = np.flatnonzero((record.labels < 0) | (record.labels >= len(LABELS)))
  if outside.size:
    raise UserError(
      f"{name} slice {outside[0]}: label {record.labels[outside[0]]} is none of "
      f"0 to {len(LABELS) - 1} ({', '.join(LABELS)})"
    )
  if image_size is not None:
    slices = [resize(image, image_size) for image in slices]
  return {
    "stack_id": record.stack_id,
    "patient_id": record.patient_id,
    "labels": np.maximum(record.labels - 1, 0).astype(np.int8),
    "depth_um": record.depth_um,
    "slices": np.stack(slices),
  }


def resize(image: np.ndarray, size: int) -> np.ndarray:
  """Cuts the central square out and resamples it with an antialiasing filter."""
  height, width = image.shape
  if (height, width) == (size, size):
    return image
  side = min(height, width)
  top, left = (height - side) // 2, (width - side) // 2
  square = Image.fromarray(image[top : top + side, left : left + side])
  return np.asarray(square.resize((size, size), Image.Resampling.BILINEAR))


def decode(
  builders: Sequence[tfds.core.DatasetBuilder],
  directory: pathlib.Path,
  *,
  image_size: int | None,
  advance: Callable[[int, int], None] = lambda done, total: None,
) -> None:
  """Decodes prepared datasets, one after the other in each split, into `directory`.

  Of several datasets, each puts its name before those of its stacks and patients.

  Args:
    builders: prepared TFDS builders.
    directory: gets `SPLIT.u8`, the gray levels, and `SPLIT.npz`, all else.
    image_size: side in pixels that every slice is resampled to; None keeps the size,
      which must then be one and the same.
    advance: called with the stacks done and the stacks in all.

  Raises:
    UserError: a record is damaged, incomplete, or of another size.
  """
  total = sum(builder.info.splits[split].num_examples for builder in builders for split in SPLITS)
  done = 0
  for split in SPLITS:
    shape = None
    columns: dict[str, list] = {key: [] for key in ("stack_id", "patient_id", "labels", "depth_um")}
    with (directory / f"{split}.u8").open("wb") as file:
      for builder in builders:
        records = grain.MapDataset.source(_Records(builder, split))
        records = records.map(lambda record: _decode_record(record, image_size))
        for record in records.to_iter_dataset(
          grain.ReadOptions(num_threads=2, prefetch_buffer_size=2)
        ):
          slices = record.pop("slices")
          if shape is None:
            shape = slices.shape[1:]
          if slices.shape[1:] != shape:
            raise UserError(
              f"stack '{record['stack_id']}' has slices of {slices.shape[1:]} pixels, others of "
              f"{shape}; set config.data.image_size to bring all to one size"
            )
          file.write(slices.tobytes())
          for key, value in record.items():
            columns[key].append(value)
          if len(builders) > 1:  # two studies may each have a patient 1
            for key in ("stack_id", "patient_id"):
              columns[key][-1] = f"{builder.name}/{columns[key][-1]}"
          done += 1
          advance(done, total)
    np.savez(
      directory / f"{split}.npz",
      shape=np.asarray(shape),
      stack_id=np.asarray(columns["stack_id"]),
      patient_id=np.asarray(columns["patient_id"]),
      labels=np.concatenate(columns["labels"]),
      depth_um=np.concatenate(columns["depth_um"]),
      stack=np.repeat(np.arange(len(columns["labels"])), [len(x) for x in columns["labels"]]),
    )


def load_slices(directory: pathlib.Path) -> dict[str, Slices]:
  """Opens what `decode` wrote, by split; the images stay on disk."""
  splits = {}
  for split in SPLITS:
    with np.load(directory / f"{split}.npz", allow_pickle=False) as table:
      splits[split] = Slices(
        slices=np.memmap(directory / f"{split}.u8", np.uint8, "r").reshape(
          -1, *table["shape"].tolist()
        ),
        labels=table["labels"],
        depth_um=table["depth_um"],
        stack=table["stack"],
        stack_id=tuple(table["stack_id"].tolist()),
        patient_id=tuple(table["patient_id"].tolist()),
      )
  return splits


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
) -> Iterator[tuple[np.ndarray, np.ndarray]]:
  """Yields batches number `start` to `stop` of `training_rows`, or of each the rows in `own`.

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
  yield from batches.to_iter_dataset(_reading())


def sequential_batches(
  split: Slices, *, batch_size: int, context: int, own: slice = slice(None)
) -> Iterator[tuple[np.ndarray, np.ndarray]]:
  """Yields all slices in order; the last batch is filled up by repeating its last row.

  Yields:
    uint8 slices [batch, height, width, context], or those in `own` of the batch alone, and the
    rows [≤ batch] that the whole batch comes from.
  """
  count = len(split)

  def batch(start: int) -> tuple[np.ndarray, np.ndarray]:
    rows = np.arange(start, min(start + batch_size, count))
    filled = np.pad(rows, (0, batch_size - len(rows)), mode="edge")
    return with_context(split, filled[own], context), rows

  starts = grain.MapDataset.range(0, count, batch_size)
  yield from starts.map(batch).to_iter_dataset(_reading())


def pad(split: Slices, values: np.ndarray, length: int | None = None) -> np.ndarray:
  """Arranges one row a slice, [n, …], as one row a stack, [N, length, …], zeros behind.

  Args:
    split: tells which slices make a stack.
    values: one row a slice.
    length: cuts or pads to this many slices; None means the longest stack.
  """
  length = int(split.lengths.max()) if length is None else length
  padded = np.zeros((len(split.stack_id), length, *values.shape[1:]), values.dtype)
  for stack in range(len(split.stack_id)):
    rows = values[split.rows(stack)][:length]
    padded[stack, : len(rows)] = rows
  return padded


def features_of(split: Slices, values: np.ndarray, length: int | None = None) -> Features:
  """Arranges one split's cached slice features [n, F] as padded stacks."""
  return Features(
    values=pad(split, values.astype(np.float32), length),
    labels=pad(split, split.labels.astype(np.int32), length),
    depth_um=pad(split, split.depth_um, length),
    mask=pad(split, np.ones(len(split), bool), length),
    stack_id=split.stack_id,
    patient_id=split.patient_id,
  )
