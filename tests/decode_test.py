"""Decoding against brute force over all labellings."""

from __future__ import annotations

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import precision
import pytest
from scipy import ndimage

from rcm_jax.decoding import intervals, monotone_model
from rcm_jax.decoding import strata as strata_lib
from rcm_jax.evaluation import metrics

pytestmark = pytest.mark.kernels

PADDED = 12
_monotone = jax.jit(strata_lib.monotone)
_posterior = jax.jit(monotone_model.boundary_posterior)
_median_then_max = jax.jit(strata_lib.median_then_max)


def labellings(length):
  """All labellings with steps 0 or +1, found the slow way."""
  every = np.array(list(itertools.product(range(3), repeat=length)), np.int32)
  steps = np.diff(every, axis=1)
  return every[((steps == 0) | (steps == 1)).all(axis=1)]


def padded(log_probs, fill=np.nan):
  out = np.full((PADDED, 3), fill, np.float32)
  out[: len(log_probs)] = log_probs
  return out, np.arange(PADDED) < len(log_probs)


def random_log_probs(rng, length, scale=2.0):
  logits = rng.normal(scale=scale, size=(length, 3))
  return (logits - np.log(np.exp(logits).sum(-1, keepdims=True))).astype(np.float32)


def scores(log_probs, paths):
  return log_probs.astype(np.float64)[np.arange(len(log_probs)), paths].sum(-1)


@pytest.mark.parametrize("length", range(1, PADDED + 1))
def test_monotone_is_the_best_of_all_labellings(length):
  rng = np.random.default_rng(length)
  paths = labellings(length)
  for _ in range(5):
    log_probs = random_log_probs(rng, length)
    found = np.asarray(_monotone(*padded(log_probs)))
    best = paths[np.argmax(scores(log_probs, paths))]
    np.testing.assert_array_equal(found[:length], best)
    np.testing.assert_array_equal(found[length:], 0)


@pytest.mark.parametrize("length", range(1, PADDED + 1))
def test_boundary_posterior_is_the_sum_over_all_labellings(length):
  rng = np.random.default_rng(length)
  paths = labellings(length)
  begins = np.stack([(paths < 1).sum(1), (paths < 2).sum(1)])
  for _ in range(5):
    log_probs = random_log_probs(rng, length, scale=1.0)
    weight = np.exp(scores(log_probs, paths))
    rounded = np.exp(scores(log_probs, paths).astype(np.float32))
    expected, plain = np.zeros((2, PADDED + 1)), np.zeros((2, PADDED + 1), np.float32)
    for row in range(2):
      np.add.at(expected[row], begins[row], weight / weight.sum())
      np.add.at(plain[row], begins[row], rounded / rounded.sum())
    found = _posterior(*padded(log_probs))
    precision.assert_close(found.probability, expected, plain)
    for row in range(2):
      error = np.abs(np.arange(length + 1)[:, None] - begins[row]) @ weight
      assert error[found.median[row]] <= error.min() * (1 + 1e-5)


def test_class_order_is_shallow_to_deep():
  probs = np.array([[0.9, 0.05, 0.05], [0.05, 0.9, 0.05], [0.05, 0.05, 0.9]], np.float32)
  mask = np.ones(3, bool)
  np.testing.assert_array_equal(_monotone(np.log(probs), mask), [0, 1, 2])
  # Dermis, DEJ, epidermis cannot be: it starts where the evidence is strongest and stays.
  upside_down = np.asarray(_monotone(np.log(probs[::-1]), mask))
  assert (np.diff(upside_down) >= 0).all()


@pytest.mark.parametrize("stratum", range(3))
def test_a_stack_may_lie_in_one_stratum(stratum):
  probs = np.full((5, 3), 0.01, np.float32)
  probs[:, stratum] = 0.98
  np.testing.assert_array_equal(_monotone(np.log(probs), np.ones(5, bool)), stratum)
  posterior = _posterior(np.log(probs), np.ones(5, bool))
  expected = [0 if stratum >= 1 else 5, 0 if stratum >= 2 else 5]
  np.testing.assert_array_equal(posterior.median, expected)


def test_zero_probabilities_are_obeyed_and_never_become_nan():
  log_probs = np.full((4, 3), -np.inf, np.float32)
  log_probs[[0, 1, 2, 3], [0, 0, 1, 2]] = 0.0
  mask = np.ones(4, bool)
  np.testing.assert_array_equal(_monotone(log_probs, mask), [0, 0, 1, 2])
  posterior = _posterior(log_probs, mask)
  np.testing.assert_allclose(posterior.probability[0], [0, 0, 1, 0, 0])
  np.testing.assert_allclose(posterior.probability[1], [0, 0, 0, 1, 0])
  impossible = np.ascontiguousarray(log_probs[::-1])
  strata = np.asarray(_monotone(impossible, mask))
  assert np.isin(np.diff(strata), [0, 1]).all()
  posterior = _posterior(impossible, mask)
  precision.assert_close(np.sum(posterior.probability, axis=1), np.ones(2))


def test_posterior_gradient_is_finite_at_zero_probability():
  log_probs = jnp.log(jnp.array([[1.0, 0.0, 0.0], [0.5, 0.5, 0.0], [0.0, 0.2, 0.8]]))
  mask = np.array([True, True, True])
  gradient = jax.jit(
    jax.grad(lambda x: monotone_model.boundary_posterior(x, mask).probability[0, 1])
  )(log_probs)
  assert np.isfinite(gradient).all()


@pytest.mark.parametrize("length", [1, 5, PADDED])
def test_padding_changes_nothing(length):
  log_probs = random_log_probs(np.random.default_rng(0), length)
  alone = np.ones(length, bool)
  for fill in (np.nan, np.inf, 7.0):
    long, mask = padded(log_probs, fill)
    np.testing.assert_array_equal(_monotone(long, mask)[:length], _monotone(log_probs, alone))
    a, b = _posterior(long, mask), _posterior(log_probs, alone)
    exact = precision.in_float64(_posterior, log_probs, alone).probability
    precision.assert_close(a.probability[:, : length + 1], exact, b.probability)
    np.testing.assert_array_equal(a.probability[:, length + 1 :], 0)
    np.testing.assert_array_equal(a.median, b.median)


def test_a_stack_of_padding_alone_is_harmless():
  nothing = np.zeros(4, bool)
  log_probs = np.full((4, 3), np.nan, np.float32)
  np.testing.assert_array_equal(_monotone(log_probs, nothing), 0)
  posterior = _posterior(log_probs, nothing)
  np.testing.assert_array_equal(posterior.median, 0)
  np.testing.assert_allclose(np.sum(posterior.probability, axis=1), 1.0)


def test_vmap_equals_one_at_a_time():
  rng = np.random.default_rng(0)
  stacks = [padded(random_log_probs(rng, n)) for n in (1, 4, 9, 12)]
  log_probs, mask = (np.stack(x) for x in zip(*stacks))
  strata = jax.jit(jax.vmap(strata_lib.monotone))(log_probs, mask)
  posterior = jax.jit(jax.vmap(monotone_model.boundary_posterior))(log_probs, mask)
  median = jax.jit(jax.vmap(strata_lib.median_then_max))(strata, mask)
  for i, (row, real) in enumerate(stacks):
    np.testing.assert_array_equal(strata[i], _monotone(row, real))
    np.testing.assert_array_equal(median[i], _median_then_max(strata[i], real))
    single = _posterior(row, real)
    exact = precision.in_float64(_posterior, row, real).probability
    precision.assert_close(posterior.probability[i], exact, single.probability)
    np.testing.assert_array_equal(posterior.median[i], single.median)


def test_monotone_never_makes_an_impossible_transition():
  rng = np.random.default_rng(0)
  log_probs = rng.normal(scale=5, size=(200, 30, 3)).astype(np.float32)
  mask = np.arange(30) < rng.integers(1, 31, size=(200, 1))
  strata = jax.jit(jax.vmap(strata_lib.monotone))(log_probs, mask)
  assert int(jax.jit(jax.vmap(metrics.inconsistent_transitions))(strata, mask).sum()) == 0


@pytest.mark.parametrize(
  ("strata", "expected"),
  [
    ([0, 2, 0, 0, 1, 1], [0, 0, 0, 0, 1, 1]),  # an outlier goes
    ([0, 0, 1, 1, 0, 1, 2], [0, 0, 1, 1, 1, 1, 2]),
    ([0, 1, 1, 0, 0, 2], [0, 1, 1, 1, 1, 2]),  # two in a row stay, the maximum holds them
    ([2, 0, 0], [2, 2, 2]),  # the ends pass through the median
    ([0, 0, 2], [0, 0, 2]),
    ([1], [1]),
    ([1, 0], [1, 1]),
  ],
)
def test_median_then_max_by_hand(strata, expected):
  got = _median_then_max(np.array(strata), np.ones(len(strata), bool))
  np.testing.assert_array_equal(got, expected)


def test_quantiles_spread_a_slice_over_the_tissue_that_it_stands_for():
  depth = np.array([0, 2, 6, 10, np.nan], np.float32)
  mask = np.arange(5) < 4
  probability = np.zeros((2, 6), np.float32)
  probability[0, 1] = 1  # surely slice 1, which stands for 1 to 4 µm
  probability[1, [3, 4]] = 0.5  # slice 3, 8 to 12 µm, or not in this stack: 12 to 16 µm
  levels = np.array([0.01, 0.25, 0.5, 0.75, 0.99], np.float32)
  quantiles = jax.jit(intervals.boundary_quantiles_um)(probability, levels, depth, mask)
  exact = np.float64(levels)
  precision.assert_close(quantiles, np.stack([1 + 3 * exact, 8 + 8 * exact]))


def test_median_then_max_is_scipys_median_and_numpys_maximum():
  rng = np.random.default_rng(0)
  for length in rng.integers(1, PADDED + 1, size=20):
    strata = rng.integers(0, 3, size=PADDED)
    mask = np.arange(PADDED) < length
    median = ndimage.median_filter(strata[:length], size=3, mode="nearest")
    expected = np.zeros(PADDED, int)
    expected[:length] = np.maximum.accumulate(median)
    garbage = np.where(mask, strata, 99)
    np.testing.assert_array_equal(_median_then_max(garbage, mask), expected)
