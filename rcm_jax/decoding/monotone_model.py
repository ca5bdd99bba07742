"""The monotone model of a stack: a distribution over its two boundaries.

A possible labelling goes epidermis → DEJ → dermis by steps of 0 or +1 and may start and end in
any stratum, so it is told by two slices: b1, the first at or below the DEJ, and b2, the first of
the dermis, where the count of real slices n stands for "not in this stack". Possible are
0 ≤ b1 < b2 ≤ n, all dermis (0, 0), and all epidermis (n, n). With unary scores e[t, stratum],

    P(b1, b2) ∝ exp(Σ_t e[t, stratum of t]) ∝ exp(A[b1] + B[b2]),
    A[b] = Σ_{t<b} (e[t, 0] - e[t, 1]),  B[b] = Σ_{t<b} (e[t, 1] - e[t, 2]).

Sums over all labellings are sums over pairs, and these are cumulative sums: no loop over slices
is left, and all is exact in log-space.

Functions take one stack and are batched by `vmap`; real slices come first.
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
  """Distribution over the two boundaries of a stack.

  Attributes:
    probability: row 0: first slice at or below the DEJ; row 1: first dermis slice. Column t is
      the probability that it is slice t; the count of real slices stands for "not in this
      stack". Rows sum to one.
    median: posterior medians, the boundaries of least expected absolute error; a possible pair.
  """

  probability: Float[Array, "*batch 2 T1"]
  median: Int[Array, "*batch 2"]


class _Sums(NamedTuple):
  """Logarithms by boundary index 0 … T; b is impossible above n."""

  first: Float[Array, " T1"]  # A
  second: Float[Array, " T1"]  # B
  deeper: Float[Array, " T1"]  # of exp(A[b]) times the sum over all b2 that go with b1 = b
  shallower: Float[Array, " T1"]  # of exp(B[b]) times the sum over all b1 that go with b2 = b
  total: Float[Array, ""]


def log_likelihood(
  unary_scores: Float[Array, "T 3"], mask: Bool[Array, "T"], boundaries: Int[Array, "2"]
) -> Float[Array, ""]:
  """Logarithm of the probability of two boundaries.

  Args:
    unary_scores: by slice and stratum; a constant added to a slice's row changes nothing. Padded rows
      may hold anything, NaN too.
    mask: True on real slices.
    boundaries: a possible pair (b1, b2).
  """
  sums = _sum_up(unary_scores, mask)
  return sums.first[boundaries[0]] + sums.second[boundaries[1]] - sums.total


def log_marginals(unary_scores: Float[Array, "T 3"], mask: Bool[Array, "T"]) -> Float[Array, "T 3"]:
  """Logarithms of each slice's stratum probabilities over all possible labellings.

  Going down, epidermis never becomes more probable and dermis never less: P(b1 ≤ t) is one minus
  the first and P(b2 ≤ t) is the last, so that marginals tell both boundaries' distributions.

  Args:
    unary_scores: as for `log_likelihood`.
    mask: True on real slices.

  Returns:
    Normalized rows, zero on padding.
  """
  first, second, deeper, shallower, total = _sum_up(unary_scores, mask)
  up_to = jax.lax.cumlogsumexp
  below = lambda x: jax.lax.cumlogsumexp(x, reverse=True)[1:]  # over b > t
  rows = jnp.stack([below(deeper), up_to(first)[:-1] + below(second), up_to(shallower)[:-1]], -1)
  return jnp.where(mask[:, None], jnp.maximum(rows - total, _LOG_ZERO), 0)


def expected_error_um(
  log_marginal: Float[Array, "T 3"],
  boundaries: Int[Array, "2"],
  depth_um: Float[Array, "T"],
  mask: Bool[Array, "T"],
) -> Float[Array, "2"]:
  """Expected absolute error of both boundaries in µm, over their distribution.

  A boundary is off by a step for every slice that lies on its wrong side, so the expectation is a
  sum over slices. "Not in this stack" lies one step past the last slice, as in `metrics`.

  Args:
    log_marginal: of `log_marginals`.
    boundaries: the true (b1, b2).
    depth_um: depth of each slice in µm.
    mask: True on real slices.
  """
  depth = jnp.where(mask, depth_um, 0)
  step = jnp.append(jnp.where(mask[1:], depth[1:] - depth[:-1], 0), 0)
  count = mask.sum()
  last_step = jnp.where(count > 1, step[jnp.maximum(count - 2, 0)], 0)
  step = step.at[jnp.maximum(count - 1, 0)].set(last_step)
  probability = jnp.exp(log_marginal)
  passed = jnp.stack([1 - probability[:, 0], probability[:, 2]])
  is_passed = jnp.arange(len(mask)) >= boundaries[:, None]
  wrong = jnp.where(is_passed, 1 - passed, passed)
  return jnp.where(mask, wrong * step, 0).sum(-1)


def boundary_posterior(
  unary_scores: Float[arrays.ArrayLike, "T 3"], mask: Bool[arrays.ArrayLike, "T"]
) -> BoundaryPosterior:
  """Computes the distribution of both boundaries.

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
  probability = jax.nn.softmax(jnp.stack([sums.deeper, sums.shallower]), axis=1)
  median = jnp.sum(jnp.cumsum(probability, axis=1) < HALF, axis=1)
  return BoundaryPosterior(probability, _possible(median, jnp.sum(mask)))


def order_log_odds(unary_scores: Float[Array, "T 3"], mask: Bool[Array, "T"]) -> Float[Array, ""]:
  """Log-odds that a stack's slices stand in their order and not in the opposite one.

  Args:
    unary_scores: as for `log_likelihood`, of slices that were judged without their neighbours.
    mask: True on real slices.
  """
  upwards = jnp.maximum(jnp.sum(mask) - 1 - jnp.arange(len(mask)), 0)
  return _sum_up(unary_scores, mask).total - _sum_up(unary_scores[upwards], mask).total


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
  return BoundaryPosterior(probability, _possible(jnp.sum(passed < HALF, axis=1), jnp.sum(mask)))


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


def _possible(median, count):
  """Medians are a possible pair; of equal halves, rounding could make them another."""
  first, second = jnp.minimum(median, count)
  inside = (first > 0) & (first < count)
  return jnp.stack([first, jnp.maximum(second, first + inside)])


def _sum_up(unary_scores, mask):
  length = unary_scores.shape[0]
  clean = jnp.where(mask[:, None], unary_scores, 0)
  index = jnp.arange(length + 1)
  count = mask.sum()
  from_start = lambda x: jnp.where(index <= count, jnp.append(0, jnp.cumsum(x)), _LOG_ZERO)
  first = from_start(clean[:, 0] - clean[:, 1])
  second = from_start(clean[:, 1] - clean[:, 2])
  zero = jnp.full(1, _LOG_ZERO, first.dtype)
  after = jnp.concatenate([jax.lax.cumlogsumexp(second, reverse=True)[1:], zero])  # b2 > b
  before = jnp.concatenate([zero, jax.lax.cumlogsumexp(first)[:-1]])  # b1 < b
  # In these two places both boundaries may be one.
  same = (index == 0) | (index == count)
  after = jnp.where(same, jnp.logaddexp(after, second), after)
  before = jnp.where(same, jnp.logaddexp(before, first), before)
  deeper, shallower = first + after, second + before
  return _Sums(first, second, deeper, shallower, jax.nn.logsumexp(deeper))
