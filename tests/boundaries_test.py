"""The monotone model against brute force over all labellings that skin can have."""

import jax
import jax.numpy as jnp
import numpy as np
import precision
import pytest

from rcm_jax.decoding import boundaries, monotone_model
from rcm_jax.decoding import strata as strata_lib
from rcm_jax.evaluation import metrics

pytestmark = pytest.mark.kernels

CASES = ((1, 3), (2, 3), (12, 3), (9, 2), (1, 4), (8, 4), (7, 5))  # slices, strata


def labellings(length, strata=3):
  """All labellings with steps 0 or +1, grown slice by slice."""
  paths = [[s] for s in range(strata)]
  for _ in range(length - 1):
    paths = [[*path, s] for path in paths for s in (path[-1], path[-1] + 1) if s < strata]
  return np.array(paths)


def evidence(length, seed=0, scale=3.0, strata=3):
  return np.random.default_rng(seed).normal(scale=scale, size=(length, strata))


def chains(paths, strata):
  """The boundaries of labellings."""
  return np.stack([(paths <= k).sum(1) for k in range(strata - 1)], 1)


def scores(e, paths):
  """Score of every labelling; differentiable."""
  return e[jnp.arange(paths.shape[1]), paths].sum(-1)


@pytest.mark.parametrize(("length", "strata"), CASES)
def test_likelihood_is_that_of_all_labellings_in_value_and_gradient(length, strata):
  paths, e = labellings(length, strata), evidence(length, strata=strata)
  with jax.enable_x64(True):
    whole = jnp.ones(length, bool)
    fast = jax.vmap(jax.value_and_grad(monotone_model.log_likelihood), (None, None, 0))
    value, gradient = jax.jit(fast)(jnp.asarray(e), whole, jnp.asarray(chains(paths, strata)))
    slow = lambda e: jax.nn.log_softmax(scores(e, paths))
    assert value.dtype == jnp.float64
    np.testing.assert_allclose(value, slow(jnp.asarray(e)), rtol=1e-12, atol=1e-12)
    np.testing.assert_allclose(gradient, jax.jit(jax.jacobian(slow))(jnp.asarray(e)), atol=1e-12)


@pytest.mark.parametrize(("length", "strata"), CASES)
def test_marginals_are_those_of_all_labellings_in_value_and_gradient(length, strata):
  paths, e = labellings(length, strata), evidence(length, 1, strata=strata)
  weight = evidence(length, 2, 1.0, strata)

  def slow(e):
    marginals = jnp.einsum("p,ptc->tc", jax.nn.softmax(scores(e, paths)), jnp.eye(strata)[paths])
    return (weight * marginals).sum(), marginals

  def fast(e):
    marginals = jnp.exp(monotone_model.log_marginals(e, jnp.ones(length, bool)))
    return (weight * marginals).sum(), marginals

  with jax.enable_x64(True):
    gradient, marginals = jax.jit(jax.grad(fast, has_aux=True))(jnp.asarray(e))
    expected_gradient, expected = jax.jit(jax.grad(slow, has_aux=True))(jnp.asarray(e))
    np.testing.assert_allclose(marginals, expected, atol=1e-12)
    np.testing.assert_allclose(gradient, expected_gradient, atol=1e-12)


@pytest.mark.parametrize(("length", "strata"), CASES)
def test_expected_error_is_the_mean_over_all_labellings(length, strata):
  paths, e = labellings(length, strata), evidence(length, 3, strata=strata)
  depth = np.cumsum(np.random.default_rng(0).uniform(1, 5, length))
  mask = jnp.ones(length, bool)
  possible = jnp.asarray(chains(paths, strata))

  def slow(e, depth):
    every = jax.vmap(boundaries.boundary_depths_um, (0, None, None))(possible, depth, mask)
    weights = jax.nn.softmax(scores(e, paths))
    return jnp.einsum("p,pqb->qb", weights, jnp.abs(every[:, None] - every))

  @jax.jit
  def fast(e, depth):
    marginal = monotone_model.log_marginals(e, mask)
    error = jax.vmap(monotone_model.expected_error_um, (None, 0, None, None))
    return error(marginal, possible, depth, mask)

  e, depth = jnp.asarray(e, jnp.float32), jnp.asarray(depth, jnp.float32)
  precision.assert_close(fast(e, depth), precision.in_float64(slow, e, depth), slow(e, depth))


@pytest.mark.parametrize(("length", "strata"), CASES)
def test_boundaries_are_distributed_as_in_all_labellings_and_medians_are_possible(length, strata):
  paths = labellings(length, strata)
  every = chains(paths, strata)
  posterior = jax.jit(monotone_model.boundary_posterior)
  for seed in range(5):
    e = evidence(length, seed, 2.0, strata)
    with jax.enable_x64(True):
      found = posterior(jnp.asarray(e), jnp.ones(length, bool))
    weight = np.exp(e[np.arange(length), paths].sum(1))
    at = np.arange(length + 1)
    expected = np.einsum("p,pbt->bt", weight / weight.sum(), every[..., None] == at)
    np.testing.assert_allclose(found.probability, expected, atol=1e-12)
    if np.abs(np.cumsum(expected, axis=1)[:, :-1] - 0.5).min() > 1e-4:
      np.testing.assert_array_equal(found.median, (np.cumsum(expected, axis=1) < 0.5).sum(1))
    assert found.median.tolist() in every.tolist()


def test_coinciding_boundaries_are_moved_apart_as_little_as_downwards_goes():
  for given, expected in (
    ([3, 3, 3], [3, 4, 5]),
    ([4, 4, 4], [4, 5, 5]),
    ([0, 0, 2], [0, 0, 2]),
    ([5, 5, 5], [5, 5, 5]),
    ([1, 4, 9], [1, 4, 5]),
  ):
    assert monotone_model.nearest_possible(jnp.array(given), 5).tolist() == expected


@pytest.mark.parametrize("strata", [2, 3, 4, 5])
def test_marginals_tell_the_boundaries_and_their_medians_are_a_possible_labelling(strata):
  rng = np.random.default_rng(5)
  mask = jnp.arange(9) < 7
  marginals = jax.jit(lambda e: jnp.exp(monotone_model.log_marginals(e, mask)))
  posterior = jax.jit(lambda e: monotone_model.boundary_posterior(e, mask))
  read = jax.jit(lambda p: monotone_model.marginal_posterior(p, mask))
  for scale in (0.01, 0.3, 1.0, 3.0, 10.0):
    for _ in range(10):
      e = jnp.asarray(rng.normal(scale=scale, size=(9, strata)), jnp.float32)
      p = marginals(e).at[7:].set(jnp.nan)
      found, expected = read(p), posterior(e)
      np.testing.assert_allclose(found.probability, expected.probability, atol=2e-5)
      if np.abs(np.cumsum(expected.probability, axis=1) - 0.5).min() > 1e-4:
        np.testing.assert_array_equal(found.median, expected.median)
      labels = strata_lib.strata_of(p, ordered=True)
      indices = boundaries.boundary_indices(labels, mask, strata)
      np.testing.assert_array_equal(indices, found.median)
      assert not np.any(metrics.inconsistent_transitions(labels, mask, strata))


def test_padding_equals_truncation_in_value_and_gradient():
  e, depth = jnp.asarray(evidence(8), jnp.float32), jnp.arange(8.0)
  true = jnp.array([2, 5])

  def total(e, depth, mask):
    marginal = monotone_model.log_marginals(e, mask)
    error = monotone_model.expected_error_um(marginal, true, depth, mask)
    loss = error.sum() - monotone_model.log_likelihood(e, mask, true) + (marginal**2).sum()
    return loss, (marginal, error)

  gradient = jax.jit(jax.grad(total, has_aux=True))
  whole = (e, depth, jnp.ones(8, bool))
  exact, plain = precision.references(gradient, *whole)
  padded = jnp.pad(e, ((0, 3), (0, 0)), constant_values=jnp.nan)
  padded_depth = jnp.pad(depth, (0, 3), constant_values=jnp.nan)
  longer, (longer_marginal, longer_error) = gradient(padded, padded_depth, jnp.arange(11) < 8)
  precision.assert_close((longer[:8], (longer_marginal[:8], longer_error)), exact, plain)
  assert not np.any(longer[8:])
  assert not np.any(longer_marginal[8:])


def test_a_stack_of_padding_alone_has_finite_loss_and_no_gradient():
  mask, none = jnp.zeros(4, bool), jnp.zeros(2, int)
  both = jax.jit(jax.value_and_grad(monotone_model.log_likelihood))
  value, gradient = both(jnp.full((4, 3), jnp.nan), mask, none)
  assert np.isfinite(value)
  assert not np.any(gradient)


def test_vmapped_equals_single():
  e = jnp.asarray(evidence(5 * 9).reshape(5, 9, 3), jnp.float32)
  mask = jnp.arange(9) < jnp.array([9, 1, 4, 6, 0])[:, None]
  true = jnp.array([[2, 5], [0, 0], [4, 4], [0, 6], [0, 0]])
  for function, more in (
    (monotone_model.log_likelihood, (true,)),
    (monotone_model.log_marginals, ()),
  ):
    batched = jax.jit(jax.vmap(function))(e, mask, *more)
    for i in range(5):
      alone = (e[i], mask[i], *(x[i] for x in more))
      precision.assert_close(batched[i], *precision.references(function, *alone))


def test_strong_evidence_stays_finite():
  e = jnp.tile(jnp.array([[80.0, -80.0, 0.0], [-80.0, 0.0, 80.0]]), (35, 1))
  both = jax.jit(jax.value_and_grad(monotone_model.log_likelihood))
  value, gradient = both(e, jnp.ones(70, bool), jnp.array([10, 60]))
  assert np.isfinite(value)
  assert np.isfinite(gradient).all()
