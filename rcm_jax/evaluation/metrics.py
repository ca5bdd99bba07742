"""What Tables 1-3 measure, per stack, as counts that add up over stacks.

Functions take one stack `[T]` and are batched by `vmap`. Real slices come
first; what stands on padding (any label, NaN depths) never changes a result.
What they return are counts and errors, so shards, batches and bootstrap
resamples merge by addition and ratios are taken once, at the end.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, Num
import numpy as np

from rcm_jax import arrays

# Anatomically impossible steps between consecutive slices, in Table 2's order.
INCONSISTENT_TRANSITIONS = ("epidermis_dermis", "dej_epidermis", "dermis_epidermis", "dermis_dej")
# Row: stratum of a slice; column: stratum of the next; the entry is the transition's place in
# INCONSISTENT_TRANSITIONS, or 4 where anatomy allows the step.
_TRANSITION = np.array([[4, 4, 0], [1, 4, 4], [2, 3, 4]])
_Count = Num[arrays.ArrayLike, "*batch"] | np.number  # NumPy's sums over all axes are scalars


def inconsistent_transitions(
  strata: Int[arrays.ArrayLike, "T"], mask: Bool[arrays.ArrayLike, "T"]
) -> Int[Array, "4"]:
  """Counts steps that anatomy forbids between consecutive slices, going down (Table 2).

  Args:
    strata: stratum of each slice, shallow to deep.
    mask: True on real slices.

  Returns:
    How often epidermis → dermis, dej → epidermis, dermis → epidermis and dermis → dej occur.
  """
  clean = jnp.where(mask, strata, 0)
  kind = jnp.asarray(_TRANSITION)[clean[:-1], clean[1:]]
  real = jnp.asarray(mask)[1:] & jnp.asarray(mask)[:-1]
  return jnp.sum((kind[:, None] == jnp.arange(4)) & real[:, None], axis=0)


def confusion_matrix(
  labels: Int[arrays.ArrayLike, "T"],
  strata: Int[arrays.ArrayLike, "T"],
  mask: Bool[arrays.ArrayLike, "T"],
) -> Int[Array, "3 3"]:
  """Counts real slices by true (row) and predicted (column) stratum."""
  cell = jnp.where(mask, jnp.asarray(labels) * arrays.NUM_STRATA + jnp.asarray(strata), -1)
  flat = jnp.sum(cell[:, None] == jnp.arange(arrays.NUM_STRATA**2), axis=0)
  return flat.reshape(arrays.NUM_STRATA, arrays.NUM_STRATA)


def accuracy(confusion: Num[arrays.ArrayLike, "*batch 3 3"]) -> Float[arrays.ArrayLike, "*batch"]:
  """Returns the fraction of slices on the diagonal; NaN without slices."""
  return ratio(*accuracy_counts(confusion))


def sensitivity(
  confusion: Num[arrays.ArrayLike, "*batch 3 3"],
) -> Float[arrays.ArrayLike, "*batch 3"]:
  """Returns, per stratum, the fraction of its slices that were found; NaN where it has none."""
  return ratio(*sensitivity_counts(confusion))


def specificity(
  confusion: Num[arrays.ArrayLike, "*batch 3 3"],
) -> Float[arrays.ArrayLike, "*batch 3"]:
  """Returns, per stratum, the fraction of other slices not taken for it; NaN without others."""
  return ratio(*specificity_counts(confusion))


def accuracy_counts(
  confusion: Num[arrays.ArrayLike, "*batch 3 3"],
) -> tuple[_Count, _Count]:
  """Counts slices on the diagonal, and all slices."""
  return confusion.diagonal(axis1=-2, axis2=-1).sum(-1), confusion.sum((-2, -1))


def sensitivity_counts(
  confusion: Num[arrays.ArrayLike, "*batch 3 3"],
) -> tuple[Num[arrays.ArrayLike, "*batch 3"], Num[arrays.ArrayLike, "*batch 3"]]:
  """Counts, per stratum, its slices that were found, and its slices."""
  return confusion.diagonal(axis1=-2, axis2=-1), confusion.sum(-1)


def specificity_counts(
  confusion: Num[arrays.ArrayLike, "*batch 3 3"],
) -> tuple[Num[arrays.ArrayLike, "*batch 3"], Num[arrays.ArrayLike, "*batch 3"]]:
  """Counts, per stratum, the slices of others not taken for it, and the slices of others."""
  others = confusion.sum((-2, -1))[..., None] - confusion.sum(-1)
  false_positives = confusion.sum(-2) - confusion.diagonal(axis1=-2, axis2=-1)
  return others - false_positives, others


def ratio(part: _Count, whole: _Count) -> Float[arrays.ArrayLike, "*batch"]:
  """Divides; NaN where the whole is nothing."""
  # NumPy totals keep float64; JAX totals stay traceable.
  xp = jnp if isinstance(whole, jax.Array) else np
  return xp.where(whole > 0, part / xp.where(whole > 0, whole, 1), xp.nan)
