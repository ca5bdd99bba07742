"""The monotone model of a stack: a distribution over the boundaries between its C strata.

A possible labelling goes down the strata by steps of 0 or +1 and may start and end in any of them,
so it is told by C − 1 slices: b[k], the first at or below boundary k, where 0 means that the stack
starts below it and the count of real slices n that it ends above it. Possible are those that grow,
and neighbours that are both 0 or both n. With unary scores e[t, stratum],

    P(b) ∝ exp(Σ_t e[t, stratum of t]) ∝ exp(Σ_k A_k[b[k]]),  A_k[b] = Σ_{t<b} (e[t, k] − e[t, k + 1]).

Whether a labelling is possible is a matter of neighbouring boundaries, so boundaries make a chain.
Sums over all labellings go along it, C − 2 times forward and backward, and each step is one
cumulative sum over slices: O(T·C), no loop over slices, and all is exact in log-space.

Functions take one stack and are batched by `vmap`; real slices come first. C is the columns' number.
"""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from rcm_jax import arrays

# Stands for the logarithm of zero, as a number whose differences are numbers.
_LOG_ZERO = -1e30
# Stands for it where sums of other logarithms must not be lost beside it: its exponential is 0
# in float32.
_LEAST_SCORE = -110.0
# Where a boundary's median is reached. Two sure members that disagree make exact halves, of which
# the shallower slice is taken, however they round.
HALF = 0.5 - 1e-5


class BoundaryPosterior(NamedTuple):
  """Distribution over the boundaries of a stack.

  Attributes:
    probability: row k: of boundary k. Column t is the probability that its first slice below is
      slice t; the count of real slices stands for "not in this stack". Rows sum to one.
    median: posterior medians, the boundaries of least expected absolute error; they are possible.
  """

  probability: Float[Array, "*batch S T1"]
  median: Int[Array, "*batch S"]


class _Sums(NamedTuple):
  """Logarithms by boundary index 0 … T; b is impossible above n. One array a boundary k."""

  own: list[Float[Array, " T1"]]  # A_k
  down_to: list[Float[Array, " T1"]]  # of exp(A_0 + … + A_k) summed over all that go with b[k] = b
  up_to: list[Float[Array, " T1"]]  # of exp(A_k + … ) likewise
  both: list[Float[Array, " T1"]]  # of exp(all) summed over all that go with b[k] = b
  total: Float[Array, ""]


def log_likelihood(
  unary_scores: Float[Array, "T C"], mask: Bool[Array, "T"], boundaries: Int[Array, "S"]
) -> Float[Array, ""]:
  """Logarithm of the probability of a stack's boundaries.

  Args:
    unary_scores: by slice and stratum; a constant added to a slice's row changes nothing. Padded rows
      may hold anything, NaN too.
    mask: True on real slices.
    boundaries: possible ones, C − 1 of them.
  """
  sums = _sum_up(unary_scores, mask)
  return sum(own[boundaries[k]] for k, own in enumerate(sums.own)) - sums.total


def log_marginals(unary_scores: Float[Array, "T C"], mask: Bool[Array, "T"]) -> Float[Array, "T C"]:
  """Logarithms of each slice's stratum probabilities over all possible labellings.

  Going down, the strata above a boundary together never become more probable, so that marginals
  tell every boundary's distribution: see `passed`.

  Args:
    unary_scores: as for `log_likelihood`.
    mask: True on real slices.

  Returns:
    Normalized rows, zero on padding.
  """
  sums = _sum_up(unary_scores, mask)
  at_or_above = lambda x: jax.lax.cumlogsumexp(x)[:-1]  # over b ≤ t
  below = lambda x: jax.lax.cumlogsumexp(x, reverse=True)[1:]  # over b > t
  inner = zip(sums.down_to[:-1], sums.up_to[1:])
  between = [at_or_above(above) + below(next_one) for above, next_one in inner]
  rows = jnp.stack([below(sums.both[0]), *between, at_or_above(sums.both[-1])], -1)
  return jnp.where(mask[:, None], jnp.maximum(rows - sums.total, _LOG_ZERO), 0)


def passed(marginals: Float[arrays.ArrayLike, "*batch C"]) -> Float[Array, "*batch S"]:
  """Probability that a slice lies at or below each boundary, by the probabilities of its strata."""
  above = jnp.cumsum(marginals[..., :-2], axis=-1)
  return jnp.concatenate([1 - above, marginals[..., -1:]], axis=-1)


def expected_error_um(
  log_marginal: Float[Array, "T C"],
  boundaries: Int[Array, "S"],
  depth_um: Float[Array, "T"],
  mask: Bool[Array, "T"],
) -> Float[Array, "S"]:
  """Expected absolute error of each boundary in µm, over its distribution.

  A boundary is off by a step for every slice that lies on its wrong side, so the expectation is a
  sum over slices. "Not in this stack" lies one step past the last slice, as in `metrics`.

  Args:
    log_marginal: of `log_marginals`.
    boundaries: the true ones.
    depth_um: depth of each slice in µm.
    mask: True on real slices.
  """
  depth = jnp.where(mask, depth_um, 0)
  step = jnp.append(jnp.where(mask[1:], depth[1:] - depth[:-1], 0), 0)
  count = mask.sum()
  last_step = jnp.where(count > 1, step[jnp.maximum(count - 2, 0)], 0)
  step = step.at[jnp.maximum(count - 1, 0)].set(last_step)
  probability = passed(jnp.exp(log_marginal)).T
  is_passed = jnp.arange(len(mask)) >= boundaries[:, None]
  wrong = jnp.where(is_passed, 1 - probability, probability)
  return jnp.where(mask, wrong * step, 0).sum(-1)


def boundary_posterior(
  unary_scores: Float[arrays.ArrayLike, "T C"], mask: Bool[arrays.ArrayLike, "T"]
) -> BoundaryPosterior:
  """Computes the distribution of the boundaries.

  Args:
    unary_scores: as for `log_likelihood`; logarithms of probabilities, for example. Minus infinity
      forbids a stratum.
    mask: True on real slices.

  Returns:
    Probabilities over slices 0 to T and posterior medians.

  Examples:
    >>> scores = jnp.log(jnp.array([[0.9, 0.1, 0.0], [0.4, 0.6, 0.0], [0.0, 0.2, 0.8]]))
    >>> posterior = rcm_jax.boundary_posterior(scores, jnp.ones(3, bool))
    >>> posterior.median.tolist()  # the DEJ begins at slice 1, the dermis at slice 2
    [1, 2]
    >>> posterior.probability.shape  # of both boundaries, at slices 0 to 2 or not in this stack
    (2, 4)
  """
  mask = jnp.asarray(mask)
  scores = jnp.where(mask[:, None], jnp.maximum(jnp.asarray(unary_scores), _LOG_ZERO), 0)
  scores -= jax.lax.stop_gradient(scores.max(axis=1, keepdims=True))
  sums = _sum_up(jnp.maximum(scores, _LEAST_SCORE), mask)
  probability = jax.nn.softmax(jnp.stack(sums.both), axis=1)
  median = jnp.sum(jnp.cumsum(probability, axis=1) < HALF, axis=1)
  return BoundaryPosterior(probability, nearest_possible(median, jnp.sum(mask)))


def order_log_odds(unary_scores: Float[Array, "T C"], mask: Bool[Array, "T"]) -> Float[Array, ""]:
  """Log-odds that a stack's slices stand in their order and not in the opposite one.

  Args:
    unary_scores: as for `log_likelihood`, of slices that were judged without their neighbours.
    mask: True on real slices.
  """
  upwards = jnp.maximum(jnp.sum(mask) - 1 - jnp.arange(len(mask)), 0)
  return _sum_up(unary_scores, mask).total - _sum_up(unary_scores[upwards], mask).total


def marginal_posterior(
  marginals: Float[arrays.ArrayLike, "T C"], mask: Bool[arrays.ArrayLike, "T"]
) -> BoundaryPosterior:
  """Reads the distribution of the boundaries off marginals of the monotone model.

  A boundary lies at or above a slice if the slice is of a stratum below it. The same holds for
  means of several models' marginals.

  Args:
    marginals: of each slice's strata; padding may hold anything.
    mask: True on real slices.
  """
  by_boundary = jnp.where(mask, passed(jnp.asarray(marginals)).T, 1.0)
  by_boundary = jax.lax.cummax(by_boundary, axis=1)  # rounding aside, it is one
  probability = jnp.diff(by_boundary, axis=1, prepend=0.0, append=1.0)
  median = nearest_possible(jnp.sum(by_boundary < HALF, axis=1), jnp.sum(mask))
  return BoundaryPosterior(probability, median)


def posterior_of(
  probabilities: Float[arrays.ArrayLike, "T C"],
  mask: Bool[arrays.ArrayLike, "T"],
  temperature: Float[arrays.ArrayLike, ""] | float | None,
) -> BoundaryPosterior:
  """Infers the boundaries from a model's probabilities.

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


def nearest_possible(
  indices: Int[Array, "S"], count: Int[arrays.ArrayLike, ""] | int
) -> Int[Array, "S"]:
  """Moves boundaries that coincide inside a stack apart, downwards; possible ones stay.

  Args:
    indices: of first slices below the boundaries; they never decrease.
    count: of the real slices.
  """
  found = [jnp.minimum(indices[0], count)]
  for index in indices[1:]:
    above = found[-1]
    inside = (above > 0) & (above < count)
    found.append(jnp.maximum(jnp.minimum(index, count), above + inside))
  return jnp.stack(found)


def _sum_up(unary_scores, mask):
  length, strata = unary_scores.shape
  clean = jnp.where(mask[:, None], unary_scores, 0)
  index = jnp.arange(length + 1)
  count = mask.sum()
  from_start = lambda x: jnp.where(index <= count, jnp.append(0, jnp.cumsum(x)), _LOG_ZERO)
  own = [from_start(clean[:, k] - clean[:, k + 1]) for k in range(strata - 1)]
  zero = jnp.full(1, _LOG_ZERO, own[0].dtype)
  # In these two places neighbouring boundaries may be one.
  same = (index == 0) | (index == count)

  def deeper(x):  # over the next boundary
    after = jnp.concatenate([jax.lax.cumlogsumexp(x, reverse=True)[1:], zero])
    return jnp.where(same, jnp.logaddexp(after, x), after)

  def shallower(x):  # over the boundary before
    before = jnp.concatenate([zero, jax.lax.cumlogsumexp(x)[:-1]])
    return jnp.where(same, jnp.logaddexp(before, x), before)

  down_to, up_to = own[:1], own[-1:]
  for k in range(1, strata - 1):
    down_to.append(own[k] + shallower(down_to[-1]))
    up_to.insert(0, own[-1 - k] + deeper(up_to[0]))
  inner = [down_to[k] + deeper(up_to[k + 1]) for k in range(1, strata - 2)]
  both = [up_to[0], *inner, *down_to[1:][-1:]]
  return _Sums(own, down_to, up_to, both, jax.nn.logsumexp(up_to[0]))
