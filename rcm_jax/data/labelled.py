"""Labelled stacks of prepared data sets, one at a time, with all that is known of them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
import dataclasses
from typing import Any

import grain
from jaxtyping import Float, Int, UInt8
import numpy as np
import tensorflow_datasets as tfds

from rcm_jax import anatomy
from rcm_jax.data import records
from tfds_rcm.errors import UserError, check_one_of
from tfds_rcm.study.splits import SPLITS

ALL = "all"


@dataclasses.dataclass(frozen=True)
class LabelledStack:
  """One stack as its record has it.

  Attributes:
    split: that the data set puts it into.
    place: of its record in that split.
    stack_id: unique in the data set.
    patient_id: whose skin.
    slices: gray levels, shallow first; none where they are not needed any more.
    labels: stratum of each slice.
    depth_um: of each slice.
    pixel_um: µm a pixel; None if unknown.
    columns: site, and what else the manifest says of the stack.
    readings: strata by reader, −1 where that one has none.
  """

  split: str
  place: int
  stack_id: str
  patient_id: str
  slices: UInt8[np.ndarray, "n height width"]
  labels: Int[np.ndarray, "T"]
  depth_um: Float[np.ndarray, "T"]
  pixel_um: float | None
  columns: Mapping[str, str]
  readings: Mapping[str, Int[np.ndarray, "T"]]


def parse_splits(text: str) -> tuple[str, ...]:
  """Reads `--split`: splits with commas between them, or "all".

  Raises:
    UserError: another word.
  """
  named = tuple(dict.fromkeys(filter(None, map(str.strip, text.split(",")))))
  for split in named:
    check_one_of(f"--split={text}", split, (ALL, *SPLITS))
  if not named:
    raise UserError(f"--split={text}: names no split; give {ALL} or some of {', '.join(SPLITS)}")
  return SPLITS if ALL in named else named


def open_builder(
  source: str, data_dir: str | None, splits: Sequence[str]
) -> tuple[tfds.core.DatasetBuilder, tuple[str, ...]]:
  """Returns the prepared data set, and which of the splits have stacks.

  Raises:
    UserError: it is not prepared, or a split that was asked for by itself has no stacks.
  """
  needed = () if tuple(splits) == SPLITS else splits
  builder = records.open_builder(source, data_dir, needed=needed, option="--source")
  of_builder = builder.info.splits
  filled = tuple(s for s in splits if s in of_builder and of_builder[s].num_examples)
  if not filled:
    raise UserError(f"{builder.data_dir}: '{source}' has no stacks; prepare the dataset again")
  return builder, filled


def read(
  builder: tfds.core.DatasetBuilder, splits: Sequence[str], strata: anatomy.Strata
) -> Iterator[LabelledStack]:
  """Yields the stacks of some splits in their order; the next one is decoded meanwhile.

  Args:
    builder: of the data set.
    splits: in this order.
    strata: that labels tell apart.

  Raises:
    UserError: a record is damaged or incomplete.
  """
  ahead = grain.ReadOptions(num_threads=1, prefetch_buffer_size=1)
  for split in splits:
    source = grain.MapDataset.source(records.Records(builder, split)).map(
      lambda example: records.decode_record(example, strata)
    )
    for place, record in enumerate(source.to_iter_dataset(ahead)):
      yield _stack(split, place, record)


def read_again(
  builder: tfds.core.DatasetBuilder, known: LabelledStack, strata: anatomy.Strata
) -> LabelledStack:
  """Returns a stack as it stands in the data set, with its images."""
  record = records.decode_record(records.Records(builder, known.split)[known.place], strata)
  return _stack(known.split, known.place, record)


def _stack(split: str, place: int, record: Mapping[str, Any]) -> LabelledStack:
  site = {"site": record["site"]} if record["site"] else {}
  return LabelledStack(
    split=split,
    place=place,
    stack_id=record["stack_id"],
    patient_id=record["patient_id"],
    slices=np.stack(record["images"]),
    labels=record["labels"].astype(np.int32),
    depth_um=record["depth_um"],
    pixel_um=record["pixel_um"],
    columns={**site, **record["columns"]},
    readings=record["readings"],
  )
