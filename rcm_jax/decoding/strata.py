"""From class probabilities by slice to strata that a skin can have.

`median_then_max` is the paper's post-processing. `monotone` and
`boundary_posterior` replace it by a model: labellings go epidermis → DEJ →
dermis, each slice staying in the stratum above it or entering the next one,
and a stack may start and end in any stratum. Slices are independent given the
labelling, so a labelling's score is the sum of its slices' log-probabilities.

Functions take one stack and are batched by `vmap`; real slices come first.
"""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from rcm_jax import arrays

# Stands for the logarithm of zero: sums of a few hundred stay finite, so no infinity is ever
# subtracted from another and an impossible stack still decodes to a possible labelling.
_LOG_ZERO = -1e30


class BoundaryPosterior(NamedTuple):
  """Distribution over the two boundaries of a stack.

  Attributes:
    probability: row 0: first slice at or below the DEJ; row 1: first dermis slice. Column t is
      the probability that it is slice t; the count of real slices stands for "not in this
      stack". Rows sum to one.
    median: posterior medians, the boundaries of least expected absolute error.
  """

  probability: Float[Array, "*batch 2 T1"]
  median: Int[Array, "*batch 2"]


def strata_of(
  probabilities: Float[arrays.ArrayLike, "*batch 3"], *, ordered: bool
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
  return (probabilities[..., 0] <= 0.5).astype(int) + (probabilities[..., 2] >= 0.5)


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
  """
  x = jnp.where(mask, strata, 0)
  above = jnp.concatenate([x[:1], x[:-1]])
  below = jnp.where(_next_is_real(mask), jnp.concatenate([x[1:], x[-1:]]), x)
  median = jnp.maximum(jnp.minimum(above, below), jnp.minimum(x, jnp.maximum(above, below)))
  return jnp.where(mask, jax.lax.cummax(median), 0)


def monotone(
  log_probs: Float[arrays.ArrayLike, "T 3"], mask: Bool[arrays.ArrayLike, "T"]
) -> Int[Array, "T"]:
  """Finds the most probable possible labelling (Viterbi, linear in T).

  Args:
    log_probs: logarithm of each stratum's probability; rows need not be normalized.
    mask: True on real slices.

  Returns:
    Strata that start anywhere, end anywhere and step by 0 or +1; 0 on padding. Of equally
    probable labellings, the one that ends shallower, and leaves its strata later.
  """
  best = _forward(_clean(log_probs, mask), mask, jnp.maximum)

  def step(allowed, inputs):
    score, real = inputs
    stratum = jnp.argmax(jnp.where(allowed, score, -jnp.inf))
    distance = stratum - jnp.arange(arrays.NUM_STRATA)
    return jnp.where(real, (distance == 0) | (distance == 1), allowed), stratum

  anything = jnp.ones(arrays.NUM_STRATA, bool)
  _, strata = jax.lax.scan(step, anything, (best, jnp.asarray(mask)), reverse=True)
  return jnp.where(mask, strata, 0)


def boundary_posterior(
  log_probs: Float[arrays.ArrayLike, "T 3"], mask: Bool[arrays.ArrayLike, "T"]
) -> BoundaryPosterior:
  """Computes the distribution of both boundaries by forward-backward, linear in T.

  Args:
    log_probs: logarithm of each stratum's probability; rows need not be normalized.
    mask: True on real slices.

  Returns:
    Probabilities over slices 0 to T and posterior medians.
  """
  clean = _clean(log_probs, mask)
  mask = jnp.asarray(mask)
  above = _forward(clean, mask, jnp.logaddexp)  # slices up to and with t
  # Upside down and with strata in reverse, a possible labelling is a possible labelling.
  below = _forward(clean[::-1, ::-1], mask[::-1], jnp.logaddexp)[::-1, ::-1]  # t and deeper
  log_marginal = above + below - clean
  total = jax.nn.logsumexp(log_marginal[0])
  marginal = jnp.where(mask[:, None], jnp.exp(log_marginal - total), 0.0)
  # Boundary b is entered at t > 0 by going from stratum b to b + 1 there.
  enters = jnp.where(mask[1:, None], jnp.exp(above[:-1, :2] + below[1:, 1:] - total), 0.0)
  starts_past = jnp.stack([marginal[0, 1] + marginal[0, 2], marginal[0, 2]])
  count = jnp.sum(mask)
  last = marginal[jnp.maximum(count - 1, 0)]
  never = jnp.where(count > 0, jnp.stack([last[0], last[0] + last[1]]), 1.0)
  probability = jnp.concatenate([starts_past[None], enters, jnp.zeros((1, 2))])
  probability = probability.at[count].set(never)
  probability = (probability / jnp.sum(probability, axis=0)).T
  median = jnp.sum(jnp.cumsum(probability, axis=1) < 0.5, axis=1)
  return BoundaryPosterior(probability, jnp.minimum(median, count))


def marginal_posterior(
  marginals: Float[arrays.ArrayLike, "T 3"], mask: Bool[arrays.ArrayLike, "T"]
) -> BoundaryPosterior:
  """Reads the distribution of both boundaries off marginals of the monotone model.

  The first boundary lies at or above a slice if the slice is not epidermis, the second one if it
  is dermis. The same holds for means of several models' marginals.

  Args:
    marginals: of each slice's strata; padding may hold anything.
    mask: True on real slices.
  """
  passed = jnp.stack([1 - marginals[:, 0], marginals[:, 2]])
  passed = jax.lax.cummax(jnp.where(mask, passed, 1.0), axis=1)  # rounding aside, it is one
  probability = jnp.diff(passed, axis=1, prepend=0.0, append=1.0)
  return BoundaryPosterior(probability, jnp.sum(passed < 0.5, axis=1))


def posterior_of(
  probabilities: Float[arrays.ArrayLike, "T 3"],
  mask: Bool[arrays.ArrayLike, "T"],
  temperature: Float[arrays.ArrayLike, ""] | float | None,
) -> BoundaryPosterior:
  """Infers both boundaries from a model's probabilities.

  Args:
    probabilities: of each slice's strata.
    mask: True on real slices.
    temperature: divides their logarithms; None for marginals of the monotone model, which hold
      the whole stack's evidence already.
  """
  if temperature is None:
    return marginal_posterior(probabilities, mask)
  tiny = jnp.finfo(jnp.float32).tiny
  return boundary_posterior(jnp.log(jnp.maximum(probabilities, tiny)) / temperature, mask)


def boundary_quantiles_um(
  probability: Float[arrays.ArrayLike, "2 T1"],
  levels: Float[arrays.ArrayLike, " Q"],
  depth_um: Float[arrays.ArrayLike, "T"],
  mask: Bool[arrays.ArrayLike, "T"],
) -> Float[Array, "2 Q"]:
  """Reads depths off the boundaries' distribution.

  A slice's probability is spread evenly over the tissue that it stands for, half a step to
  either side, so that depths vary continuously and not by slices. "Not in this stack" stands
  one step past the last slice.

  Args:
    probability: of a `BoundaryPosterior`.
    levels: cumulative probabilities, in (0, 1).
    depth_um: depth of each slice in µm.
    mask: True on real slices.

  Returns:
    Depth in µm of both boundaries at every level.
  """
  count = jnp.sum(mask)
  depth = jnp.where(mask, depth_um, 0.0)
  last = depth[jnp.maximum(count - 1, 0)]
  step = last - depth[jnp.maximum(count - 2, 0)]
  places = jnp.where(jnp.asarray(mask), depth, last + step)
  places = jnp.concatenate([places, (last + step)[None]])
  between = (places[1:] + places[:-1]) / 2
  first = places[:1] - (between[:1] - places[:1])
  edges = jnp.concatenate([first, between, (last + 1.5 * step)[None]])
  # Behind "not in this stack" no probability is left, and no depth.
  edges = jnp.where(jnp.arange(len(edges)) > count, last + 1.5 * step, edges)
  cumulative = jnp.cumsum(jnp.asarray(probability), axis=1)
  cumulative = jnp.concatenate([jnp.zeros((2, 1)), cumulative], axis=1)
  return jax.vmap(lambda c: jnp.interp(jnp.asarray(levels), c, edges))(cumulative)


def _next_is_real(mask):
  return jnp.concatenate([jnp.asarray(mask)[1:], jnp.zeros(1, bool)])


def _clean(log_probs, mask):
  finite = jnp.maximum(jnp.asarray(log_probs), _LOG_ZERO)
  return jnp.where(jnp.asarray(mask)[:, None], finite, 0.0)


def _forward(log_probs, mask, combine):
  """Scores of every slice and stratum, over all ways to get there from the first slice.

  `combine` is `maximum` for the best way, `logaddexp` for the sum over all.
  """

  def step(prior, inputs):
    row, real = inputs
    score = prior + row
    entered = jnp.concatenate([jnp.full(1, _LOG_ZERO, score.dtype), score[:-1]])
    return jnp.where(real, combine(score, entered), prior), score

  prior = jnp.zeros(arrays.NUM_STRATA, log_probs.dtype)
  return jax.lax.scan(step, prior, (log_probs, jnp.asarray(mask)))[1]
