"""From class probabilities by slice to strata that a skin can have.

`median_then_max` is the paper's post-processing. `monotone` finds the most
probable labelling of `monotone_model`: labellings go down the strata, each
slice staying in the stratum above it or entering the next one, and a stack may
start and end in any stratum. Slices are independent given the labelling, so a
labelling's score is the sum of its slices' log-probabilities.

Functions take one stack and are batched by `vmap`; real slices come first.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from rcm_jax import arrays

# Stands for the logarithm of zero: sums of a few hundred stay finite, so an impossible stack still
# decodes to a possible labelling.
_LOG_ZERO = -1e30


def strata_of(
  probabilities: Float[arrays.ArrayLike, "*batch C"], *, ordered: bool
) -> Int[arrays.ArrayLike, "*batch"]:
  """Returns each slice's predicted stratum.

  Args:
    probabilities: of the strata.
    ordered: whether they are marginals of the monotone model. Then a slice's stratum is its
      median one: the labelling whose boundaries are the posterior medians. It is always possible,
      which the most probable strata need not be.

  Returns:
    Otherwise the most probable stratum; of equals the shallowest.
  """
  if not ordered:
    return probabilities.argmax(-1)
  above = probabilities[..., :-2].cumsum(-1)
  return (above <= 0.5).sum(-1) + (probabilities[..., -1] >= 0.5)


def median_then_max(
  strata: Int[arrays.ArrayLike, "T"], mask: Bool[arrays.ArrayLike, "T"]
) -> Int[Array, "T"]:
  """Applies the paper's heuristic: 3-slice median, then causal running maximum.

  The paper does not say what the median does at the ends; here the end slice is repeated, so
  that the first and last real slice pass through unchanged.

  Args:
    strata: predicted stratum of each slice, shallow to deep.
    mask: True on real slices.

  Returns:
    Strata that never decrease with depth; 0 on padding.

  Examples:
    >>> strata = jnp.array([0, 2, 0, 1, 1, 0, 2])
    >>> rcm_jax.median_then_max(strata, jnp.ones(7, bool)).tolist()
    [0, 0, 1, 1, 1, 1, 2]
  """
  x = jnp.where(mask, strata, 0)
  above = jnp.concatenate([x[:1], x[:-1]])
  below = jnp.where(_next_is_real(mask), jnp.concatenate([x[1:], x[-1:]]), x)
  median = jnp.maximum(jnp.minimum(above, below), jnp.minimum(x, jnp.maximum(above, below)))
  return jnp.where(mask, jax.lax.cummax(median), 0)


def monotone(
  log_probs: Float[arrays.ArrayLike, "T C"], mask: Bool[arrays.ArrayLike, "T"]
) -> Int[Array, "T"]:
  """Finds the most probable possible labelling (Viterbi, linear in T).

  Args:
    log_probs: logarithm of each stratum's probability; rows need not be normalized.
    mask: True on real slices.

  Returns:
    Strata that start anywhere, end anywhere and step by 0 or +1; 0 on padding. Of equally
    probable labellings, the one that ends shallower, and leaves its strata later.

  Examples:
    The second slice looks like dermis, which cannot lie above epidermis:

    >>> probabilities = jnp.array(
    ...   [[0.8, 0.1, 0.1], [0.3, 0.1, 0.6], [0.7, 0.2, 0.1], [0.1, 0.8, 0.1], [0.1, 0.1, 0.8]]
    ... )
    >>> rcm_jax.monotone(jnp.log(probabilities), jnp.ones(5, bool)).tolist()
    [0, 0, 0, 1, 2]
  """
  mask = jnp.asarray(mask)
  count = log_probs.shape[-1]
  finite = jnp.where(mask[:, None], jnp.maximum(jnp.asarray(log_probs), _LOG_ZERO), 0.0)

  def best_so_far(prior, inputs):
    row, real = inputs
    score = prior + row
    entered = jnp.concatenate([jnp.full(1, _LOG_ZERO, score.dtype), score[:-1]])
    return jnp.where(real, jnp.maximum(score, entered), prior), score

  def step(allowed, inputs):
    score, real = inputs
    stratum = jnp.argmax(jnp.where(allowed, score, -jnp.inf))
    distance = stratum - jnp.arange(count)
    return jnp.where(real, (distance == 0) | (distance == 1), allowed), stratum

  start = jnp.zeros(count, finite.dtype)
  _, best = jax.lax.scan(best_so_far, start, (finite, mask))
  anything = jnp.ones(count, bool)
  _, strata = jax.lax.scan(step, anything, (best, mask), reverse=True)
  return jnp.where(mask, strata, 0)


def _next_is_real(mask):
  return jnp.concatenate([jnp.asarray(mask)[1:], jnp.zeros(1, bool)])
