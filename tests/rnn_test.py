"""Plain RNN and LSTM against Keras and a loop in numpy; the flat product that all recurrent layers share."""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
import jaxtyping
import numpy as np
import precision
import pytest

from rcm_jax.ops import backend, rnn
from rcm_jax.ops.flat_dot import flat_dot

pytestmark = pytest.mark.kernels

B, T, F, H = 3, 7, 5, 4
MASK = jnp.arange(T) < jnp.array([7, 4, 1])[:, None]
LAYERS = {"SimpleRNN": (rnn.simple_rnn, 1), "LSTM": (rnn.lstm, 4)}


def _params(rng, gates, *lead):
  shapes = {"kernel": (F, gates * H), "recurrent_kernel": (H, gates * H), "bias": (gates * H,)}
  return {k: jnp.asarray(rng.normal(size=(*lead, *s)) / 2, jnp.float32) for k, s in shapes.items()}


@functools.partial(jax.jit, static_argnums=0)
def _gradient(layer, params, x, weights):
  def loss(params, x):
    both = lambda x, m: rnn.bidirectional(layer, x, params, m)
    out = jax.vmap(both)(x, MASK)
    return jnp.vdot(out, weights), out

  return jax.value_and_grad(loss, argnums=(0, 1), has_aux=True)(params, x)


@pytest.mark.parametrize("name", LAYERS)
def test_equals_keras_in_value_and_gradient_with_nan_in_padding(name):
  keras = pytest.importorskip("keras")
  layer, gates = LAYERS[name]
  rng = np.random.default_rng(0)
  params = _params(rng, gates, 2)
  x = jnp.asarray(rng.normal(size=(B, T, F)), jnp.float32)
  weights = jnp.asarray(rng.normal(size=(B, T, 2 * H)), jnp.float32) * MASK[:, :, None]
  theirs = keras.layers.Bidirectional(getattr(keras.layers, name)(H, return_sequences=True))
  theirs.build(x.shape)
  variables = [params[k][d] for d in (0, 1) for k in ("kernel", "recurrent_kernel", "bias")]
  fixed = [v.value for v in theirs.non_trainable_variables]

  @jax.jit
  @functools.partial(jax.value_and_grad, argnums=(0, 1), has_aux=True)
  def keras_gradient(variables, x):
    out, _ = theirs.stateless_call(variables, fixed, x, mask=MASK)
    return jnp.vdot(out, weights), out

  (_, expected), (d_variables, d_x) = keras_gradient(variables, x)
  spoiled = jnp.where(MASK[:, :, None], x, jnp.nan)
  names = ("kernel", "recurrent_kernel", "bias")
  d_params = {n: jnp.stack([d_variables[k], d_variables[3 + k]]) for k, n in enumerate(names)}
  keras_values = (expected * MASK[:, :, None], d_params, d_x * MASK[:, :, None])
  # In float64 ours alone can run; theirs must come as near to it as ours in float32 does.
  shown = lambda values: (values[0][1] * MASK[:, :, None], *values[1])
  exact = shown(precision.in_float64(functools.partial(_gradient, layer), params, spoiled, weights))
  precision.assert_close(keras_values, exact, shown(_gradient(layer, params, spoiled, weights)))


@pytest.mark.parametrize("name", LAYERS)
def test_one_loop_for_both_directions_is_two_loops(name):
  layer, gates = LAYERS[name]
  rng = np.random.default_rng(3)
  params = _params(rng, gates, 2)
  x = jnp.asarray(rng.normal(size=(B, T, F)), jnp.float32)
  dropped = jnp.asarray(rng.integers(0, 2, (2, H)) * 2.0, jnp.float32)

  def run(params, x):
    both = lambda x, m: rnn.bidirectional(layer, x, params, m, recurrent_mask=dropped)
    out, pull = jax.vjp(lambda params, x: jax.vmap(both)(x, MASK), params, x)
    return out, pull(jnp.cos(out))

  with backend.tracing_for("gpu", jax.devices()):
    together = jax.jit(lambda *args: run(*args))(params, x)  # traced for itself
  precision.assert_close(together, *precision.references(run, params, x))


@pytest.mark.parametrize("name", LAYERS)
def test_dropout_scales_the_state_that_enters_the_product(name):
  """Dropping units of the state is dropping rows of the recurrent matrix."""
  layer, gates = LAYERS[name]
  rng = np.random.default_rng(1)
  params, x = _params(rng, gates), jnp.asarray(rng.normal(size=(T, F)), jnp.float32)
  dropped = jnp.array([0.0, 2.0, 2.0, 0.0])
  scaled = params | {"recurrent_kernel": params["recurrent_kernel"] * dropped[:, None]}
  got = jax.jit(lambda x: layer(x, params, MASK[0], recurrent_mask=dropped))(x)
  run = lambda x, scaled: layer(x, scaled, MASK[0])
  precision.assert_close(got, *precision.references(run, x, scaled))


@pytest.mark.parametrize("name", LAYERS)
def test_wrong_shapes_are_named(name):
  layer, gates = LAYERS[name]
  params = _params(np.random.default_rng(2), gates)
  jaxtyping.config.update("jaxtyping_disable", True)  # what users run
  try:
    with pytest.raises(ValueError, match=r"mask \(6,\)"):
      layer(jnp.zeros((T, F)), params, jnp.ones(T - 1, bool))
    with pytest.raises(ValueError, match="kernel must be"):
      layer(jnp.zeros((T, F + 1)), params, jnp.ones(T, bool))
  finally:
    jaxtyping.config.update("jaxtyping_disable", False)


@pytest.mark.parametrize("rows_axis", [None, 0, 1, 2])
@pytest.mark.parametrize("kernel_axis", [None, 0, 2])
def test_flat_dot_is_a_product_under_every_batching(rows_axis, kernel_axis):
  rng = np.random.default_rng(3)
  draw = lambda shape, axis: jnp.asarray(
    rng.normal(size=shape if axis is None else np.insert(shape, axis, 3)), jnp.float32
  )
  rows, kernel = draw((T, F), rows_axis), draw((F, H), kernel_axis)
  axes = (rows_axis, kernel_axis)

  def loss(dot, rows, kernel):
    out = dot(rows, kernel) if axes == (None, None) else jax.vmap(dot, axes)(rows, kernel)
    return jnp.sin(out).sum()

  for gradient in (jax.grad, jax.jacfwd):
    ours, plain = (
      functools.partial(gradient(loss, argnums=(1, 2)), dot) for dot in (flat_dot, jnp.matmul)
    )
    precision.assert_close(jax.jit(ours)(rows, kernel), *precision.references(plain, rows, kernel))


def test_flat_dot_makes_one_flat_product_forward_and_backward():
  rows, kernel = jnp.ones((B, T, F)), jnp.ones((F, H))
  loss = lambda kernel: jnp.sin(jax.vmap(flat_dot, (0, None))(rows, kernel)).sum()
  text = jax.jit(jax.grad(loss)).lower(kernel).as_text()
  shapes = [line.split(":")[-1] for line in text.splitlines() if "dot_general" in line]
  assert len(shapes) == 2
  assert all(f"tensor<1x{B * T}x" in shape for shape in shapes)
