"""torchvision's weights compute what torchvision's network does, down to the pooled 2048."""

from __future__ import annotations

import dataclasses
import json

import bundles
from flax import nnx
import jax
import jax.numpy as jnp
import numpy as np
import precision
import pytest
import safetensors.numpy
import torchvision_network

from rcm_jax.cnn import folded_inception, inception, pretrained
from rcm_jax.configs import base
from rcm_jax.exporters.onnx import cnn as onnx_cnn
from rcm_jax.exporters.onnx import graph as onnx_graph
from rcm_jax.inference import bundle, model_card
from rcm_jax.run import cnn_stages

ROUNDING = 94 * float(jnp.finfo(jnp.float32).eps)  # a rounding a layer
MEAN, STD = np.array([[0.485, 0.456, 0.406], [0.229, 0.224, 0.225]])[:, :, None, None]


@pytest.fixture(scope="module")
def state():
  return torchvision_network.random_state(0)


@pytest.fixture(scope="module")
def path(state, tmp_path_factory):
  path = tmp_path_factory.mktemp("weights") / "inception_v3.safetensors"
  safetensors.numpy.save_file(state, path)
  return path


def gray_levels(height=91, width=83):
  return np.random.default_rng(1).integers(0, 256, (1, height, width, 1), dtype=np.uint8)


def network(**options) -> inception.InceptionV3:
  model = inception.InceptionV3(3, rngs=nnx.Rngs(0), **options)
  model.eval()
  return model


@pytest.mark.parametrize("rgb_input", ["symmetric", "imagenet"])
def test_pooled_features_are_those_of_torchvisions_network(state, path, rgb_input):
  model = network()
  pretrained.load(model, path, rgb_input=rgb_input)
  images = gray_levels()
  rgb = np.repeat(images[0].transpose(2, 0, 1) / 255, 3, axis=0)  # as torchvision's ToTensor
  shown = (rgb - MEAN) / STD if rgb_input == "imagenet" else 2 * rgb - 1
  exact, plain = (torchvision_network.pooled(state, shown, t) for t in (np.float64, np.float32))
  assert exact.shape == (2048,)

  params = folded_inception.fold(model)
  fast = jax.jit(lambda params, x: folded_inception.pooled(params, x, model.table))
  found = fast(params, images)[0]
  precision.assert_close(found, exact, plain, name="folded")
  if rgb_input == "symmetric":
    graph, weights = nnx.split(model)
    trained = jax.jit(lambda w, x: nnx.merge(graph, w).pooled(inception.from_uint8(x)))
    precision.assert_close(trained(weights, images)[0], exact, plain, name="as trained")
    # With Keras' pooling, which is how it was, they are far off: what this test is for.
    pretrained.load(model, path, count_include_pad=False)
    table = model.table
    other = jax.jit(lambda params, x: folded_inception.pooled(params, x, table))(params, images)[0]
    assert np.abs(other - exact).max() > 0.02 * np.abs(exact).max()


@pytest.mark.parametrize("count_include_pad", [False, True])
def test_average_pooling_in_both_ways(count_include_pad):
  x = np.random.default_rng(0).standard_normal((2, 5, 4, 3)).astype(np.float32)
  padded = np.pad(x.astype(np.float64), [(0, 0), (1, 1), (1, 1), (0, 0)])
  inside = np.pad(np.ones_like(x[..., :1]), [(0, 0), (1, 1), (1, 1), (0, 0)])
  windows = lambda a: np.lib.stride_tricks.sliding_window_view(a, (3, 3), (1, 2)).sum((-2, -1))
  exact = windows(padded) / (9 if count_include_pad else windows(inside))
  precision.assert_close(inception.average_pool(jnp.asarray(x), count_include_pad), exact)


@pytest.mark.parametrize("count_include_pad", [False, True])
def test_every_form_of_the_network_pools_in_the_same_way(count_include_pad):
  ort = pytest.importorskip("onnxruntime")
  model = network(width=0.1, count_include_pad=count_include_pad)
  rng = np.random.default_rng(2)
  for layer in model.named_blocks().values():
    for variable in (layer.bn.bias, layer.bn.mean):  # a bias shows whether zeros count before it
      variable[...] = jnp.asarray(rng.normal(0, 0.5, variable.shape), jnp.float32)
  images = gray_levels()
  as_trained = jax.jit(model.features)(inception.from_uint8(jnp.asarray(images)))
  folded = folded_inception.extract_fn(model)(images)[0]
  assert _distance(folded, as_trained) < ROUNDING
  graph = onnx_graph.Graph()
  values = onnx_cnn.features(model, graph.input("slices"))
  shape = ("slices", *images.shape[1:3])
  exported = graph.model(
    "cnn", {"slices": (np.uint8, shape)}, {"features": (np.float32, ("slices", 256), values)}
  )
  session = ort.InferenceSession(exported.SerializeToString(), providers=["CPUExecutionProvider"])
  exported = session.run(None, {"slices": images[..., 0]})[0]
  assert _distance(exported, as_trained) < ROUNDING
  model.pool(count_include_pad=not count_include_pad)
  assert _distance(folded_inception.extract_fn(model)(images)[0], as_trained) > 1e-3


def _distance(got, expected) -> float:
  return float(np.linalg.norm(got - expected) / np.linalg.norm(expected))


@pytest.mark.parametrize(
  ("file", "wanted", "counts"),
  [
    (None, None, False),
    (None, True, True),
    ("a.weights.h5", None, False),
    ("a.keras", None, False),
    ("a.pth", None, True),
    ("a.safetensors", None, True),
    ("a.safetensors", False, False),  # pytorch-fid's
  ],
)
def test_pooling_follows_where_the_weights_come_from(file, wanted, counts):
  config = base.get_config()
  config.cnn.pretrained, config.cnn.count_include_pad = file, wanted
  assert cnn_stages._counts_padding(config.cnn, None) is counts


def test_a_bundle_keeps_its_pooling_and_an_older_one_has_kerass(tmp_path):
  made = bundles.made()
  cnn = {**made.description.cnn, "count_include_pad": True}
  description = dataclasses.replace(made.description, cnn=cnn)
  new = bundles.network_of(description)
  bundle.save(tmp_path / "new", dataclasses.replace(made, description=description, network=new))
  kept = bundle.load(tmp_path / "new")
  assert _pools(kept.network) == {True}
  fields = json.loads(made.description.to_json())
  assert "count_include_pad" not in fields["cnn"]
  assert _pools(bundles.network_of(model_card.Description.from_json(json.dumps(fields)))) == {False}


def _pools(model: inception.InceptionV3) -> set[bool]:
  specs = [layer.spec for layer in model.named_blocks().values()]
  assert sum(spec.average for spec in specs) == 9
  return {spec.count_include_pad for spec in specs if spec.average}
