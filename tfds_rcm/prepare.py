"""Writes and registers a dataset: `python -m tfds_rcm.prepare NAME [options]`.

`NAME --help` tells the options of a dataset. TFDS's own command line does the same and needs
TensorFlow.
"""

from __future__ import annotations

if __name__ == "__main__":  # before what takes seconds to import
  from tfds_rcm import interrupts

  interrupts.install("tfds_rcm.prepare")

import argparse
from collections.abc import Callable, Sequence
import importlib
import os
import pathlib
import sys

from tfds_rcm import disk
from tfds_rcm.errors import UserError, printable
from tfds_rcm.interrupts import Preempted

# Dataset → what it is, and its module with `add_arguments(parser, name)` and `run(name, args, data_dir)`. Imported when
# asked for: each brings its own libraries.
COMMANDS = {
  "rcm_phantom": ("simulated stacks", "tfds_rcm.rcm_phantom.command"),
  "rcm_dryad": ("the archive of Hames et al. 2016", "tfds_rcm.prepare_study"),
  "rcm_clinical": ("your own study", "tfds_rcm.prepare_study"),
}


def prepare_phantom(
  preset: str,
  data_dir: str | os.PathLike[str] | None = None,
  *,
  seed: int = 0,
  progress: Callable[[int, int], None] | None = None,
) -> pathlib.Path:
  """Renders and registers a phantom; returns at once if it is there, resumes if half of it is.

  Args:
    preset: a name that `rcm_phantom.spec.named` understands, such as "demo".
    data_dir: where TFDS keeps datasets; its own default if None.
    seed: another phantom of the same kind.
    progress: called with stacks finished and stacks in all.

  Returns:
    The dataset's folder.

  Raises:
    UserError: no such preset.
    OSError: the folder cannot be written or the disk is full; finished stacks stay.
  """
  from tfds_rcm.rcm_phantom import make_dataset  # brings JAX and TFDS

  return make_dataset.prepare(preset, data_dir, seed=seed, progress=progress)


def default_data_dir() -> pathlib.Path:
  """Where TFDS keeps datasets: $TFDS_DATA_DIR, else ~/tensorflow_datasets."""
  return pathlib.Path(os.environ.get("TFDS_DATA_DIR") or "~/tensorflow_datasets").expanduser()


def main(argv: Sequence[str] | None = None) -> int:
  """Runs the command line; returns the exit code."""
  argv = list(sys.argv[1:] if argv is None else argv)
  if hasattr(sys.stdout, "reconfigure"):
    sys.stdout.reconfigure(errors="backslashreplace")  # not every terminal has µ, or all of a path
  parser = argparse.ArgumentParser(prog="python -m tfds_rcm.prepare", description=__doc__)
  subparsers = parser.add_subparsers(dest="name", required=True, metavar="NAME", title="datasets")
  for name, (what, module) in COMMANDS.items():
    subparser = subparsers.add_parser(name, help=what, description=f"Prepares {name}: {what}.")
    subparser.add_argument(
      "--data_dir",
      type=pathlib.Path,
      default=default_data_dir(),
      help="where TFDS keeps datasets (default: %(default)s)",
    )
    if name in argv:
      importlib.import_module(module).add_arguments(subparser, name)
  args = parser.parse_args(argv)
  try:
    importlib.import_module(COMMANDS[args.name][1]).run(args.name, args, args.data_dir.expanduser())
  except Preempted as stopped:
    stopped.tell()
    raise
  except UserError as error:
    print(f"error: {error}", file=sys.stderr)
    return 1
  except OSError as error:
    place = printable(os.fsdecode(error.filename or args.data_dir))
    reason = error.strerror or error
    if error.errno in disk.FULL:
      advice = "make room, or choose another --data_dir"
    else:
      advice = "mend that, or choose another --data_dir"
    print(
      f"error: {place}: {reason}; {advice}, then run the same command again: it goes on where it"
      " stopped",
      file=sys.stderr,
    )
    return 1
  return 0


if __name__ == "__main__":
  sys.exit(main())
