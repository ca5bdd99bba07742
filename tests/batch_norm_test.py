"""The written-out gradient of batch normalization with ReLU against autodiff."""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
import numpy as np
import precision
import pytest

from rcm_jax.cnn.batch_norm import batch_norm_relu, reference

pytestmark = pytest.mark.kernels

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

  def both(function, x, bias, weights):
    def loss(x, bias):
      y, mean, var = function(x, bias, EPSILON)
      return jnp.sum(weights * y), (y, mean, var)

    return jax.value_and_grad(loss, argnums=(0, 1), has_aux=True)(x, bias)

  exact = precision.in_float64(functools.partial(both, reference), x, bias, weights)
  plain = both(reference, x, bias, weights)
  # Of few values the gradient is what is left of terms as large as these.
  deviation = np.sqrt(np.var(x, axis=tuple(range(x.ndim - 1))).min() + EPSILON)
  terms = float(np.abs(weights).max() / deviation)
  precision.assert_close(both(batch_norm_relu, x, bias, weights), exact, plain, scale=terms)


def test_no_gradient_flows_through_the_statistics():
  x, bias, _ = _inputs((6, 3))
  grads = jax.grad(lambda x: sum(v.sum() for v in batch_norm_relu(x, bias, EPSILON)[1:]))(x)
  assert not np.any(grads)


def test_statistics_of_bfloat16_are_float32():
  x, bias, _ = _inputs((8, 9, 9, 4), jnp.bfloat16)
  y, mean, var = batch_norm_relu(x, bias.astype(jnp.float32), EPSILON)
  run = lambda x, bias: reference(x, bias, EPSILON)
  wide = x.astype(jnp.float32), bias.astype(jnp.float32)
  exact, plain = precision.in_float64(run, *wide), run(*wide)
  assert y.dtype == jnp.bfloat16
  assert mean.dtype == var.dtype == jnp.float32
  precision.assert_close((mean, var), exact[1:], plain[1:])
  precision.assert_close(y, exact[0])
