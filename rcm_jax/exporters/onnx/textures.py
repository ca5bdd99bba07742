"""Texture features as an ONNX graph: gray levels → features of a view of the textures."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from rcm_jax.exporters.onnx.graph import Graph, Value
from rcm_jax.textures import encoder as texture_encoder
from rcm_jax.textures.encoder import Encoder


def features(
  encoder: Encoder, downsampling: int, slices: Value, image_shape: tuple[int, int]
) -> Value:
  """Adds the encoder, slice by slice: the scores of all words at all pixels are large.

  Args:
    encoder: what was learned.
    downsampling: block size.
    slices: uint8 [T, height, width], one stack.
    image_shape: height and width.

  Returns:
    float32 [T, F].
  """
  filters, mean, components = map(np.asarray, encoder)
  side = filters.shape[1]
  step = texture_encoder.stride(side, tuple(pixels // downsampling for pixels in image_shape))

  def count(graph: Graph, states: Sequence[Value], image: Value) -> tuple[Sequence[Value], Value]:
    x = image.unsqueeze(0).unsqueeze(0)
    if downsampling > 1:
      block = np.ones((1, 1, downsampling, downsampling), np.float32)
      x = graph.op("Conv", x, block, strides=[downsampling] * 2)
    return states, _count_levels(filters, x) if side == 1 else _count_patches(filters, x, step)

  counts = slices.graph.scan(count, [], slices.cast(np.float32))
  shares = counts / counts.sum(1).unsqueeze(1)
  return (slices.graph.op("Sqrt", shares) - mean) @ components


def _count_levels(least: np.ndarray, image: Value) -> Value:
  at_least = (image.reshape(-1, 1) >= least.reshape(1, -1)).cast(np.float32).sum(0)
  more = image.graph.concat([at_least.rows(1), np.zeros(1, np.float32)], axis=0)
  return at_least - more


def _count_patches(filters: np.ndarray, image: Value, step: int) -> Value:
  graph = image.graph
  scores = graph.op("Conv", image, filters[:, None], strides=[step] * 2)
  # The first one of a tie, as `textons.largest_dot`.
  best = graph.op("ArgMax", scores, axis=1, keepdims=0).reshape(-1)
  ones = graph.op("Expand", 1.0, graph.op("Shape", best))
  none = np.zeros(len(filters), np.float32)
  return graph.op("ScatterElements", none, best, ones, axis=0, reduction="add")
