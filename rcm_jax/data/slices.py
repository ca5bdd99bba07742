"""Decoded slices of a split, a memory map, and their arrangement as padded stacks."""

from __future__ import annotations

from collections.abc import Sequence
import dataclasses
import functools
import pathlib

import numpy as np

from rcm_jax import anatomy
from rcm_jax.arrays import Features
from rcm_jax.data.scale import Scale
from tfds_rcm.errors import UserError
from tfds_rcm.study.splits import SPLITS


@dataclasses.dataclass(frozen=True)
class Slices:
  """One split's slices, stack after stack, shallow to deep.

  Attributes:
    slices: gray levels, a memory map.
    labels: stratum of each slice, a place in `strata`.
    depth_um: depth of each slice in µm.
    stack: index of each slice's stack into `stack_id` and `patient_id`.
    stack_id: one name a stack.
    patient_id: one name a stack.
    field_um: side of the square that every slice shows in µm; None if nobody knows.
    strata: that the labels tell apart.
  """

  slices: np.ndarray
  labels: np.ndarray
  depth_um: np.ndarray
  stack: np.ndarray
  stack_id: tuple[str, ...]
  patient_id: tuple[str, ...]
  field_um: float | int | None = None
  strata: anatomy.Strata = anatomy.PAPER

  def __len__(self) -> int:
    return len(self.labels)

  @property
  def scale(self) -> Scale:
    """What a slice shows, in pixels and in µm."""
    return Scale(self.slices.shape[1], self.field_um)

  @property
  def lengths(self) -> np.ndarray:
    """Slices in each stack."""
    return np.bincount(self.stack, minlength=len(self.stack_id))

  @functools.cached_property
  def _starts(self) -> list[int]:
    return np.searchsorted(self.stack, np.arange(len(self.stack_id) + 2)).tolist()

  def rows(self, stack: int) -> slice:
    """Where the slices of one stack lie; none where the number of stacks stands for one."""
    return slice(self._starts[stack], self._starts[stack + 1])

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
      self.field_um,
      self.strata,
    )


def load_slices(directory: pathlib.Path) -> dict[str, Slices]:
  """Opens what `decode` wrote, by split; the images stay on disk."""
  splits = {}
  for split in SPLITS:
    with np.load(directory / f"{split}.npz", allow_pickle=False) as table:
      field_um = float(table["field_um"])
      strata = anatomy.of_names(table["strata"].tolist()) if "strata" in table else anatomy.PAPER
      splits[split] = Slices(
        slices=np.memmap(directory / f"{split}.u8", np.uint8, "r").reshape(
          -1, *table["shape"].tolist()
        ),
        labels=table["labels"],
        depth_um=table["depth_um"],
        stack=table["stack"],
        stack_id=tuple(table["stack_id"].tolist()),
        patient_id=tuple(table["patient_id"].tolist()),
        field_um=None if np.isnan(field_um) else field_um,
        strata=strata,
      )
  return splits


def pad(
  split: Slices,
  values: np.ndarray,
  length: int | None = None,
  stacks: Sequence[int] | None = None,
) -> np.ndarray:
  """Arranges one row a slice, [n, …], as one row a stack, [N, length, …], zeros behind.

  Args:
    split: tells which slices make a stack.
    values: one row a slice.
    length: cuts or pads to this many slices; None means the longest stack.
    stacks: which, in this order; the number of stacks stands for one without slices. None
      means all.
  """
  length = int(split.lengths.max()) if length is None else length
  stacks = range(len(split.stack_id)) if stacks is None else stacks
  padded = np.zeros((len(stacks), length, *values.shape[1:]), values.dtype)
  for place, stack in enumerate(stacks):
    rows = values[split.rows(stack)][:length]
    padded[place, : len(rows)] = rows
  return padded


def features_of(
  split: Slices,
  values: np.ndarray,
  length: int | None = None,
  stacks: Sequence[int] | None = None,
) -> Features:
  """Arranges one split's cached slice features [n, F] as padded stacks; see `pad`."""
  put = lambda rows: pad(split, rows, length, stacks)
  chosen = range(len(split.stack_id)) if stacks is None else stacks
  named = lambda names: tuple(names[stack] for stack in chosen if stack < len(names))
  return Features(
    values=put(values).astype(np.float32),
    labels=put(split.labels).astype(np.int32),
    depth_um=put(split.depth_um),
    mask=put(np.broadcast_to(True, len(split))),
    stack_id=named(split.stack_id),
    patient_id=named(split.patient_id),
  )
