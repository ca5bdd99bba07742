"""A trained model as a file for other programs.

    python -m rcm_jax.export --checkpoint=runs/toeplitz_d1 --format=stablehlo --out=DIR

Formats, each beside a model card (`model_card.md`):

- stablehlo: CNN, heads and decoding in one program (`jax.export`) for CPU and CUDA, any number of
  stacks, of up to 256 slices. `examples/read_stack.py` runs it with JAX and flatbuffers.
- onnx: the same, one stack at a time, for ONNX Runtime (`examples/read_stack_onnx.py`) and whatever
  else reads ONNX. Writing it needs the package onnx.
- safetensors: the weights by name, and the description in the header's metadata.
"""

from __future__ import annotations

if __name__ == "__main__":  # before what takes seconds to import
  from tfds_rcm import interrupts

  interrupts.install("rcm_jax.export")

import argparse
from collections.abc import Sequence
import pathlib
import sys

from rcm_jax.exporters import files
from rcm_jax.inference import bundle as bundle_lib
from rcm_jax.inference.description import RESEARCH_USE
from rcm_jax.inference.stack_files import printable, unwritten
from tfds_rcm.errors import UserError


def main(argv: Sequence[str] | None = None) -> int:
  """Runs the command line; returns the exit code."""
  parser = argparse.ArgumentParser(
    prog="python -m rcm_jax.export",
    description=f"Write a trained model as a file for other programs. {RESEARCH_USE}",
  )
  option = parser.add_argument
  option("--checkpoint", type=pathlib.Path, required=True, help="work directory of a run")
  option("--format", choices=tuple(files.FORMATS), default="stablehlo", help="default: %(default)s")
  option("--out", type=pathlib.Path, required=True, help="folder for the model and its card")
  args = parser.parse_args(argv)
  try:
    path = files.export(bundle_lib.load(args.checkpoint), args.format, args.out)
  except UserError as error:
    print(f"error: {error}", file=sys.stderr)
    return 1
  except OSError as error:
    print(f"error: {unwritten(error, args.out)}", file=sys.stderr)
    return 1
  size = path.stat().st_size / 1e6
  print(f"{printable(path)}: {size:.1f} MB; see {printable(args.out / files.CARD)}")
  return 0


if __name__ == "__main__":
  sys.exit(main())
