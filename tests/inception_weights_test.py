"""Keras' InceptionV3 and ours: same parameters, same features, every file format."""

from __future__ import annotations

import functools
import sys

from flax import nnx
import h5py
import jax
import jax.numpy as jnp
import keras
import numpy as np
import precision
import pytest
import safetensors.numpy

from rcm_jax.cnn import inception, pretrained
from rcm_jax.cnn import spec as cnn_spec
from rcm_jax.cnn.augmentation import Augmentation
from tfds_rcm.errors import UserError

LAYERS = 94  # each rounds what it hands on, so that the network's error is some of theirs together


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
    patch.setattr(
      keras.initializers.GlorotUniform, "__call__", lambda self, *args, **kw: zeros(*args, **kw)
    )
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
  report = pretrained.load(model, path)
  assert len(report.loaded) == 96
  assert not report.skipped
  return model


def _fresh(in_channels: int = 1, **options) -> inception.InceptionV3:
  model = inception.InceptionV3(3, in_channels, rngs=nnx.Rngs(0), **options)
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


@pytest.mark.parametrize("size", [pytest.param((299, 299), marks=pytest.mark.slow), (131, 147)])
def test_pooled_features_equal_keras(keras_model, ours, size):
  x = np.random.default_rng(1).uniform(-1, 1, (1, *size, 1)).astype(np.float32)
  outputs = [keras_model.layers[-3].output, keras_model.output]
  expected_model = keras.Model(keras_model.input, outputs)
  (pooled, logits), _ = jax.jit(expected_model.stateless_call)(
    [v.value for v in expected_model.trainable_variables],
    [v.value for v in expected_model.non_trainable_variables],
    x,
  )
  graph, state = nnx.split(ours)
  with jax.enable_x64(True):
    wide = nnx.eval_shape(lambda: _fresh(dtype=jnp.float64))
    wide_graph = nnx.split(wide)[0]

  def apply(graph, state, x):
    model = nnx.merge(graph, state)
    pooled = model.pooled(x)
    return pooled, model(x)

  ours = jax.jit(functools.partial(apply, graph))(state, x)
  assert ours[0].shape == (1, 2048)
  assert np.abs(pooled).max() > 0.1
  # In float64 ours alone can run; both must be near it.
  exact = precision.in_float64(jax.jit(functools.partial(apply, wide_graph)), state, x)
  precision.assert_close(ours, exact, factor=LAYERS)
  precision.assert_close((pooled, logits), exact, factor=LAYERS)


@pytest.mark.filterwarnings("ignore::UserWarning")
@pytest.mark.parametrize("name", ["whole.keras", "whole.h5"])
def test_every_keras_layout_gives_the_same_weights(keras_model, ours, tmp_path, name):
  keras_model.save(tmp_path / name)
  model = _fresh()
  pretrained.load(model, tmp_path / name)
  _assert_same(model, ours)


def test_table_lists_the_network_in_keras_order(keras_model):
  names = [layer.name for layer in keras_model.layers if isinstance(layer, keras.layers.Conv2D)]
  model = nnx.eval_shape(lambda: inception.InceptionV3(3, rngs=nnx.Rngs(0)))
  created = list(model.named_blocks())
  numbers = [int(name.rpartition("_")[2]) if "_" in name else 0 for name in names]
  assert pretrained.keras_order(model) == [created[n - min(numbers)] for n in numbers]


def _narrow(seed: int, in_channels: int = 1) -> inception.InceptionV3:
  """A thin network with random statistics, for files that Keras cannot write."""
  model = inception.InceptionV3(3, in_channels, width=0.1, rngs=nnx.Rngs(seed))
  model.eval()
  rng = np.random.default_rng(seed)
  for block in model.blocks.values():
    for layer in block.values():
      for variable, low in ((layer.bn.bias, -1), (layer.bn.mean, -1), (layer.bn.var, 0.5)):
        variable[...] = jnp.asarray(rng.uniform(low, 2, variable.shape), jnp.float32)
  return model


def _keras2_file(path, model: inception.InceptionV3, *, shuffled: bool) -> None:
  """The layout of Keras 2: named variables, numbered from 95 on, nested in one top layer."""
  names = list(model.named_blocks())
  order = pretrained.keras_order(model)
  if shuffled:  # part of the network frozen: Keras lists its variables last
    order = order[40:] + order[:40]
  with h5py.File(path, "w") as file:
    top = file.create_group("inception_v3")
    weights = {}
    for name in order:
      block, conv = name.split("/")
      layer = model.blocks[block][conv]
      number = 95 + names.index(name)
      weights[f"conv2d_{number}/kernel:0"] = layer.conv.kernel
      weights[f"batch_normalization_{number}/beta:0"] = layer.bn.bias
      weights[f"batch_normalization_{number}/moving_mean:0"] = layer.bn.mean
      weights[f"batch_normalization_{number}/moving_variance:0"] = layer.bn.var
    for key, value in weights.items():
      top[key] = np.asarray(value)
    top.attrs["weight_names"] = [key.encode() for key in weights]
    file.attrs["layer_names"] = [b"inception_v3"]


@pytest.mark.parametrize("shuffled", [False, True])
def test_layers_are_found_whatever_their_numbers_and_order(tmp_path, shuffled):
  source, model = _narrow(1), _narrow(2)
  _keras2_file(tmp_path / "old.h5", source, shuffled=shuffled)
  before = np.asarray(model.embed.kernel)
  report = pretrained.load(model, tmp_path / "old.h5")
  assert len(report.loaded) == 94
  assert [line.split(":")[0] for line in report.skipped] == ["embed", "classifier"]
  np.testing.assert_array_equal(model.embed.kernel, before)
  source.embed, source.classifier = model.embed, model.classifier
  _assert_same(model, source)


def _torchvision_state(model: inception.InceptionV3, prefix: str = "") -> dict[str, np.ndarray]:
  """The model's values under torchvision's names, with a scale on every normalisation."""
  state = {
    "AuxLogits.conv0.conv.weight": np.zeros((2, 2, 1, 1), np.float32),
    "fc.weight": np.zeros((1000, 24), np.float32),
    "fc.bias": np.zeros(1000, np.float32),
  }
  stem = {
    "conv1a": "Conv2d_1a_3x3",
    "conv2a": "Conv2d_2a_3x3",
    "conv2b": "Conv2d_2b_3x3",
    "conv3b": "Conv2d_3b_1x1",
    "conv4a": "Conv2d_4a_3x3",
  }
  numbers = ["", "5b", "5c", "5d", "6a", "6b", "6c", "6d", "6e", "7a", "7b", "7c"]
  letters = dict(zip(model.table, numbers, strict=True))
  rng = np.random.default_rng(3)
  for block, specs in model.blocks.items():
    for name, layer in specs.items():
      key = stem[name] if block == "stem" else f"Mixed_{letters[block]}.{name}"
      state[f"{key}.conv.weight"] = np.asarray(layer.conv.kernel).transpose(3, 2, 0, 1).copy()
      state[f"{key}.bn.weight"] = rng.uniform(-1, 2, layer.bn.mean.shape).astype(np.float32)
      state[f"{key}.bn.bias"] = np.asarray(layer.bn.bias)
      state[f"{key}.bn.running_mean"] = np.asarray(layer.bn.mean)
      state[f"{key}.bn.running_var"] = np.array(layer.bn.var)
      state[f"{key}.bn.num_batches_tracked"] = np.zeros((), np.int64)
  return {prefix + key: value for key, value in state.items()}


def _torch_layer(state: dict[str, np.ndarray], key: str, x: np.ndarray, stride: int) -> np.ndarray:
  """BasicConv2d of torchvision without padding, [C, H, W], in plain sums."""
  weight = state[f"{key}.conv.weight"].astype(np.float64)
  windows = np.lib.stride_tricks.sliding_window_view(x, weight.shape[2:], axis=(1, 2))
  y = np.einsum("chwij,ocij->ohw", windows[:, ::stride, ::stride], weight)
  scale, bias, mean, var = (
    state[f"{key}.bn.{name}"][:, None, None]
    for name in ("weight", "bias", "running_mean", "running_var")
  )
  return np.maximum(scale * (y - mean) / np.sqrt(var + 1e-3) + bias, 0)


@pytest.mark.parametrize("rgb_input", ["symmetric", "imagenet"])
@pytest.mark.parametrize("in_channels", [1, 3])
def test_torchvision_file_computes_what_its_network_does(tmp_path, rgb_input, in_channels):
  state = _torchvision_state(_narrow(1, in_channels=3), prefix="module.")
  safetensors.numpy.save_file(state, tmp_path / "net.safetensors")
  model = _narrow(2, in_channels)
  report = pretrained.load(model, tmp_path / "net.safetensors", rgb_input=rgb_input)
  assert [line.split(":")[0] for line in report.skipped] == [
    "AuxLogits",
    "scale of 94 batch normalisations",
    "embed",
    "classifier",
  ]

  x = np.random.default_rng(4).uniform(-1, 1, (1, 75, 80, in_channels)).astype(np.float32)
  rgb = np.broadcast_to(x[0].transpose(2, 0, 1), (3, 75, 80)).astype(np.float64)
  if rgb_input == "imagenet":
    mean, std = np.array([[0.485, 0.456, 0.406], [0.229, 0.224, 0.225]])[:, :, None, None]
    rgb = ((rgb + 1) / 2 - mean) / std
  state = {key.removeprefix("module."): value for key, value in state.items()}
  expected = _torch_layer(state, "Conv2d_1a_3x3", rgb, 2)
  expected = _torch_layer(state, "Conv2d_2a_3x3", expected, 1).transpose(1, 2, 0)
  stem = model.blocks["stem"]
  precision.assert_close(stem["conv2a"](stem["conv1a"](jnp.asarray(x)))[0], expected)


def test_torchvision_names_cover_every_layer(tmp_path):
  source = _narrow(1)
  state = _torchvision_state(source)
  state |= {key: np.ones_like(value) for key, value in state.items() if key.endswith("bn.weight")}
  safetensors.numpy.save_file(state, tmp_path / "net.safetensors")
  model = _narrow(2)
  pretrained.load(model, tmp_path / "net.safetensors")
  source.embed, source.classifier = model.embed, model.classifier
  _assert_same(model, source)


def test_fine_tuning_starts_from_the_file_and_keeps_its_statistics(tmp_path):
  source = _narrow(1)
  source.eval()
  state = _torchvision_state(source)
  state |= {key: np.ones_like(value) for key, value in state.items() if key.endswith("bn.weight")}
  safetensors.numpy.save_file(state, tmp_path / "net.safetensors")
  spec = cnn_spec.CnnSpec(
    context=1,
    width=0.1,
    epochs=1,
    batch_size=2,
    norm_groups=1,
    learning_rate=1e-3,
    dropout=0.5,
    bn_momentum=0.5,
    pretrained=str(tmp_path / "net.safetensors"),
    pretrained_input="symmetric",
    frozen_epochs=1,
    body_rate=0.1,
    augmentation=Augmentation(),
    seed=0,
  )
  model = cnn_spec.start(spec)
  x = jnp.asarray(np.random.default_rng(0).uniform(-1, 1, (2, 80, 80, 1)), jnp.float32)
  conv, theirs = model.blocks["stem"]["conv1a"], source.blocks["stem"]["conv1a"]
  mean = np.array(conv.bn.mean)
  precision.assert_close(conv(x), np.float64(theirs(x)))
  np.testing.assert_array_equal(conv.bn.mean, mean)
  assert not model.dropout.deterministic


def test_every_mismatch_is_listed_and_nothing_is_loaded(tmp_path):
  state = _torchvision_state(_narrow(1))
  del state["Mixed_5b.branch1x1.conv.weight"]
  state["Mixed_6e.branch_pool.bn.bias"] = np.zeros(3, np.float32)
  state["Conv2d_3b_1x1.bn.running_var"][0] = np.nan
  safetensors.numpy.save_file(state, tmp_path / "net.safetensors")
  model = _narrow(2)
  before = _values(model)
  with pytest.raises(UserError) as error:
    pretrained.load(model, tmp_path / "net.safetensors")
  message = str(error.value)
  assert "net.safetensors" in message
  assert "3 mismatches" in message
  for part in ("mixed0/branch1x1: kernel", "mixed7/branch_pool: bias is (3,)", "stem/conv3b: var"):
    assert part in message
  after = _values(model)
  assert all(np.array_equal(value, after[key]) for key, value in before.items())


def test_unreadable_files_are_named(tmp_path):
  model = _narrow(1)
  for name in ("a.keras", "a.weights.h5", "a.h5", "a.safetensors", "a.onnx"):
    with pytest.raises(UserError, match=name):
      pretrained.load(model, tmp_path / name)
    (tmp_path / name).write_bytes(b"not a file of weights")
    with pytest.raises(UserError, match=name):
      pretrained.load(model, tmp_path / name)
  with h5py.File(tmp_path / "other.weights.h5", "w") as file:
    file["layers/dense/vars/0"] = np.zeros((2, 2))
  with pytest.raises(UserError, match="expected 94 convolutions"):
    pretrained.load(model, tmp_path / "other.weights.h5")
  safetensors.numpy.save_file({"x": np.zeros(1)}, tmp_path / "other.safetensors")
  with pytest.raises(UserError, match="Conv2d_1a_3x3"):
    pretrained.load(model, tmp_path / "other.safetensors")
  with pytest.raises(ValueError, match="rgb_input"):
    pretrained.load(model, tmp_path / "a.h5", rgb_input="bgr")


def test_pth_without_pytorch_says_what_to_do(tmp_path, monkeypatch):
  monkeypatch.setitem(sys.modules, "torch", None)
  with pytest.raises(UserError, match="pip install torch"):
    pretrained.load(_narrow(1), tmp_path / "net.pth")
