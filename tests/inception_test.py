"""The network's shape, its pooling, its initialisation, and a plain jitted training step."""

from __future__ import annotations

from flax import nnx
import jax
import jax.numpy as jnp
import numpy as np
import optax
import precision
import pytest

from rcm_jax.cnn import inception, inception_layers

SIZE = inception.MIN_SIZE


def _model(**options) -> inception.InceptionV3:
  return inception.InceptionV3(3, width=0.1, rngs=nnx.Rngs(0), **options)


def _images(batch: int, channels: int = 1, seed: int = 0) -> jax.Array:
  rng = np.random.default_rng(seed)
  return jnp.asarray(rng.uniform(-1, 1, (batch, SIZE, SIZE, channels)), jnp.float32)


@pytest.mark.parametrize(("channels", "expected"), [(3, 21_802_784), (1, 21_802_784 - 2 * 9 * 32)])
def test_number_of_parameters_is_keras(channels, expected):
  """21,802,784 is what Keras prints for InceptionV3 without its top."""
  model = nnx.eval_shape(lambda: inception.InceptionV3(3, channels, rngs=nnx.Rngs(0)))
  assert model.embed.kernel.shape == (2048, 256)
  leaves = jax.tree.leaves(nnx.state(model.blocks, (nnx.Param, nnx.BatchStat)))
  assert sum(leaf.size for leaf in leaves) == expected


def test_width_scales_every_count_to_multiples_of_eight():
  for width in (0.1, 0.25, 1.0):
    steps = inception_layers.network(width)
    specs = [spec for part in steps.values() for spec, _ in inception_layers.convolutions(part, 1)]
    assert len(specs) == 94
    assert all(spec.filters % 8 == 0 and spec.filters >= 8 for spec in specs)
  assert inception_layers.network(1.0)["mixed0"] == (inception_layers.BLOCKS["mixed0"],)


def _neighbourhoods(x: np.ndarray, row: int, column: int, radius: int) -> np.ndarray:
  rows = slice(max(row - radius, 0), row + radius + 1)
  return x[:, rows, max(column - radius, 0) : column + radius + 1]


@pytest.mark.parametrize("shape", [(2, 7, 8, 3), (1, 8, 3, 2), (1, 1, 1, 4)])
def test_average_pool_leaves_out_what_is_outside(shape):
  x = np.random.default_rng(0).standard_normal(shape).astype(np.float32)
  expected = np.empty(shape)
  for i in range(shape[1]):
    for j in range(shape[2]):
      expected[:, i, j] = _neighbourhoods(x, i, j, 1).mean(axis=(1, 2), dtype=np.float64)
  precision.assert_close(inception.average_pool(jnp.asarray(x)), expected)


@pytest.mark.parametrize("shape", [(2, 7, 8, 3), (1, 3, 9, 2)])
def test_max_pool_takes_every_second_pixel_of_three(shape):
  x = np.random.default_rng(0).standard_normal(shape).astype(np.float32)
  rows, columns = ((size - 3) // 2 + 1 for size in shape[1:3])
  expected = [
    [_neighbourhoods(x, 2 * i + 1, 2 * j + 1, 1).max(axis=(1, 2)) for j in range(columns)]
    for i in range(rows)
  ]
  got = inception_layers.max_pool(jnp.asarray(x))
  np.testing.assert_array_equal(got, np.asarray(expected).transpose(2, 0, 1, 3))


def test_gray_levels_span_minus_one_to_one():
  scaled = inception.from_uint8(jnp.arange(256, dtype=jnp.uint8))
  precision.assert_close(scaled, np.linspace(-1, 1, 256))


def test_initialisation_is_glorot_uniform_and_the_same_when_traced():
  key, shape = jax.random.key(3), (3, 3, 100, 90)
  values = inception.glorot_uniform(key, shape)
  limit = np.sqrt(6 / (9 * 190))
  assert values.dtype == jnp.float32
  assert np.abs(values).max() <= limit
  assert np.std(values) == pytest.approx(limit / np.sqrt(3), rel=0.01)
  assert len(np.unique(values)) > 0.95 * values.size  # pieces differ
  traced = jax.jit(inception.glorot_uniform, static_argnums=1)(key, shape)
  np.testing.assert_allclose(traced, values, rtol=1e-6)
  assert not np.array_equal(values, inception.glorot_uniform(jax.random.key(4), shape))


@pytest.mark.parametrize("shape", [(1, SIZE - 1, SIZE, 1), (1, SIZE, SIZE, 3), (SIZE, SIZE, 1)])
def test_images_that_do_not_fit_are_refused(shape):
  with pytest.raises(ValueError, match=r"at least 75×75"):
    inception.check_images(shape, in_channels=1)


@pytest.mark.slow
def test_training_step_through_one_split_and_plain_jit():
  """How to train it: split once, merge inside the jitted function, carry the statistics."""
  model = _model(bn_momentum=0.9)
  graph, params, rest = nnx.split(model, nnx.Param, ...)
  labels = jnp.arange(6) % 3
  images = _images(6) * (0.1 + 0.4 * labels[:, None, None, None])  # contrast tells the class
  optimizer = optax.adam(3e-3)
  opt_state = optimizer.init(params)

  @jax.jit
  def step(params, rest, opt_state):
    def loss(params):
      model = nnx.merge(graph, params, rest, copy=True)
      logits = model(images)
      loss = optax.softmax_cross_entropy_with_integer_labels(logits, labels).mean()
      return loss, nnx.state(model, nnx.Not(nnx.Param))

    (value, rest_), grads = jax.value_and_grad(loss, has_aux=True)(params)
    updates, opt_state_ = optimizer.update(grads, opt_state, params)
    return optax.apply_updates(params, updates), rest_, opt_state_, value, grads

  before = jax.tree.map(np.asarray, rest)
  losses = []
  for _ in range(12):
    params, rest, opt_state, value, grads = step(params, rest, opt_state)
    losses.append(float(value))
  assert min(losses[-3:]) < 0.5 * losses[0]
  assert all(np.isfinite(g).all() and np.any(g != 0) for g in jax.tree.leaves(grads))
  moved = jax.tree.map(
    lambda a, b: not np.array_equal(a, b), before, jax.tree.map(np.asarray, rest)
  )
  assert all(jax.tree.leaves(moved))  # every running statistic, and the dropout stream


def test_images_of_a_batch_do_not_see_each_other_in_evaluation():
  model = _model(dropout=0.5)
  model.eval()
  graph, state = nnx.split(model)
  apply = jax.jit(lambda state, x: nnx.merge(graph, state)(x))
  x = _images(3)
  logits = apply(state, x)
  assert logits.shape == (3, 3)
  changed = apply(state, x.at[1:].set(0.5))
  precision.assert_close(changed[0], np.float64(logits[0]))
  np.testing.assert_array_equal(apply(state, x), logits)


def test_bfloat16_computes_close_to_float32_and_keeps_float32_parameters():
  plain, half = _model(), _model(dtype=jnp.bfloat16)
  for model in (plain, half):
    model.eval()
  assert all(leaf.dtype == jnp.float32 for leaf in jax.tree.leaves(nnx.state(half, nnx.Param)))
  expected, got = (
    jax.jit(lambda state, x, graph=graph: nnx.merge(graph, state).features(x))(state, _images(2))
    for graph, state in map(nnx.split, (plain, half))
  )
  assert got.dtype == jnp.float32
  np.testing.assert_allclose(got, expected, atol=0.03 * float(jnp.abs(expected).max()))
