"""Keras' InceptionV3 and ours: same parameters, same features, every file format."""

from __future__ import annotations

import os

os.environ.setdefault("KERAS_BACKEND", "jax")

from flax import nnx
import h5py
import jax
import jax.numpy as jnp
import keras
import numpy as np
import pytest
import safetensors.numpy

from rcm_jax.models import inception
from rcm_jax.models import inception_weights
from tfds_rcm.errors import UserError


def _randomize(weights: list, seed: int) -> list[np.ndarray]:
  """Values for Keras' variables that keep activations of order one through 94 layers."""
  rng = np.random.default_rng(seed)
  values = []
  for weight in weights:
    if len(weight.shape) > 1:
      scale = np.sqrt(2 / np.prod(weight.shape[:-1]))
      values.append(scale * rng.standard_normal(weight.shape))
    elif "variance" in weight.path:
      values.append(rng.uniform(0.5, 1.5, weight.shape))
    else:
      values.append(0.2 * rng.standard_normal(weight.shape))
  return [value.astype(np.float32) for value in values]


@pytest.fixture(scope="module")
def keras_model():
  """InceptionV3 of Keras on gray images with the paper's two dense layers, random weights."""
  with pytest.MonkeyPatch.context() as patch:
    # Keras compiles a random generator for each shape, a quarter of a minute in all.
    zeros = keras.initializers.Zeros()
    patch.setattr(keras.initializers.GlorotUniform, "__call__", lambda self, *a, **k: zeros(*a, **k))
    base = keras.applications.InceptionV3(
      weights=None, include_top=False, input_shape=(None, None, 1), pooling="avg"
    )
    x = keras.layers.Dense(256, activation="relu")(base.output)
    model = keras.Model(base.input, keras.layers.Dense(3)(x))
  model.set_weights(_randomize(model.weights, seed=0))
  return model


@pytest.fixture(scope="module")
def ours(keras_model, tmp_path_factory):
  path = tmp_path_factory.mktemp("weights") / "inception.weights.h5"
  keras_model.save_weights(path)
  model = _fresh()
  report = inception_weights.load(model, path)
  assert len(report.loaded) == 96 and not report.skipped
  return model


def _fresh(in_channels: int = 1) -> inception.InceptionV3:
  model = inception.InceptionV3(3, in_channels, rngs=nnx.Rngs(0))
  model.eval()
  return model


def _values(model: inception.InceptionV3) -> dict:
  leaves = jax.tree.leaves_with_path(nnx.state(model, (nnx.Param, nnx.BatchStat)))
  return {jax.tree_util.keystr(path): np.asarray(leaf) for path, leaf in leaves}


def _assert_same(left: inception.InceptionV3, right: inception.InceptionV3) -> None:
  left, right = _values(left), _values(right)
  assert left.keys() == right.keys()
  for key, value in left.items():
    np.testing.assert_array_equal(value, right[key], err_msg=key)


@pytest.mark.parametrize("size", [(299, 299), (131, 147)])
def test_pooled_features_equal_keras(keras_model, ours, size):
  x = np.random.default_rng(1).uniform(-1, 1, (1, *size, 1)).astype(np.float32)
  expected_model = keras.Model(keras_model.input, [keras_model.layers[-3].output, keras_model.output])
  (pooled, logits), _ = jax.jit(expected_model.stateless_call)(
    [v.value for v in expected_model.trainable_variables],
    [v.value for v in expected_model.non_trainable_variables],
    x,
  )
  graph, state = nnx.split(ours)

  @jax.jit
  def apply(state, x):
    model = nnx.merge(graph, state)
    pooled = model.pooled(x)
    return pooled, model(x)

  got_pooled, got_logits = apply(state, x)
  assert got_pooled.shape == (1, 2048)
  scale = np.abs(pooled).max()
  assert scale > 0.1
  np.testing.assert_allclose(got_pooled, pooled, atol=1e-4 * scale, rtol=1e-4)
  np.testing.assert_allclose(got_logits, logits, atol=1e-4 * np.abs(logits).max(), rtol=1e-4)
