"""Files of network weights as plain arrays: HDF5 and zip layouts of Keras, safetensors, PyTorch."""

from __future__ import annotations

from collections.abc import Iterator
import io
from pathlib import Path
import re
import zipfile

import h5py
import numpy as np
import safetensors
import safetensors.numpy

from tfds_rcm.errors import UserError

Layer = dict[str, np.ndarray]  # keys: kernel, bias; batch normalisation: bias, mean, var, scale

_LEGACY_KEYS = {
  "kernel": "kernel",
  "bias": "bias",
  "gamma": "scale",
  "beta": "bias",
  "moving_mean": "mean",
  "moving_variance": "var",
}
_MEMBER = "model.weights.h5"  # of a .keras zip


def read_keras(path: Path) -> list[tuple[str, Layer]]:
  """Convolution, dense and batch-normalisation layers of a Keras file, in the file's order.

  Args:
    path: .keras, .weights.h5, or an .h5 of whole models or weights, of Keras 2 or 3.

  Returns:
    Pairs of the layer's name and its arrays. Other layers, and the optimiser, are left out.

  Raises:
    UserError: the file is missing, damaged or not one of these.
  """
  try:
    if path.suffix == ".keras":
      with zipfile.ZipFile(path) as archive:
        source = io.BytesIO(archive.read(_MEMBER))
    else:
      source = path.open("rb")
    with source, h5py.File(source, "r") as file:
      root = file.get("model_weights", file)
      legacy = "layer_names" in root.attrs or "layer_names0" in root.attrs
      return list(_legacy_layers(root) if legacy else _layers(root, ""))
  except (OSError, KeyError, ValueError, zipfile.BadZipFile) as error:
    raise UserError(f"{path}: cannot be read as a Keras file of weights: {error}") from error


def read_tensors(path: Path) -> dict[str, np.ndarray]:
  """Named tensors of a .safetensors file or of a PyTorch state dict (.pth), as float32.

  Raises:
    UserError: the file is missing, damaged, holds more than tensors, or PyTorch is missing.
  """
  try:
    if path.suffix == ".safetensors":
      with safetensors.safe_open(path, framework="numpy") as file:
        tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118
    else:
      tensors = _read_pytorch(path)
  except (OSError, TypeError, safetensors.SafetensorError) as error:
    raise UserError(f"{path}: cannot be read as tensors: {error}") from error
  return {key: np.asarray(value, np.float32) for key, value in tensors.items()}


def _read_pytorch(path: Path) -> dict[str, np.ndarray]:
  try:
    import torch
  except ImportError:
    raise UserError(
      f"{path}: reading .pth needs PyTorch (pip install torch), or convert it to .safetensors"
    ) from None
  try:
    loaded = torch.load(path, map_location="cpu", weights_only=True)
  except Exception as error:  # torch raises its own unpickling errors, and RuntimeError
    reason = str(error).splitlines()[0]
    raise UserError(f"{path}: cannot be read as a PyTorch state dict: {reason}") from error
  state = loaded.get("state_dict", loaded) if isinstance(loaded, dict) else {}
  return {key: value.float().numpy() for key, value in state.items() if torch.is_tensor(value)}


def _natural(name: str) -> list[str | int]:
  return [int(part) if part.isdigit() else part for part in re.split(r"(\d+)", name)]


def _layers(group: h5py.Group, path: str) -> Iterator[tuple[str, Layer]]:
  """Walks Keras 3's layout: variables of a layer are `…/vars/0`, `…/vars/1`, … in a fixed order."""
  for key in sorted(group, key=_natural):
    child = group[key]
    if key == "vars" and path:
      arrays = [np.asarray(child[index]) for index in sorted(child, key=int)]
      layer = _named(arrays)
      if layer is not None:
        yield str(child.attrs.get("name", "")), layer
    elif isinstance(child, h5py.Group) and f"{path}/{key}" != "/optimizer":
      yield from _layers(child, f"{path}/{key}")


def _named(arrays: list[np.ndarray]) -> Layer | None:
  """Names the variables of one Keras 3 layer by their ranks; None for other kinds of layers."""
  ranks = [array.ndim for array in arrays]
  if ranks in ([4], [4, 1], [2], [2, 1]):
    keys = ["kernel", "bias"]
  elif ranks == [1, 1, 1]:
    keys = ["bias", "mean", "var"]
  elif ranks == [1, 1, 1, 1]:
    keys = ["scale", "bias", "mean", "var"]
  else:
    return None
  return dict(zip(keys, arrays, strict=False))


def _legacy_layers(root: h5py.Group) -> Iterator[tuple[str, Layer]]:
  """Walks the older layout: variables have names, `conv2d_7/kernel:0`, within each top layer."""
  layers: dict[str, Layer] = {}
  for group in _attribute(root, "layer_names"):
    for weight in _attribute(root[group], "weight_names"):
      name, _, leaf = weight.partition(":")[0].rpartition("/")
      key = _LEGACY_KEYS.get(leaf)
      if key is not None:
        layers.setdefault(f"{group}/{name}", {})[key] = np.asarray(root[group][weight])
  yield from layers.items()


def _attribute(group: h5py.Group, name: str) -> list[str]:
  """A list of strings among the attributes, in pieces `name0`, `name1`, … where it is long."""
  pieces = (
    [name]
    if name in group.attrs
    else sorted((key for key in group.attrs if re.fullmatch(rf"{name}\d+", key)), key=_natural)
  )
  values = [value for piece in pieces for value in group.attrs[piece]]
  return [value.decode() if isinstance(value, bytes) else str(value) for value in values]
