"""What training minimises, by the likelihood that a head gives a batch of stacks' labels."""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int
import optax

from rcm_jax import arrays
from rcm_jax.decoding import boundaries, monotone_model


class Targets(NamedTuple):
  """Truth about stacks, as training needs it.

  Attributes:
    labels: one-hot strata.
    mask: True on real slices.
    boundaries: possible ones of `decoding.monotone_model`; see `targets_of`.
    shown: whether the stack shows each boundary, so that its error counts.
    depth_um: depth of each slice.
  """

  labels: Float[Array, "*batch T C"]
  mask: Bool[Array, "*batch T"]
  boundaries: Int[Array, "*batch S"]
  shown: Bool[Array, "*batch S"]
  depth_um: Float[Array, "*batch T"]


def targets_of(features: arrays.Features, num_strata: int = 3) -> Targets:
  """Returns the truth about all stacks.

  Readers' labels need not be possible. The boundaries are then the ones that errors are measured
  against (`boundaries.boundary_indices`), not those of the nearest possible labelling. Where they
  coincide inside a stack, which then lacks the stratum between them, such as the DEJ, the first slice
  of the stratum below, such as the dermis, counts as its.

  Args:
    features: of the stacks.
    num_strata: of the task; the paper's is 3.
  """
  labels, mask = jnp.asarray(features.labels), jnp.asarray(features.mask)
  find = lambda labels, mask: boundaries.boundary_indices(labels, mask, num_strata)
  found, count = jax.vmap(find)(labels, mask), mask.sum(1)
  return Targets(
    jax.nn.one_hot(labels, num_strata),
    mask,
    jax.vmap(monotone_model.nearest_possible)(found, count),
    (found > 0) & (found < count[:, None]),
    jnp.asarray(features.depth_um),
  )


def crop(
  values: Float[Array, "T F"], targets: Targets, place: Float[Array, "2"], shortest: float
) -> tuple[Float[Array, "T F"], Targets]:
  """Cuts a stack to some of its slices, so that a slice's place in it says little.

  Args:
    values: features, shallow to deep.
    targets: of the stack.
    place: two numbers from 0 to 1: how long the cut is, and where it starts.
    shortest: share of the slices that the shortest cut has.

  Returns:
    Features and targets of the slices that are left, moved to the front.
  """
  count = targets.mask.sum()
  length = jnp.ceil(count * (shortest + (1 - shortest) * place[0])).astype(jnp.int32)
  start = jnp.round((count - length) * place[1]).astype(jnp.int32)
  moved = lambda x: jnp.roll(x, -start, axis=0)
  mask = jnp.arange(len(targets.mask)) < length
  found = jnp.clip(targets.boundaries - start, 0, length)
  inside = targets.shown & (found > 0) & (found < length)
  depth_um = jnp.where(mask, moved(targets.depth_um), 0)
  left = Targets(moved(targets.labels), mask, found, inside, depth_um)
  return jnp.where(mask[:, None], moved(values), 0), left


def of_slices(logits: Float[Array, "B T C"], targets: Targets) -> Float[Array, ""]:
  """Mean cross-entropy of the slices."""
  losses = optax.softmax_cross_entropy(logits, targets.labels)
  return jnp.where(targets.mask, losses, 0).sum() / jnp.maximum(targets.mask.sum(), 1)


def of_boundaries(
  unary_scores: Float[Array, "B T C"],
  targets: Targets,
  mae_weight: Float[arrays.ArrayLike, ""] | float,
) -> Float[Array, ""]:
  """Negative log-likelihood of the boundaries, and their expected error if that weighs anything.

  Args:
    unary_scores: see `decoding.monotone_model`.
    targets: of the same stacks.
    mae_weight: of the mean expected absolute error of a boundary, per µm.

  Returns:
    Negative log-likelihood by slice, so that it compares with `of_slices`, plus the error's share.
  """
  mask = targets.mask
  log_likelihood = jax.vmap(monotone_model.log_likelihood)(unary_scores, mask, targets.boundaries)
  log_marginal = jax.vmap(monotone_model.log_marginals)(unary_scores, mask)
  error_um = jax.vmap(monotone_model.expected_error_um)(
    log_marginal, targets.boundaries, targets.depth_um, mask
  )
  shown = targets.shown
  mae_um = jnp.where(shown, error_um, 0).sum() / jnp.maximum(shown.sum(), 1)
  return -log_likelihood.sum() / jnp.maximum(mask.sum(), 1) + mae_weight * mae_um
