"""Array notation, and the container that the stages before and behind the features share.

Dimension letters, used in every annotation and docstring of this package:

    B  stacks in a batch        T  slices in a stack, shallow to deep (padded)
    N  stacks in a split        F  features of a slice (256)
    H  hidden units             C  strata, shallow to deep; S = C - 1 boundaries
    D  half-width of Toeplitz attention, K = 2 D + 1 taps
    M  members: models trained side by side in one program

A mask is True on real slices and False on padding. Padding never changes a
result.
"""

from __future__ import annotations

import dataclasses

import jax
from jaxtyping import Array, Bool, Float, Int
import numpy as np

MAX_SLICES = 71  # longest sequence that the paper trains on

ArrayLike = Array | np.ndarray


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Features:
  """One split's cached slice features, what the sequence heads train on.

  Attributes:
    values: the CNN's 256 features a slice before their non-linearity, 0 on padding.
    labels: stratum of each slice, 0 on padding.
    depth_um: depth of each slice in µm, 0 on padding.
    mask: True on real slices.
    stack_id: one name a stack.
    patient_id: one name a stack.
  """

  values: Float[ArrayLike, "N T F"]
  labels: Int[ArrayLike, "N T"]
  depth_um: Float[ArrayLike, "N T"]
  mask: Bool[ArrayLike, "N T"]
  stack_id: tuple[str, ...] = dataclasses.field(metadata={"static": True}, default=())
  patient_id: tuple[str, ...] = dataclasses.field(metadata={"static": True}, default=())

  def __len__(self) -> int:
    return self.values.shape[0]

  @property
  def num_features(self) -> int:
    """F of a slice."""
    return self.values.shape[-1]

  def cut(self, length: int | None) -> Features:
    """Leaves out what lies below the first `length` slices; None leaves out nothing."""
    first = {
      name: getattr(self, name)[:, :length] for name in ("values", "labels", "depth_um", "mask")
    }
    return dataclasses.replace(self, **first)

  def first(self, count: int) -> Features:
    """Keeps the first `count` stacks."""
    kept = jax.tree.map(lambda x: x[:count], self)
    return dataclasses.replace(
      kept, stack_id=self.stack_id[:count], patient_id=self.patient_id[:count]
    )
