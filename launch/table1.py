"""Every method of Table 1, and what depth alone tells, then Tables 1-3 and Figure 2.

python -m launch.table1 --workdir=runs/table1 [--preset=paper] [--seeds=5] [--dry-run]
"""

from __future__ import annotations

if __name__ == "__main__":  # before what takes seconds to import
  from tfds_rcm import interrupts

  interrupts.install("launch.table1")

import argparse
from collections.abc import Sequence
import shlex
import sys

from launch import sweep
from launch.runners import dispatch, job
from rcm_jax import evaluate
from tfds_rcm.errors import UserError

METHODS = (
  "toeplitz_d7",
  "toeplitz_d5",
  "toeplitz_d3",
  "toeplitz_d2",
  "toeplitz_d1",
  "toeplitz_d0",
  "global_attention",
  "full_sequence",
  "partial_sequence",
  "iv3_context",
  "inception_v3",
  "hames",
  "kaur",
)
PRIOR = "depth_prior"  # no image is looked at: the floor of every table


def points(preset: str, seeds: int) -> sweep.Sweep:
  """Returns all methods, each with seeds 0 to `seeds` - 1, and the prior, which has none."""
  configs = [f"configs/{method}.py:{preset}" for method in METHODS]
  methods = sweep.grid({"config": configs, "seeds": range(seeds)})
  return [*methods, {"config": f"configs/{PRIOR}.py:{preset}", "seeds": 0}]


def main(argv: Sequence[str] | None = None) -> None:
  """Runs the jobs that the command line describes, then writes the tables."""
  parser = argparse.ArgumentParser(
    prog="python -m launch.table1", description=__doc__.split("\n")[0]
  )
  parser.add_argument("--preset", default="demo", help="of every config, see configs/base.py")
  parser.add_argument("--seeds", type=int, default=3)
  job.add_arguments(parser)
  args = parser.parse_args(argv)
  tables = [
    sys.executable,
    "-m",
    "rcm_jax.evaluate",
    f"--runs={args.workdir}",
    f"--out={args.workdir}",
  ]
  with job.told_in_one_line("launch.table1"):
    if args.seeds < 1:
      raise UserError(f"--seeds: {args.seeds} trains nothing; give 1 or more")
    dispatch.launch(sweep.fold(points(args.preset, args.seeds)), args)
  if args.dry_run or args.on == "slurm":
    print(f"The tables, also while jobs run: {shlex.join(tables)}")
  else:
    raise SystemExit(evaluate.main(tables[3:]))


if __name__ == "__main__":
  main()
