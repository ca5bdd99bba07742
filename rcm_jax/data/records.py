"""Prepared TFDS records → decoded slices on disk.

Records are decoded once into one flat file of gray levels a split, so that training reads whole
batches through the page cache and never holds the images in memory.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
import importlib
import pathlib
from typing import Any

import grain
import numpy as np
import tensorflow_datasets as tfds

from rcm_jax import anatomy
from rcm_jax.data import scale as scale_lib
from rcm_jax.runtime import files
from tfds_rcm.errors import UserError
from tfds_rcm.record import LABELS, read_record
from tfds_rcm.study.splits import SPLITS

_MODULES = {
  name: f"tfds_rcm.{name}.{name}_dataset_builder"
  for name in ("rcm_phantom", "rcm_dryad", "rcm_clinical")
}


def open_builder(
  source: str,
  data_dir: str | None,
  *,
  needed: Sequence[str] = SPLITS,
  option: str = "config.data.sources",
) -> tfds.core.DatasetBuilder:
  """Returns the prepared TFDS builder of `source`, such as "rcm_phantom/demo".

  Args:
    source: name of the builder, and behind a slash its configuration.
    data_dir: where TFDS keeps data sets; its default if None.
    needed: splits that must have stacks.
    option: that named the source, for messages.

  Raises:
    UserError: no such builder, not prepared below `data_dir`, or a split has no stacks.
  """
  name, _, preset = source.partition("/")
  if name not in _MODULES:
    raise UserError(f"{option}: no dataset '{name}'; known are {', '.join(_MODULES)}")
  importlib.import_module(_MODULES[name])
  try:
    builder = tfds.builder(
      name, config=preset or None, data_dir=data_dir, file_format="array_record"
    )
  except ValueError as error:
    raise UserError(f"{option}: '{source}': {str(error).splitlines()[0]}") from error
  if not builder.info.splits:
    option = f" --preset={preset}" if preset else ""
    option = option if name == "rcm_phantom" else " --source=STUDY"
    raise UserError(
      f"{builder.data_dir}: dataset '{source}' is not prepared; run: "
      f"python -m tfds_rcm.prepare {name}{option} --data_dir={builder.data_dir_root}"
    )
  empty = [
    split
    for split in needed
    if split not in builder.info.splits or not builder.info.splits[split].num_examples
  ]
  if empty:
    every = f"every one of {', '.join(needed)}" if len(needed) > 1 else "it"
    raise UserError(
      f"{builder.data_dir}: split '{empty[0]}' of '{source}' has no stacks; {every} needs some: "
      "divide the stacks anew and prepare the dataset again"
    )
  return builder


def fingerprint(builder: tfds.core.DatasetBuilder) -> dict[str, Any]:
  """Returns what identifies a prepared dataset's content: names, sizes, leading bytes."""
  folder = pathlib.Path(builder.data_dir)
  return {
    "name": builder.info.full_name,
    "files": {
      path.name: (path.stat().st_size, files.file_digest(path, 1 << 20))
      for path in sorted(folder.iterdir())
      if path.is_file()
    },
  }


class Records:
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


def decode_record(example: dict[str, Any], strata: anatomy.Strata) -> dict[str, Any]:
  """Returns a record's fields, checked; labels are strata of the task.

  Raises:
    UserError: it is incomplete.
  """
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
  return {
    "stack_id": record.stack_id,
    "patient_id": record.patient_id,
    "site": record.site,
    "columns": record.columns,
    "readings": {name: _strata(labels, strata) for name, labels in record.readings.items()},
    "labels": _strata(record.labels, strata),
    "depth_um": record.depth_um,
    "pixel_um": record.pixel_um,
    "images": slices,
  }


def _strata(labels: np.ndarray, strata: anatomy.Strata) -> np.ndarray:
  """Strata of labels on disk, −1 where there is none.

  What the task does not tell apart counts as its first stratum.
  """
  more = len(LABELS) - len(strata)
  return np.where(labels < 0, -1, np.maximum(labels - more, 0)).astype(np.int8)


def _bring_to_scale(
  record: dict[str, Any], image_size: int | None, field_um: float | int | None, a_side: int
) -> dict[str, Any]:
  """Adds `tiles` [n, T, height, width] to a decoded record, views of one size and field."""
  images, pixel_um = record["images"], record["pixel_um"]
  record["shape"] = images[0].shape
  if image_size is None:
    return {**record, "tiles": np.stack(images)[None]}
  wanted = scale_lib.Scale(image_size, field_um)
  if field_um is None or pixel_um is None:
    pixel_um, a_side = None, 1
  else:
    a_side = scale_lib.tile_grid(scale_lib.field_of(images[0].shape, pixel_um), field_um, a_side)
  try:
    views = [scale_lib.tiles(image, pixel_um, wanted, a_side=a_side) for image in images]
  except UserError as error:
    raise UserError(f"stack '{record['stack_id']}': {error}") from error
  return {**record, "tiles": np.stack(views, 1)}


def _check_corneum(
  builder: tfds.core.DatasetBuilder, labels: Sequence[np.ndarray], strata: anatomy.Strata
) -> None:
  """A stack may begin below the corneum, but not all of them: then nobody labelled it."""
  if strata != anatomy.WITH_CORNEUM or any((of_stack == 0).any() for of_stack in labels):
    return
  raise UserError(
    f"{builder.data_dir}: no training slice is labelled {strata.names[0]}, which config.data.strata = "
    f"{len(strata)} tells apart; label it (python -m tfds_rcm.label --corneum), or set "
    f"config.data.strata={len(anatomy.PAPER)}"
  )


def decode(
  builders: Sequence[tfds.core.DatasetBuilder],
  directory: pathlib.Path,
  *,
  image_size: int | None,
  field_um: float | int | None = None,
  train_tiles: int = 1,
  strata: anatomy.Strata = anatomy.PAPER,
  advance: Callable[[int, int], None] = lambda done, total: None,
) -> None:
  """Decodes prepared datasets, one after the other in each split, into `directory`.

  Of several datasets, each puts its name before those of its stacks and patients.

  Args:
    builders: prepared TFDS builders.
    directory: gets `SPLIT.u8`, the gray levels, and `SPLIT.npz`, all else.
    image_size: side in pixels that every slice is resampled to; None keeps the size,
      which must then be one and the same.
    field_um: side in µm that every slice is cut to; None keeps the field, which must then be one
      and the same, or unknown for all stacks.
    train_tiles: most tiles a side that a training stack of a larger field is cut into; each counts
      as a stack.
    strata: that labels shall tell apart.
    advance: called with the stacks done and the stacks in all.

  Raises:
    UserError: a record is damaged, incomplete, or of another size or scale; or a dataset's training
      stacks do not show a stratum.
  """
  if field_um is not None and image_size is None:
    raise UserError(
      "config.data.field_um needs config.data.image_size: the pixels that a field is sampled with"
    )
  total = sum(builder.info.splits[split].num_examples for builder in builders for split in SPLITS)
  done = 0
  fields = scale_lib.FieldsOfRun(field_um)
  for split in SPLITS:
    shape = None
    columns: dict[str, list] = {key: [] for key in ("stack_id", "patient_id", "labels", "depth_um")}
    a_side = train_tiles if split == "train" else 1
    with (directory / f"{split}.u8").open("wb") as file:
      for builder in builders:
        records = grain.MapDataset.source(Records(builder, split)).map(
          lambda example: decode_record(example, strata)
        )
        first = len(columns["labels"])
        records = records.map(
          lambda record, a_side=a_side: _bring_to_scale(record, image_size, field_um, a_side)
        )
        for record in records.to_iter_dataset(
          grain.ReadOptions(num_threads=2, prefetch_buffer_size=2)
        ):
          fields.add(record["stack_id"], record["shape"], record["pixel_um"])
          tiles = record["tiles"]
          if shape is None:
            shape = tiles.shape[2:]
          if tiles.shape[2:] != shape:
            raise UserError(
              f"stack '{record['stack_id']}' has slices of {tiles.shape[2:]} pixels, others of "
              f"{shape}; set config.data.image_size to bring all to one size"
            )
          for number, slices in enumerate(tiles):
            file.write(slices.tobytes())
            for key, values in columns.items():
              values.append(record[key])
            if len(builders) > 1:  # two studies may each have a patient 1
              for key in ("stack_id", "patient_id"):
                columns[key][-1] = f"{builder.name}/{columns[key][-1]}"
            if len(tiles) > 1:
              columns["stack_id"][-1] += f" tile {number + 1}"
          done += 1
          advance(done, total)
        if split == "train":
          _check_corneum(builder, columns["labels"][first:], strata)
    field = fields.scale(shape[0]).field_um
    np.savez(
      directory / f"{split}.npz",
      shape=np.asarray(shape),
      field_um=np.float64(np.nan if field is None else field),
      strata=np.asarray(strata.names),
      stack_id=np.asarray(columns["stack_id"]),
      patient_id=np.asarray(columns["patient_id"]),
      labels=np.concatenate(columns["labels"]),
      depth_um=np.concatenate(columns["depth_um"]),
      stack=np.repeat(np.arange(len(columns["labels"])), [len(x) for x in columns["labels"]]),
    )
