"""Jobs: one run of `rcm_jax.main` each, on this machine or on a cluster."""

from __future__ import annotations

import argparse
from collections.abc import Iterator, Mapping
import contextlib
import dataclasses
from pathlib import Path
import sys
from typing import Any

from rcm_jax.runtime import preemption
from tfds_rcm.errors import UserError


@dataclasses.dataclass(frozen=True)
class Job:
  """One program to run.

  Attributes:
    name: of the job and of its work directory.
    config: file, and behind a colon its preset.
    overrides: dotted field → value.
    fields: all fields of the config, overrides applied.
    members: sequence heads that train in it.
    after: name of a job that should end first, because it makes what this one needs too.
  """

  name: str
  config: str
  overrides: Mapping[str, Any]
  fields: Mapping[str, Any]
  members: int
  after: str | None = None

  def command(self, args: argparse.Namespace) -> list[str]:
    """Returns the command line."""
    overrides = dict(self.overrides)
    if args.data_dir:
      overrides["data.data_dir"] = args.data_dir
    workdir = Path(args.workdir)
    return [
      sys.executable,
      "-m",
      "rcm_jax.main",
      f"--config={self.config}",
      f"--workdir={workdir / self.name}",
      f"--cache_dir={workdir / 'cache'}",
      *(f"--config.{name}={value}" for name, value in overrides.items()),
    ]


def add_arguments(parser: argparse.ArgumentParser) -> None:
  """Adds the options that say where jobs run."""
  parser.add_argument(
    "--workdir",
    required=True,
    help="directory of all runs, of their shared cache and of their logs",
  )
  parser.add_argument("--data_dir", help="where TFDS keeps data sets; its default if not given")
  parser.add_argument("--on", choices=("local", "slurm"), default="local")
  parser.add_argument(
    "--at_once",
    type=int,
    help="jobs that run at the same time; default: one per GPU, or two that share a CPU's cores",
  )
  parser.add_argument(
    "--slurm",
    nargs="*",
    default=[],
    metavar="NAME=VALUE",
    help="sbatch options, such as partition=gpu gpus_per_node=1 time=120",
  )
  parser.add_argument(
    "--dry-run", action="store_true", help="show the jobs and what they cost, and run nothing"
  )


@contextlib.contextmanager
def told_in_one_line(program: str) -> Iterator[None]:
  """Turns a UserError or OSError into one line and exit code 1, and tells of a request to stop."""
  try:
    yield
  except preemption.Preempted as stopped:
    stopped.tell()
    raise
  except UserError as error:
    print(f"{program}: {error}", file=sys.stderr)
    raise SystemExit(1) from None
  except OSError as error:
    print(
      f"{program}: {error.filename or 'output'}: {error.strerror or error}; mend this, then run the "
      "same command again: it goes on where it stopped",
      file=sys.stderr,
    )
    raise SystemExit(1) from None
