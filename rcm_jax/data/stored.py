"""Features of more stacks than fit in memory: they stay on disk, and come a few stacks at a time."""

from __future__ import annotations

from collections.abc import Iterator
import dataclasses

from jaxtyping import Bool, Int
import numpy as np

from rcm_jax.arrays import Features
from rcm_jax.data import pca
from rcm_jax.data.slices import Slices, features_of

BLOCK = 512  # stacks read at once where all are wanted in their order


@dataclasses.dataclass(frozen=True)
class StoredStacks:
  """One split's stacks; `Features` that `take` reads.

  Attributes:
    split: whose slices they are; its images are not looked at.
    rows: features of every slice, [n, W], a memory map.
    length: T that stacks are cut or padded to.
    components: what heads see of the features; None for the features themselves.
  """

  split: Slices
  rows: np.ndarray
  length: int
  components: pca.Components | None = None

  def __len__(self) -> int:
    return len(self.split.stack_id)

  @property
  def num_features(self) -> int:
    """F of a slice."""
    return self.rows.shape[1] if self.components is None else self.components.matrix.shape[1]

  @property
  def mask(self) -> Bool[np.ndarray, "N T"]:
    """True on real slices."""
    return np.arange(self.length) < self.split.lengths[:, None]

  def cut(self, length: int | None) -> StoredStacks:
    """Leaves out what lies below the first `length` slices; None leaves out nothing."""
    if length is None or length >= self.length:
      return self
    return dataclasses.replace(self, length=length)

  def first(self, count: int) -> Features:
    """Reads the first `count` stacks."""
    return self.take(np.arange(min(count, len(self))))

  def blocks(self, size: int = BLOCK) -> Iterator[Features]:
    """Reads all stacks in their order; each block has `size`, the last one is filled up with none."""
    for start in range(0, len(self), size):
      yield self.take(np.minimum(np.arange(start, start + size), len(self)))

  def take(self, stacks: Int[np.ndarray, " n"]) -> Features:
    """Reads some stacks, [n, T, …]; their number stands for none, all padding."""
    found = features_of(self.split, self.rows, self.length, stacks.tolist())
    if self.components is None:
      return found
    return dataclasses.replace(found, values=self.components.of_padded(found))


def with_components(
  features: dict[str, StoredStacks], count: int
) -> tuple[dict[str, StoredStacks], pca.Components]:
  """Learns components on the training slices, read block by block; returns all splits seen by them."""
  rows = features["train"].rows
  size = BLOCK * features["train"].length
  blocks = (rows[start : start + size] for start in range(0, len(rows), size))
  components = pca.learn_in_blocks(blocks, count)
  seen = {
    name: dataclasses.replace(split, components=components) for name, split in features.items()
  }
  return seen, components
