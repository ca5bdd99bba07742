"""Pretrained Inception-V3 weights from files of Keras and of torchvision.

A port is a table from our names to the file's; everything else follows from it. Names of
torchvision are those of `inception_table.BLOCKS`. Keras numbers its layers by the session
(`conv2d_94`, `batch_normalization_94`, …), so a Keras file is read as lists of layers, put in
the order in which Keras itself would list the network (by topology) or, where the file's own
order is another one, by layer number; the shapes decide which.
"""

from __future__ import annotations

from collections.abc import Iterator
import dataclasses
import os
from pathlib import Path
import re

from flax import nnx
import jax.numpy as jnp
import numpy as np

from rcm_jax.cnn import inception, inception_layers, weight_files
from rcm_jax.cnn.weight_files import Layer
from tfds_rcm.errors import UserError

TORCHVISION_BLOCKS = {
  "mixed0": "Mixed_5b",
  "mixed1": "Mixed_5c",
  "mixed2": "Mixed_5d",
  "mixed3": "Mixed_6a",
  "mixed4": "Mixed_6b",
  "mixed5": "Mixed_6c",
  "mixed6": "Mixed_6d",
  "mixed7": "Mixed_6e",
  "mixed8": "Mixed_7a",
  "mixed9": "Mixed_7b",
  "mixed10": "Mixed_7c",
}
TORCHVISION_STEM = {
  "conv1a": "Conv2d_1a_3x3",
  "conv2a": "Conv2d_2a_3x3",
  "conv2b": "Conv2d_2b_3x3",
  "conv3b": "Conv2d_3b_1x1",
  "conv4a": "Conv2d_4a_3x3",
}
IMAGENET_MEAN = np.array([0.485, 0.456, 0.406])  # of RGB in [0, 1], as torchvision normalises
IMAGENET_STD = np.array([0.229, 0.224, 0.225])
_TORCH = (".safetensors", ".pth")  # with torchvision's names


@dataclasses.dataclass(frozen=True)
class Report:
  """What `load` did.

  Attributes:
    loaded: our names of the layers that now hold the file's values.
    skipped: what of the file or the model was left alone, and why, a line each.
  """

  loaded: tuple[str, ...]
  skipped: tuple[str, ...]

  def __str__(self) -> str:
    return "\n".join([f"{len(self.loaded)} layers loaded", *self.skipped])


def counts_padding(path: str | os.PathLike) -> bool:
  """Whether the library that a file's format belongs to counts the padding of average pooling."""
  return Path(path).suffix in _TORCH


def load(
  model: inception.InceptionV3,
  path: str | os.PathLike,
  *,
  rgb_input: str = "symmetric",
  count_include_pad: bool | None = None,
) -> Report:
  """Copies pretrained weights from a file into the model, all of them or none.

  Kernels over RGB become kernels over the model's own channels: over one gray channel their sum,
  which is what the file's network computes on a gray image shown as RGB; over other counts the
  sum shared evenly (a file with the model's own count is taken as it is).

  A scale of batch normalisation (torchvision has one) is multiplied into the convolution and the
  running mean. That is exact with running statistics; batch statistics in training normalise it
  away, which the report mentions.

  Average pooling follows the file, because two libraries compute different things from the same
  weights: at the border torchvision's network divides by nine, zeros outside the image included,
  and Keras' and TensorFlow's by the number of pixels inside. The pooled features differ by some
  15 %.

      file                                                    rgb_input   count_include_pad
      Keras, inception_v3_weights_tf_dim_ordering_tf_…h5      symmetric   False
      torchvision, inception_v3_google-0cc3c7bd.pth           symmetric   True
      the same, fine-tuned with transform_input=False         imagenet    True
      pytorch-fid, pt_inception-2015-12-05-6726825d.pth       symmetric   False

  (The last has torchvision's names, but a network of its own: it leaves padding out, and takes a
  maximum in the last block's pooling branch, which this network does not have.)

  Args:
    model: receives the values in place; its classifier and added layer keep theirs unless the
      file has such layers of the same size. Its average pooling is set.
    path: .weights.h5, .h5 or .keras (Keras 2 or 3); .safetensors or .pth (torchvision's names;
      .pth needs PyTorch and is read with weights-only loading).
    rgb_input: what the file's first convolution was trained on. "symmetric" is [−1, 1], which is
      right for Keras and for torchvision's own ImageNet weights (their `transform_input` turns
      the normalised image back into [−1, 1]); "imagenet" is RGB normalised by ImageNet's mean
      and standard deviation, for networks trained without `transform_input`. It is folded into
      the first convolution exactly.
    count_include_pad: whether average pooling counts the zeros around the image; None is as the
      library of the file's format has it, see `counts_padding`.

  Raises:
    UserError: a file that cannot be read, or does not fit; every mismatch is listed.
    ValueError: an unknown `rgb_input`.
  """
  if rgb_input not in ("symmetric", "imagenet"):
    raise ValueError(f"rgb_input is 'symmetric' or 'imagenet', got {rgb_input!r}")
  path = Path(path)
  targets = model.named_blocks()
  if path.suffix in (".keras", ".h5"):
    layers = _from_keras(weight_files.read_keras(path), model, path)
  elif path.suffix in _TORCH:
    layers = _from_torchvision(weight_files.read_tensors(path), targets, path)
  else:
    raise UserError(
      f"{path}: expected a .keras, .weights.h5, .h5, .safetensors or .pth file of weights"
    )

  unused = set(layers) - {*targets, "embed", "classifier"}
  skipped = [f"{name}: not used" for name in sorted(unused)]
  mismatches = []
  scaled = 0
  for name, target in targets.items():
    layer = layers.get(name, {})
    if {"kernel", "mean", "scale"} <= layer.keys() and layer["scale"].shape == target.bn.mean.shape:
      scaled += int((layer["scale"] != 1).any())
      layer = _fold_scale(layer)
    if name == "stem/conv1a" and {"kernel", "mean"} <= layer.keys():
      layer = _fold_input(layer, model.in_channels, rgb_input, path)
    layers[name] = layer
    mismatches += _mismatches(name, layer, _variables(target))
  if scaled:
    skipped.append(
      f"scale of {scaled} batch normalisations: folded into the convolutions, which holds for "
      "running statistics; batch statistics in training normalise it away"
    )
  if mismatches:
    raise UserError(
      "\n  ".join(
        [
          f"{path}: does not fit Inception-V3 with {model.in_channels} channel(s), "
          f"{len(mismatches)} mismatches (expected the file of a network of the same width):",
          *mismatches,
        ]
      )
    )
  for name in ("embed", "classifier"):
    target = getattr(model, name)
    problems = _mismatches(name, layers.get(name, {}), _variables(target))
    if problems:
      skipped.append(f"{name}: kept as it was ({'; '.join(problems)})")
    else:
      targets[name] = target
  for name, target in targets.items():
    for key, variable in _variables(target).items():
      variable[...] = jnp.asarray(layers[name][key], variable.dtype)
  model.pool(
    count_include_pad=counts_padding(path) if count_include_pad is None else count_include_pad
  )
  return Report(tuple(targets), tuple(skipped))


def keras_order(model: inception.InceptionV3) -> list[str]:
  """Names of the convolutions in the order of `keras.Model.layers`.

  Keras sorts layers by their greatest distance from the output and breaks ties by the order of
  branches. A convolution with its normalisation and ReLU is three layers, a concatenation one.
  """

  def walk(steps: tuple[inception_layers.Step, ...], distance: int) -> Iterator[tuple[int, str]]:
    after = [_depth(steps[i + 1 :]) for i in range(len(steps))]
    for step, rest in zip(steps, after, strict=True):
      if isinstance(step, inception_layers.Conv):
        yield distance + rest, step.name
      elif isinstance(step, inception_layers.Parallel):
        for branch in step.branches:
          yield from walk(branch, distance + rest + 1)

  order = []
  for block, steps in model.table.items():
    ranked = sorted(walk(steps, 0), key=lambda item: -item[0])
    order += [f"{block}/{name}" for _, name in ranked]
  return order


def _depth(steps: tuple[inception_layers.Step, ...]) -> int:
  """Keras layers on the longest way through `steps`."""
  depth = 0
  for step in steps:
    if isinstance(step, inception_layers.Conv):
      depth += 3 + step.average
    elif isinstance(step, inception_layers.MaxPool):
      depth += 1
    else:
      depth += 1 + max(_depth(branch) for branch in step.branches)
  return depth


def _variables(layer: inception.ConvBlock | nnx.Linear) -> dict[str, nnx.Variable]:
  if isinstance(layer, nnx.Linear):
    return {"kernel": layer.kernel, "bias": layer.bias}
  return {
    "kernel": layer.conv.kernel,
    "bias": layer.bn.bias,
    "mean": layer.bn.mean,
    "var": layer.bn.var,
  }


def _mismatches(name: str, layer: Layer, variables: dict[str, nnx.Variable]) -> list[str]:
  if not layer:
    return [f"{name}: not in the file"]
  problems = []
  for key, variable in variables.items():
    if key not in layer:
      problems.append(f"{name}: {key} not in the file")
    elif layer[key].shape != variable.shape:
      problems.append(f"{name}: {key} is {layer[key].shape}, expected {variable.shape}")
    elif not np.isfinite(layer[key]).all():
      problems.append(f"{name}: {key} holds NaN or infinity")
  return problems or [f"{name}: unexpected {key}" for key in layer if key not in variables]


def _from_keras(
  file: list[tuple[str, Layer]], model: inception.InceptionV3, path: Path
) -> dict[str, Layer]:
  """Pairs the layers of a Keras file with ours."""
  convolutions = [(n, v) for n, v in file if "kernel" in v and v["kernel"].ndim == 4]
  normalisations = [(n, v) for n, v in file if "mean" in v]
  specs = {name: block.spec for name, block in model.named_blocks().items()}
  if not len(convolutions) == len(normalisations) == len(specs):
    raise UserError(
      f"{path}: expected {len(specs)} convolutions and {len(specs)} batch normalisations of "
      f"Inception-V3, found {len(convolutions)} and {len(normalisations)}"
    )

  def paired(names: list[str], convs: list[tuple[str, Layer]], bns: list[tuple[str, Layer]]):
    layers = {}
    for name, (_, conv), (_, bn) in zip(names, convs, bns, strict=True):
      conv = {"convolution bias" if key == "bias" else key: conv[key] for key in conv}
      layers[name] = conv | bn
    return layers

  def fits(layers: dict[str, Layer]) -> bool:
    shapes = {name: layer["kernel"].shape for name, layer in layers.items()}
    return all((s[:2], s[3]) == (specs[n].kernel, specs[n].filters) for n, s in shapes.items())

  by_topology = paired(keras_order(model), convolutions, normalisations)
  by_number = paired(
    list(specs), sorted(convolutions, key=_number), sorted(normalisations, key=_number)
  )
  layers = by_number if fits(by_number) and not fits(by_topology) else by_topology
  wanted = {name: getattr(model, name).kernel.shape for name in ("embed", "classifier")}
  for _, dense in file:
    if "kernel" in dense and dense["kernel"].ndim == 2:
      shape = dense["kernel"].shape
      name = next((n for n in wanted if wanted[n] == shape), f"dense layer {shape}")
      wanted.pop(name, None)
      layers[name] = dense
  return layers


def _number(item: tuple[str, Layer]) -> int:
  """Number at the end of a layer's name; the session's first layer of a kind has none."""
  found = re.search(r"_(\d+)$", item[0])
  return int(found[1]) if found else 0


def _from_torchvision(
  tensors: dict[str, np.ndarray], targets: dict[str, inception.ConvBlock], path: Path
) -> dict[str, Layer]:
  """Renames torchvision's tensors and puts kernels in our order of axes."""
  anchor = f"{TORCHVISION_STEM['conv1a']}.conv.weight"
  prefix = next((key.removesuffix(anchor) for key in tensors if key.endswith(anchor)), None)
  if prefix is None:
    raise UserError(f"{path}: no tensor {anchor}: expected torchvision's names of Inception-V3")
  tensors = {k.removeprefix(prefix): v for k, v in tensors.items() if k.startswith(prefix)}
  layers = {}
  for name in targets:
    block, conv = name.split("/")
    theirs = TORCHVISION_STEM[conv] if block == "stem" else f"{TORCHVISION_BLOCKS[block]}.{conv}"
    layer = {
      "kernel": tensors.pop(f"{theirs}.conv.weight", None),
      "scale": tensors.pop(f"{theirs}.bn.weight", None),
      "bias": tensors.pop(f"{theirs}.bn.bias", None),
      "mean": tensors.pop(f"{theirs}.bn.running_mean", None),
      "var": tensors.pop(f"{theirs}.bn.running_var", None),
    }
    layers[name] = {key: value for key, value in layer.items() if value is not None}
    if layer["kernel"] is not None and layer["kernel"].ndim == 4:
      layers[name]["kernel"] = layer["kernel"].transpose(2, 3, 1, 0)
  if "fc.weight" in tensors and "fc.bias" in tensors:
    layers["classifier"] = {"kernel": tensors.pop("fc.weight").T, "bias": tensors.pop("fc.bias")}
  unused = {key.split(".")[0] for key in tensors if not key.endswith("num_batches_tracked")}
  layers.update({name: {} for name in unused})
  return layers


def _fold_input(layer: Layer, in_channels: int, rgb_input: str, path: Path) -> Layer:
  """First convolution of an RGB network, rewritten for `in_channels` channels in [−1, 1]."""
  layer = dict(layer)
  kernel = layer["kernel"].astype(np.float64)
  if rgb_input == "imagenet":
    if kernel.shape[2] != 3:
      raise UserError(
        f"{path}: rgb_input='imagenet' needs 3 input channels, this file has {kernel.shape[2]}"
      )
    # (x/2 + 1/2 − mean) / std: the convolution has no padding, so its constant part is the same
    # at every pixel and moves into the mean that batch normalisation subtracts.
    shift = np.einsum("hwio,i->o", kernel, (0.5 - IMAGENET_MEAN) / IMAGENET_STD)
    kernel = kernel / (2 * IMAGENET_STD[:, None])
    layer["mean"] = (layer["mean"] - shift).astype(np.float32)
  if kernel.shape[2] != in_channels:
    kernel = np.repeat(kernel.sum(axis=2, keepdims=True) / in_channels, in_channels, axis=2)
  return layer | {"kernel": kernel.astype(np.float32)}


def _fold_scale(layer: Layer) -> Layer:
  """Scale · (conv(x) − mean) / σ, with the scale moved into the kernel and the mean."""
  scale = layer["scale"]
  rest = {key: value for key, value in layer.items() if key != "scale"}
  return rest | {"kernel": layer["kernel"] * scale, "mean": layer["mean"] * scale}
