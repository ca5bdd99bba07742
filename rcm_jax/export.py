"""A trained model as a file for other programs.

    python -m rcm_jax.export --checkpoint=runs/toeplitz_d1 --format=stablehlo --out=DIR

Formats, each beside a model card (`model_card.md`):

- stablehlo: CNN, heads and decoding in one program (`jax.export`) for CPU and CUDA, any number of
  stacks and slices. `examples/read_stack.py` runs it with nothing but JAX.
- onnx: the same, one stack at a time, for ONNX Runtime (`examples/read_stack_onnx.py`) and whatever
  else reads ONNX. Writing it needs the package onnx.
- safetensors: the weights by name, and the description in the header's metadata.
"""

from __future__ import annotations

if __name__ == "__main__":  # before what takes seconds to import
  from tfds_rcm import interrupts

  interrupts.install("rcm_jax.export")

import argparse
from collections.abc import Callable, Sequence
import pathlib
import sys

import jax
import jax.numpy as jnp
from jaxtyping import Array
from safetensors.numpy import save as to_safetensors

from rcm_jax.cnn import folded_inception
from rcm_jax.inference import bundle as bundle_lib
from rcm_jax.inference import interpretation as reading_lib
from rcm_jax.inference import model_card
from rcm_jax.runtime import stage_cache
from tfds_rcm.errors import UserError

PLATFORMS = ("cpu", "cuda")
CARD = "model_card.md"
MAX_SLICES = 256


def longest(bundle: bundle_lib.Bundle) -> int:
  """Slices that an exported model can be given at most."""
  head = bundle.description.head
  return head.max_slices if head.attention == "location" else MAX_SLICES


def serving_fn(bundle: bundle_lib.Bundle) -> Callable[[Array, Array, Array], dict[str, Array]]:
  """Returns all of a model as one pure function of arrays.

  It maps slices uint8 [B, T, height, width], shallow first, depth_um float32 [B, T] and mask bool
  [B, T], real slices first and at most `longest` of them, to a dictionary:

    strata         int32 [B, T], a possible labelling: 0 epidermis, 1 DEJ, 2 dermis
    probabilities  float32 [B, T, 3], calibrated
    boundary_um    float32 [B, 2], median depth of epidermis–DEJ and DEJ–dermis
    interval_um    float32 [B, 2, 2], their lower and upper ends
    in_stack       float32 [B, 2], probability that the stack shows the boundary
  """
  extract = folded_inception.extract_fn(bundle.network)
  half = bundle.context // 2

  def serve(slices, depth_um, mask):
    stacks, count, height, width = slices.shape
    last = jnp.maximum(jnp.sum(mask, axis=1), 1) - 1
    beside = jnp.arange(count)[:, None] + jnp.arange(-half, half + 1)
    rows = jnp.clip(beside[None], 0, last[:, None, None])  # [B, T, context]
    images = jax.vmap(lambda stack, row: stack[row])(slices, rows)
    images = jnp.moveaxis(images, 2, -1).reshape(stacks * count, height, width, bundle.context)
    features = extract(images)[0]
    if bundle.encoders:
      features = jnp.concatenate([features, bundle.textures(images[..., half])], axis=1)
    features = features.reshape(stacks, count, -1)
    room = longest(bundle)  # decoding interpolates, which needs a constant length

    def read(one):
      features, depth_um, mask = (
        jnp.zeros((room, *x.shape[1:]), x.dtype).at[:count].set(x) for x in one
      )
      probabilities = bundle.class_probabilities(features, mask)
      return reading_lib.read(probabilities, depth_um, mask, bundle.description.calibration)

    reading = jax.lax.map(read, (features, depth_um, mask))
    return {
      "strata": reading.strata[:, :count],
      "probabilities": reading.probabilities[:, :count],
      "boundary_um": reading.boundary_um[:, :, 1],
      "interval_um": reading.boundary_um[:, :, ::2],
      "in_stack": reading.in_stack,
    }

  return serve


def stablehlo(bundle: bundle_lib.Bundle) -> bytes:
  """Returns `serving_fn` as a serialized `jax.export` artefact for `PLATFORMS`."""
  height, width = bundle.description.image_shape
  stacks, slices = jax.export.symbolic_shape(
    "stacks, slices", constraints=["slices >= 1", f"slices <= {longest(bundle)}"]
  )
  arguments = (
    jax.ShapeDtypeStruct((stacks, slices, height, width), jnp.uint8),
    jax.ShapeDtypeStruct((stacks, slices), jnp.float32),
    jax.ShapeDtypeStruct((stacks, slices), jnp.bool_),
  )
  # Without this a GPU rounds products to fewer digits than the CPU that the model was tested on.
  with jax.default_matmul_precision("float32"):
    exported = jax.export.export(jax.jit(serving_fn(bundle)), platforms=PLATFORMS)(*arguments)
  return bytes(exported.serialize())


def onnx(bundle: bundle_lib.Bundle) -> bytes:
  """Returns the model as an ONNX file's content; see `onnx_export.model`.

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


def safetensors(bundle: bundle_lib.Bundle) -> bytes:
  """Returns the weights by name, with the description as the one entry of the metadata."""
  return to_safetensors(
    bundle_lib.named_weights(bundle), metadata={"bundle": bundle.description.to_json()}
  )


FORMATS = {
  "stablehlo": (stablehlo, "model.stablehlo"),
  "onnx": (onnx, "model.onnx"),
  "safetensors": (safetensors, "model.safetensors"),
}


def export(bundle: bundle_lib.Bundle, format_name: str, directory: pathlib.Path) -> pathlib.Path:
  """Writes one format and the model card; returns the artefact's path.

  Raises:
    OSError: the directory cannot be written.
  """
  function, name = FORMATS[format_name]
  content = function(bundle)
  directory.mkdir(parents=True, exist_ok=True)
  part = directory / f".{name}.part"
  part.write_bytes(content)
  part.replace(directory / name)
  stage_cache.write_text(directory / CARD, model_card.markdown(bundle.description))
  return directory / name


def main(argv: Sequence[str] | None = None) -> int:
  """Runs the command line; returns the exit code."""
  parser = argparse.ArgumentParser(
    prog="python -m rcm_jax.export",
    description=f"Write a trained model as a file for other programs. {model_card.RESEARCH_USE}",
  )
  option = parser.add_argument
  option("--checkpoint", type=pathlib.Path, required=True, help="work directory of a run")
  option("--format", choices=tuple(FORMATS), default="stablehlo", help="default: %(default)s")
  option("--out", type=pathlib.Path, required=True, help="folder for the model and its card")
  args = parser.parse_args(argv)
  try:
    path = export(bundle_lib.load(args.checkpoint), args.format, args.out)
  except UserError as error:
    print(f"error: {error}", file=sys.stderr)
    return 1
  except OSError as error:
    place = error.filename or args.out
    print(f"error: {place}: {error.strerror}; make room or choose another --out", file=sys.stderr)
    return 1
  print(f"{path}: {path.stat().st_size / 1e6:.1f} MB; see {args.out / CARD}")
  return 0


if __name__ == "__main__":
  sys.exit(main())
