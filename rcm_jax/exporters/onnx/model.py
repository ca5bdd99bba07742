"""All of a trained model as one ONNX graph: CNN, heads, ensemble, calibration and decoding."""

from __future__ import annotations

from flax import nnx
import jax
import numpy as np
import onnx

from rcm_jax.exporters.onnx import cnn, decoding, head, textures
from rcm_jax.exporters.onnx.graph import Graph
from rcm_jax.inference import bundle as bundle_lib
from rcm_jax.inference.description import RESEARCH_USE


def serialize(bundle: bundle_lib.Bundle) -> bytes:
  """Returns the model as an ONNX file's content.

  Inputs are one stack's `slices`, uint8 [slices, height, width], shallow first, and `depth_um`,
  float32 [slices]; outputs are those of `stablehlo.serving_fn` without the axis of stacks and without
  padding. Its metadata are the bundle's description.
  """
  description = bundle.description
  graph = Graph()
  slices = graph.input("slices")
  views = [(description.head, bundle.heads, cnn.features(bundle.network, slices))]
  on_textures = [
    textures.features(encoder, spec.downsampling, slices, description.image_shape)
    for spec, encoder in zip(description.textures, bundle.encoders, strict=True)
  ]
  for view, heads in zip(description.views, bundle.view_heads, strict=True):
    features = graph.concat([on_textures[i] for i in view], axis=1)
    views.append((bundle_lib.head_spec(description, view), heads, features))
  members = []
  for spec, heads, features in views:
    for place, half_width in enumerate(description.half_widths):
      params = jax.tree.map(lambda leaf, place=place: np.asarray(leaf[place]), heads)
      members.append(head.unary_scores(spec, nnx.to_pure_dict(params), half_width, features))
  found = decoding.decode(members, graph.input("depth_um"), description.calibration)
  model = graph.model(
    description.method,
    inputs={
      "slices": (np.uint8, ("slices", *description.image_shape)),
      "depth_um": (np.float32, ("slices",)),
    },
    outputs=decoding.outputs(found, len(description.strata)),
    about=f"Skin strata in a stack of RCM slices. {RESEARCH_USE}",
    metadata={"bundle": description.to_json()},
  )
  onnx.checker.check_model(model, full_check=True)
  return model.SerializeToString()
