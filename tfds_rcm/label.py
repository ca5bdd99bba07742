"""A local page on which a reader labels a study's stacks.

    python -m tfds_rcm.label --source=STUDY --reader=NAME

Opens http://127.0.0.1:PORT/TOKEN/ on this machine. Answers are saved at once to
STUDY/labels/NAME.csv, which `tfds_rcm.prepare` reads. End it by Ctrl-C; the same command goes on.
"""

from __future__ import annotations

if __name__ == "__main__":  # before what takes seconds to import
  from tfds_rcm import interrupts

  interrupts.install("tfds_rcm.label")

import argparse
from collections.abc import Sequence
import importlib
import pathlib
import sys

from tfds_rcm.errors import UserError


def main(argv: Sequence[str] | None = None) -> int:
  """Runs the command line; returns the exit code."""
  parser = argparse.ArgumentParser(
    prog="python -m tfds_rcm.label",
    description="Label a study's stacks on a page that only this machine can open.",
  )
  add = parser.add_argument
  add("--source", type=pathlib.Path, required=True, help="the study's folder")
  add("--reader", required=True, help="who labels; the file is called so")
  add(
    "--predictions", type=pathlib.Path, help="folder that rcm_jax.predict wrote; shown on request"
  )
  add(
    "--order",
    choices=("shuffled", "uncertain"),
    default="shuffled",
    help="uncertain: the stacks first of which the predictions are least certain",
  )
  add("--repeats", type=float, default=0.1, help="share of stacks that come twice (default: 0.1)")
  add("--seed", type=int, default=0, help="of the order")
  add("--corneum", action="store_true", help="label the stratum corneum apart from the epidermis")
  add("--adjudicate", action="store_true", help="decide where the other readers differ")
  add("--step_um", type=float, help="µm between slices, where neither manifest nor files tell")
  add("--pixel_um", type=float, help="µm a pixel, likewise")
  add("--port", type=int, default=0, help="to listen on (default: any that is free)")
  add("--no_browser", action="store_true", help="print the address, open nothing")
  args = parser.parse_args(argv)
  try:
    try:
      command = importlib.import_module("tfds_rcm.labelling.command")
    except ImportError as error:
      if error.name not in ("starlette", "uvicorn"):
        raise
      raise UserError(f"{error.name} is missing: pip install 'rcm-jax[label]'") from error
    command.run(args)
  except KeyboardInterrupt:  # how a reader ends it
    print("\nended; all answers are saved, the same command goes on")
  except UserError as error:
    print(f"error: {error}", file=sys.stderr)
    return 1
  except OSError as error:
    place = error.filename or args.source
    print(f"error: {place}: {error.strerror or error}", file=sys.stderr)
    return 1
  return 0


if __name__ == "__main__":
  sys.exit(main())
