"""Inception-V3 for extraction: the trained network rewritten for speed.

The same function as `InceptionV3` in evaluation mode, with

- batch normalisation folded into kernels and biases;
- the 1×1 convolutions that open a block's branches merged into one matrix product, the pooling
  branch among them: it convolves first and averages afterwards;
- uint8 in: the scaling to [−1, 1] is folded into the first convolution.
"""

from __future__ import annotations

from collections.abc import Callable

import jax
from jax import lax
import jax.numpy as jnp
from jax.typing import DTypeLike
from jaxtyping import Array, Float, UInt8
import numpy as np

from rcm_jax.arrays import ArrayLike
from rcm_jax.cnn import inception
from rcm_jax.cnn import inception_layers as table

Params = dict[str, dict[str, Array]]
Extractor = Callable[
  [UInt8[ArrayLike, "B H W *C"]], tuple[Float[Array, "B 256"], Float[Array, "B classes"]]
]


def fold(model: inception.InceptionV3, dtype: DTypeLike = jnp.float32) -> Params:
  """Kernels and biases of the network without batch normalisation.

  Args:
    model: trained network; its running statistics are used.
    dtype: type of the kernels. Biases, and the dense layers, are float32.

  Returns:
    "block/name" → {"kernel", "bias"}; the merged 1×1 convolutions of a block are "block/merged".
  """
  params = {}
  for block, steps in model.table.items():
    layers = {
      spec.name: folded(model.blocks[block][spec.name])
      for spec, _ in table.convolutions(steps, model.in_channels)
    }
    if block == "stem":
      layers["conv1a"]["kernel"] = layers["conv1a"]["kernel"] / 127.5
    for step in steps:
      if isinstance(step, table.Parallel):
        merged = [layers.pop(spec.name) for spec in _openers(step)]
        layers["merged"] = {
          "kernel": np.concatenate([layer["kernel"] for layer in merged], axis=-1),
          "bias": np.concatenate([layer["bias"] for layer in merged]),
        }
    for name, layer in layers.items():
      params[f"{block}/{name}"] = {
        "kernel": jnp.asarray(layer["kernel"], dtype),
        "bias": jnp.asarray(layer["bias"], jnp.float32),
      }
  for name in ("embed", "classifier"):
    dense = getattr(model, name)
    # By way of the host: what was read onto one device could not follow images onto others.
    params[name] = {
      "kernel": jnp.asarray(np.asarray(dense.kernel[...])),
      "bias": jnp.asarray(np.asarray(dense.bias[...])),
    }
  return params


def folded(layer: inception.ConvBlock) -> dict[str, np.ndarray]:
  """Returns (conv(x) − mean) / σ + bias as one convolution's "kernel" and "bias"."""
  scale = 1 / np.sqrt(np.asarray(layer.bn.var[...], np.float64) + inception.EPSILON)
  return {
    "kernel": np.asarray(layer.conv.kernel[...]) * scale,
    "bias": np.asarray(layer.bn.bias[...]) - np.asarray(layer.bn.mean[...]) * scale,
  }


def _openers(block: table.Parallel) -> list[table.Conv]:
  """1×1 convolutions that read the block's input."""
  first = [branch[0] for branch in block.branches]
  return [step for step in first if isinstance(step, table.Conv) and step.kernel == (1, 1)]


def pooled(params: Params, images: Array, steps: dict[str, tuple[table.Step, ...]]) -> Array:
  """Global average of the last block for gray levels 0 to 255, [B, H, W, C] → [B, P]."""
  dtype = params["stem/conv1a"]["kernel"].dtype
  x = images.astype(dtype) - jnp.asarray(127.5, dtype)  # exact, also in bfloat16
  for block, part in steps.items():
    x = _run(part, x, lambda name, block=block: params[f"{block}/{name}"])
  return x.mean(axis=(1, 2), dtype=jnp.float32)


def _run(steps: tuple[table.Step, ...], x: Array, get: Callable[[str], dict[str, Array]]) -> Array:
  for step in steps:
    if isinstance(step, table.Conv):
      layer = get(step.name)
      x = _activate(_convolve(x, layer["kernel"], step), layer["bias"])
    elif isinstance(step, table.MaxPool):
      x = table.max_pool(x)
    else:
      x = jnp.concatenate(_branches(step, x, get), axis=-1)
  return x


def _branches(
  block: table.Parallel, x: Array, get: Callable[[str], dict[str, Array]]
) -> list[Array]:
  openers = _openers(block)
  if openers:
    layer = get("merged")
    merged = _convolve(x, layer["kernel"], openers[0])
  outputs = []
  start = 0
  for branch in block.branches:
    step = branch[0]
    if step in openers:
      part = lax.slice_in_dim(merged, start, start + step.filters, axis=-1)
      bias = layer["bias"][start : start + step.filters]
      start += step.filters
      if step.average:
        part = inception.average_pool(part, step.count_include_pad)
      outputs.append(_run(branch[1:], _activate(part, bias), get))
    else:
      outputs.append(_run(branch, x, get))
  return outputs


def _activate(x: Array, bias: Array) -> Array:
  return jnp.maximum(x + bias.astype(x.dtype), 0)


def _convolve(x: Array, kernel: Array, spec: table.Conv) -> Array:
  if spec.kernel == (1, 1):
    return lax.dot_general(x, kernel[0, 0], (((3,), (0,)), ((), ())))
  return lax.conv_general_dilated(
    x,
    kernel,
    (spec.stride, spec.stride),
    spec.padding,
    dimension_numbers=("NHWC", "HWIO", "NHWC"),
  )


def compute_fn(
  model: inception.InceptionV3,
) -> Callable[[Params, UInt8[Array, "B H W C"]], tuple[Array, Array]]:
  """The network's function of `fold`'s parameters and images, to be compiled."""
  steps, channels = model.table, model.in_channels

  def compute(params: Params, images: Array) -> tuple[Array, Array]:
    inception.check_images(images.shape, channels)
    features = _dense(params["embed"], pooled(params, images, steps))
    return features, _dense(params["classifier"], jnp.maximum(features, 0))

  return compute


def extract_fn(model: inception.InceptionV3, dtype: DTypeLike = jnp.float32) -> Extractor:
  """Compiled extractor of a trained network.

  Args:
    model: trained network; later changes to it are not seen.
    dtype: type of the convolutions' computation; bfloat16 on accelerators.

  Returns:
    Function of gray levels 0 to 255, [B, H, W] or [B, H, W, C], that returns the features (before
    the added layer's non-linearity) and the logits, both float32. It may be called inside another
    compiled function and then becomes a part of it.

  Raises (the returned function):
    ValueError: images of less than 75 pixels a side, or of another number of channels.
  """
  params = fold(model, dtype)
  compute = compute_fn(model)
  compiled = jax.jit(compute, compiler_options=inception.compiler_options())

  def extract(
    images: UInt8[ArrayLike, "B H W *C"],
  ) -> tuple[Float[Array, "B 256"], Float[Array, "B classes"]]:
    images = images if images.ndim == 4 else images[..., None]
    # XLA takes options for whole programs only.
    part = compute if isinstance(images, jax.core.Tracer) else compiled
    return part(params, images)

  return extract


def _dense(layer: dict[str, Array], x: Array) -> Array:
  return x @ layer["kernel"] + layer["bias"]
