"""Writes a trained model in one of the formats for other programs, and its model card."""

from __future__ import annotations

import os
import pathlib

from rcm_jax.exporters import safetensors, stablehlo
from rcm_jax.inference import bundle as bundle_lib
from rcm_jax.inference import model_card
from tfds_rcm.errors import UserError

CARD = "model_card.md"


def onnx(bundle: bundle_lib.Bundle) -> bytes:
  """Returns the model as an ONNX file's content; see `exporters.onnx.model`.

  Raises:
    UserError: the package onnx is not installed.
  """
  try:
    from rcm_jax.exporters.onnx import model
  except ModuleNotFoundError as error:
    if error.name != "onnx":
      raise
    raise UserError("--format=onnx: needs the package onnx; run `pip install onnx`") from error
  return model.serialize(bundle)


FORMATS = {
  "stablehlo": (stablehlo.serialize, "model.stablehlo"),
  "onnx": (onnx, "model.onnx"),
  "safetensors": (safetensors.serialize, "model.safetensors"),
}


def export(bundle: bundle_lib.Bundle, format_name: str, directory: pathlib.Path) -> pathlib.Path:
  """Writes one format and the model card, both or none; returns the model's path.

  Raises:
    UserError: the format needs a package that is not installed, or the model has no CNN.
    OSError: the directory cannot be written.
  """
  bundle.check_sees_images()
  function, name = FORMATS[format_name]
  content = {name: function(bundle), CARD: model_card.markdown(bundle.description).encode()}
  directory.mkdir(parents=True, exist_ok=True)
  parts = {name: directory / f".{name}.{os.getpid()}" for name in content}
  try:
    for name_of, part in parts.items():
      with part.open("wb") as file:
        file.write(content[name_of])
        file.flush()
        os.fsync(file.fileno())
    for name_of, part in parts.items():
      part.replace(directory / name_of)
  finally:
    for part in parts.values():
      part.unlink(missing_ok=True)
  return directory / name
