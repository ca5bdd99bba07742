"""Inception-V3 as an ONNX graph: gray levels → the 256 features of a slice, and its own logits."""

from __future__ import annotations

from flax import nnx
import numpy as np

from rcm_jax.cnn import folded_inception, inception
from rcm_jax.cnn import inception_layers as table
from rcm_jax.exporters.onnx.graph import Value


def features(network: inception.InceptionV3, slices: Value) -> Value:
  """Adds the network, with batch normalisation folded into the convolutions.

  Args:
    network: in evaluation mode.
    slices: uint8 [T, height, width], one stack.

  Returns:
    float32 [T, 256].
  """
  images = slices.unsqueeze(1) if network.in_channels == 1 else _neighbours(network, slices)
  return _features(network, images)


def classify(network: inception.InceptionV3, images: Value) -> tuple[Value, Value]:
  """Adds the network with its own classifier.

  Args:
    network: in evaluation mode.
    images: uint8 [B, height, width, C].

  Returns:
    Features, float32 [B, 256], and logits, float32 [B, strata].
  """
  features = _features(network, images.transpose(0, 3, 1, 2))
  return features, _dense(network.classifier, images.graph.op("Relu", features))


def _features(network: inception.InceptionV3, images: Value) -> Value:
  x = images.cast(np.float32) / 127.5 - 1.0
  for block, steps in network.table.items():
    x = _run(network.blocks[block], steps, x)
  x = images.graph.op("GlobalAveragePool", x).reshape(-1, network.embed.kernel.shape[0])
  return _dense(network.embed, x)


def _dense(layer: nnx.Linear, x: Value) -> Value:
  return x @ np.asarray(layer.kernel[...]) + np.asarray(layer.bias[...])


def _neighbours(network: inception.InceptionV3, slices: Value) -> Value:
  """Each slice and the ones around it as channels; the end slices stand for those outside."""
  graph = slices.graph
  half = network.in_channels // 2
  count = slices.size()
  rows = graph.range(count).unsqueeze(1) + np.arange(-half, half + 1)
  return slices.take(graph.op("Clip", rows, np.int64(0), count - 1))


def _run(block, steps: tuple[table.Step, ...], x: Value) -> Value:
  graph = x.graph
  for step in steps:
    if isinstance(step, table.Conv):
      layer = folded_inception.folded(block[step.name])
      kernel = layer["kernel"].transpose(3, 2, 0, 1).astype(np.float32)
      pads = [size // 2 if step.padding == "SAME" else 0 for size in step.kernel]
      strides = [step.stride] * 2
      bias = layer["bias"].astype(np.float32)
      if step.average:  # of fewer channels than before the convolution; zeros count before the bias
        x = graph.op("Conv", x, kernel, strides=strides, pads=pads * 2)
        counts = int(step.count_include_pad)
        x = graph.op(
          "AveragePool", x, kernel_shape=[3, 3], pads=[1, 1, 1, 1], count_include_pad=counts
        )
        x = x + bias[:, None, None]
      else:
        x = graph.op("Conv", x, kernel, bias, strides=strides, pads=pads * 2)
      x = graph.op("Relu", x)
    elif isinstance(step, table.MaxPool):
      x = graph.op("MaxPool", x, kernel_shape=[3, 3], strides=[2, 2])
    else:
      x = graph.concat([_run(block, branch, x) for branch in step.branches], axis=1)
  return x
