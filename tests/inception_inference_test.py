"""The folded network computes what the trained one does."""

from __future__ import annotations

from flax import nnx
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rcm_jax.cnn import folded_inception, inception
from rcm_jax.exporters.onnx import extractor as onnx_extractor

# Both round after each of 94 layers, in other places; the norm of all outputs evens that out.
ROUNDING = 94 * float(jnp.finfo(jnp.float32).eps)


def _trained(in_channels: int) -> inception.InceptionV3:
  """A thin network in evaluation mode with statistics unlike their first values."""
  model = inception.InceptionV3(3, in_channels, width=0.15, rngs=nnx.Rngs(0))
  model.eval()
  rng = np.random.default_rng(0)
  for layer in model.named_blocks().values():
    layer.conv.kernel[...] *= 1.5
    layer.bn.bias[...] = jnp.asarray(rng.normal(0, 0.3, layer.bn.bias.shape), jnp.float32)
    layer.bn.mean[...] = jnp.asarray(rng.normal(0, 0.3, layer.bn.mean.shape), jnp.float32)
    layer.bn.var[...] = jnp.asarray(rng.uniform(0.3, 2, layer.bn.var.shape), jnp.float32)
  return model


def _graph(model: inception.InceptionV3, images: np.ndarray) -> tuple[jax.Array, jax.Array]:
  graph, state = nnx.split(model)

  @jax.jit
  def apply(state, images):
    model = nnx.merge(graph, state)
    x = inception.from_uint8(images)
    return model.features(x), model(x)

  return apply(state, images)


def _distance(got: jax.Array, expected: jax.Array) -> float:
  return float(jnp.linalg.norm(got - expected) / jnp.linalg.norm(expected))


@pytest.mark.parametrize("in_channels", [1, 3])
def test_features_and_logits_equal_the_training_graph_by_any_engine(in_channels):
  model = _trained(in_channels)
  rng = np.random.default_rng(1)
  images = rng.integers(0, 256, (2, 96, 83, in_channels), dtype=np.uint8)
  features, logits = _graph(model, images)
  assert float(jnp.std(features)) > 0.05
  extract = folded_inception.extract_fn(model)
  got = extract(images)
  assert _distance(got[0], features) < ROUNDING
  assert _distance(got[1], logits) < ROUNDING
  on_host = onnx_extractor.extract_fn(model)
  for rows in (slice(2), slice(1, 2)):  # any number at once
    for found, expected in zip(on_host(images[rows]), (features, logits), strict=True):
      assert _distance(found, expected[rows]) < ROUNDING
  with pytest.raises(ValueError, match="at least 75×75"):
    on_host(images[:, :60])
  if in_channels == 1:
    np.testing.assert_array_equal(extract(images[..., 0])[0], got[0])
    half = folded_inception.extract_fn(model, jnp.bfloat16)(images)
    assert half[0].dtype == half[1].dtype == jnp.float32
    assert _distance(half[0], features) < 0.02


def test_nothing_of_normalisation_is_left_and_siblings_are_one_product():
  model = _trained(1)
  params = folded_inception.fold(model)
  program = str(
    jax.make_jaxpr(lambda params, images: folded_inception.pooled(params, images, model.table))(
      params, jnp.zeros((1, 75, 75, 1), jnp.uint8)
    )
  )
  assert "rsqrt" not in program
  blocks = [layer.spec for layer in model.named_blocks().values()]
  assert program.count("conv_general_dilated[") == sum(spec.kernel != (1, 1) for spec in blocks)
  # One merged product in each of the eleven blocks and the stem's own.
  assert program.count("dot_general[") == 12


def test_inside_another_program_it_becomes_a_part_of_it():
  extract = folded_inception.extract_fn(_trained(1))
  features, logits = jax.eval_shape(extract, jax.ShapeDtypeStruct((4, 75, 75), jnp.uint8))
  assert features.shape == (4, 256)
  assert logits.shape == (4, 3)


def test_wrong_images_are_refused():
  extract = folded_inception.extract_fn(_trained(1))
  with pytest.raises(ValueError, match="at least 75×75"):
    extract(np.zeros((1, 60, 90), np.uint8))
