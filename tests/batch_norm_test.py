"""The written-out gradient of batch normalization with ReLU against autodiff."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rcm_jax.cnn.batch_norm import batch_norm_relu, reference

EPSILON = 1e-3


def _inputs(shape: tuple[int, ...], dtype=jnp.float32) -> tuple[jax.Array, jax.Array, jax.Array]:
  rng = np.random.default_rng(0)
  x = rng.normal(0.5, 2, shape)
  return tuple(
    jnp.asarray(v, dtype) for v in (x, rng.normal(size=shape[-1]), rng.normal(size=shape))
  )


@pytest.mark.parametrize("shape", [(4, 5, 6, 3), (2, 1, 1, 8), (7, 2)])
def test_values_and_gradients_equal_autodiff(shape):
  x, bias, weights = _inputs(shape)

  def loss(function, x, bias):
    y, mean, var = function(x, bias, EPSILON)
    return jnp.sum(weights * y), (y, mean, var)

  def both(function):
    return jax.value_and_grad(lambda *a: loss(function, *a), argnums=(0, 1), has_aux=True)(x, bias)

  for got, expected in zip(
    jax.tree.leaves(both(batch_norm_relu)), jax.tree.leaves(both(reference)), strict=True
  ):
    np.testing.assert_allclose(got, expected, rtol=1e-4, atol=2e-5 * np.abs(expected).max() + 1e-6)


def test_no_gradient_flows_through_the_statistics():
  x, bias, _ = _inputs((6, 3))
  grads = jax.grad(lambda x: sum(v.sum() for v in batch_norm_relu(x, bias, EPSILON)[1:]))(x)
  assert not np.any(grads)


def test_statistics_of_bfloat16_are_float32():
  x, bias, _ = _inputs((8, 9, 9, 4), jnp.bfloat16)
  y, mean, var = batch_norm_relu(x, bias.astype(jnp.float32), EPSILON)
  expected = reference(x.astype(jnp.float32), bias.astype(jnp.float32), EPSILON)
  assert y.dtype == jnp.bfloat16
  assert mean.dtype == var.dtype == jnp.float32
  np.testing.assert_allclose(mean, expected[1], atol=1e-5)
  np.testing.assert_allclose(var, expected[2], rtol=1e-4)
  np.testing.assert_allclose(y.astype(jnp.float32), expected[0], atol=0.02)
