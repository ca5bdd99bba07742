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

from rcm_jax import anatomy, arrays

_Count = Num[arrays.ArrayLike, "*batch"] | np.number  # NumPy's sums over all axes are scalars


def inconsistent_transitions(
  strata: Int[arrays.ArrayLike, "T"], mask: Bool[arrays.ArrayLike, "T"], num_strata: int = 3
) -> Int[Array, " kinds"]:
  """Counts steps that anatomy forbids between consecutive slices, going down (Table 2).

  Args:
    strata: stratum of each slice, shallow to deep.
    mask: True on real slices.
    num_strata: of the task; the paper's is 3.

  Returns:
    How often each of `anatomy.impossible_steps` occurs; in the paper's task these are epidermis →
    dermis, dej → epidermis, dermis → epidermis and dermis → dej.
  """
  above, below = np.array(anatomy.impossible_steps(num_strata)).T
  clean = jnp.where(mask, strata, 0)
  real = (jnp.asarray(mask)[1:] & jnp.asarray(mask)[:-1])[:, None]
  taken = (clean[:-1, None] == above) & (clean[1:, None] == below)
  return jnp.sum(taken & real, axis=0)


def confusion_matrix(
  labels: Int[arrays.ArrayLike, "T"],
  strata: Int[arrays.ArrayLike, "T"],
  mask: Bool[arrays.ArrayLike, "T"],
  num_strata: int = 3,
) -> Int[Array, "C C"]:
  """Counts real slices by true (row) and predicted (column) stratum; the paper has 3 of them."""
  cell = jnp.where(mask, jnp.asarray(labels) * num_strata + jnp.asarray(strata), -1)
  flat = jnp.sum(cell[:, None] == jnp.arange(num_strata**2), axis=0)
  return flat.reshape(num_strata, num_strata)


def accuracy(confusion: Num[arrays.ArrayLike, "*batch C C"]) -> Float[arrays.ArrayLike, "*batch"]:
  """Returns the fraction of slices on the diagonal; NaN without slices."""
  return ratio(*accuracy_counts(confusion))


def sensitivity(
  confusion: Num[arrays.ArrayLike, "*batch C C"],
) -> Float[arrays.ArrayLike, "*batch C"]:
  """Returns, per stratum, the fraction of its slices that were found; NaN where it has none."""
  return ratio(*sensitivity_counts(confusion))


def specificity(
  confusion: Num[arrays.ArrayLike, "*batch C C"],
) -> Float[arrays.ArrayLike, "*batch C"]:
  """Returns, per stratum, the fraction of other slices not taken for it; NaN without others."""
  return ratio(*specificity_counts(confusion))


def accuracy_counts(
  confusion: Num[arrays.ArrayLike, "*batch C C"],
) -> tuple[_Count, _Count]:
  """Counts slices on the diagonal, and all slices."""
  return confusion.diagonal(axis1=-2, axis2=-1).sum(-1), confusion.sum((-2, -1))


def sensitivity_counts(
  confusion: Num[arrays.ArrayLike, "*batch C C"],
) -> tuple[Num[arrays.ArrayLike, "*batch C"], Num[arrays.ArrayLike, "*batch C"]]:
  """Counts, per stratum, its slices that were found, and its slices."""
  return confusion.diagonal(axis1=-2, axis2=-1), confusion.sum(-1)


def specificity_counts(
  confusion: Num[arrays.ArrayLike, "*batch C C"],
) -> tuple[Num[arrays.ArrayLike, "*batch C"], Num[arrays.ArrayLike, "*batch C"]]:
  """Counts, per stratum, the slices of others not taken for it, and the slices of others."""
  others = confusion.sum((-2, -1))[..., None] - confusion.sum(-1)
  false_positives = confusion.sum(-2) - confusion.diagonal(axis1=-2, axis2=-1)
  return others - false_positives, others


def ratio(part: _Count, whole: _Count) -> Float[arrays.ArrayLike, "*batch"]:
  """Divides; NaN where the whole is nothing."""
  # NumPy totals keep float64; JAX totals stay traceable.
  xp = jnp if isinstance(whole, jax.Array) else np
  return xp.where(whole > 0, part / xp.where(whole > 0, whole, 1), xp.nan)
