"""Where strata begin in a stack: boundaries as slices and as depths, and their errors.

Functions take one stack `[T]` and are batched by `vmap`. Real slices come first; what stands on
padding (any label, NaN depths) never changes a result. Labels do not tell how many strata there are:
where a function sees nothing else, it is told.
"""

from __future__ import annotations

import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from rcm_jax import arrays


def boundary_indices(
  strata: Int[arrays.ArrayLike, "T"], mask: Bool[arrays.ArrayLike, "T"], num_strata: int = 3
) -> Int[Array, "S"]:
  """Finds where the strata below the first one begin.

  Args:
    strata: stratum of each slice, shallow to deep.
    mask: True on real slices.
    num_strata: of the task; the paper's is 3.

  Returns:
    By boundary, index of the first slice at or below it (of three strata: of the DEJ and of the
    dermis); the count of real slices where there is none.
  """
  reached = (jnp.asarray(strata)[:, None] >= jnp.arange(1, num_strata)) & jnp.asarray(mask)[:, None]
  first = jnp.argmax(reached, axis=0)
  return jnp.where(reached.any(axis=0), first, jnp.sum(mask)).astype(jnp.int32)


def strata_between(
  indices: Int[arrays.ArrayLike, "S"], mask: Bool[arrays.ArrayLike, "T"]
) -> Int[Array, "T"]:
  """Returns the labelling that has the given boundaries: undoes `boundary_indices`.

  Args:
    indices: first slice at or below each boundary; they grow.
    mask: True on real slices.

  Returns:
    Stratum of each slice; 0 on padding.
  """
  slices = jnp.arange(len(mask))[:, None]
  return jnp.where(mask, (slices >= jnp.asarray(indices)).sum(axis=1), 0)


def boundary_depths_um(
  indices: Int[arrays.ArrayLike, "S"],
  depth_um: Float[arrays.ArrayLike, "T"],
  mask: Bool[arrays.ArrayLike, "T"],
) -> Float[Array, "S"]:
  """Turns boundary indices into depths in µm.

  Args:
    indices: as `boundary_indices` gives them.
    depth_um: depth of each slice in µm.
    mask: True on real slices.

  Returns:
    Depth of each boundary's first slice. A boundary that the stack never reaches lies one step
    past the last slice, a step being the distance between the last two slices (0 if there is
    only one).
  """
  depth = jnp.asarray(depth_um)
  count = jnp.sum(mask)
  last = depth[jnp.maximum(count - 1, 0)]
  past_end = 2 * last - depth[jnp.maximum(count - 2, 0)]
  inside = depth[jnp.clip(indices, 0, depth.shape[0] - 1)]
  return jnp.where(jnp.asarray(indices) < count, inside, past_end)


def boundary_errors_um(
  labels: Int[arrays.ArrayLike, "T"],
  strata: Int[arrays.ArrayLike, "T"],
  depth_um: Float[arrays.ArrayLike, "T"],
  mask: Bool[arrays.ArrayLike, "T"],
  num_strata: int = 3,
) -> tuple[Float[Array, "S"], Bool[Array, "S"]]:
  """Measures how far predicted boundaries lie from the true ones (Table 3, Figure 2).

  The paper leaves open what happens when a stack lacks a stratum. Here a boundary counts where
  the ground truth has it, that is where the stack shows the transition: a stack that starts at
  or below the boundary, or ends above it, has none.

  Args:
    labels: true stratum of each slice.
    strata: predicted stratum, after post-processing.
    depth_um: depth of each slice in µm.
    mask: True on real slices.
    num_strata: of the task; the paper's is 3.

  Returns:
    Signed errors in µm (positive: predicted too deep; 0 where the boundary does not count) and
    whether each boundary counts.
  """
  true, found = (boundary_indices(x, mask, num_strata) for x in (labels, strata))
  return index_errors_um(found, true, depth_um, mask)


def index_errors_um(
  indices: Int[arrays.ArrayLike, "S"],
  true_indices: Int[arrays.ArrayLike, "S"],
  depth_um: Float[arrays.ArrayLike, "T"],
  mask: Bool[arrays.ArrayLike, "T"],
) -> tuple[Float[Array, "S"], Bool[Array, "S"]]:
  """Does what `boundary_errors_um` does, for boundaries given by their indices."""
  counts = (jnp.asarray(true_indices) > 0) & (jnp.asarray(true_indices) < jnp.sum(mask))
  error = boundary_depths_um(indices, depth_um, mask) - boundary_depths_um(
    true_indices, depth_um, mask
  )
  return jnp.where(counts, error, 0.0), counts
