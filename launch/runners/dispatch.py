"""Says what jobs cost, and runs them on this machine or on a cluster."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
import shlex

from launch.runners import cost
from launch.runners.job import Job
from launch.runners.local import run_local, visible_gpus
from rcm_jax.runtime import preemption


def launch(jobs: Sequence[Job], args: argparse.Namespace) -> None:
  """Says what the jobs cost, then runs them where `args.on` says.

  Raises:
    UserError: a job failed.
  """
  gpus = visible_gpus() if args.on == "local" else []
  device = "gpu" if gpus or args.on == "slurm" else "cpu"
  print(cost.line(jobs, device), flush=True)
  if args.dry_run:
    for job in jobs:
      print(f"{shlex.join(job.command(args))}{f'  # after {job.after}' if job.after else ''}")
  elif args.on == "slurm":
    from launch.runners import slurm  # submitit is optional

    slurm.submit(jobs, args)
  else:
    with preemption.at_safe_points():
      run_local(jobs, args, gpus)
