"""Jobs: one run of `rcm_jax.main` each, on this machine or on a cluster."""

from __future__ import annotations

import argparse
from collections.abc import Iterator, Mapping, Sequence
import contextlib
import dataclasses
import functools
import os
from pathlib import Path
import shlex
import shutil
import signal
import subprocess
import sys
import time
from typing import Any

from launch.runners import cost
from rcm_jax.runtime import preemption
from tfds_rcm.errors import UserError
from tfds_rcm.staging import num_cores

_POLL_SECONDS = 0.1
_FULL = 1 << 20  # bytes that are left of a full disk
_PREEMPTED = (preemption.EXIT_CODE, preemption.CTRL_C_CODE)


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


def launch(jobs: Sequence[Job], args: argparse.Namespace) -> None:
  """Says what the jobs cost, then runs them where `args.on` says.

  Raises:
    UserError: a job failed.
  """
  gpus = _gpus() if args.on == "local" else []
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


def _gpus() -> list[str]:
  """Returns the GPUs that this process may use, as CUDA_VISIBLE_DEVICES names them."""
  visible = os.environ.get("CUDA_VISIBLE_DEVICES")
  if visible is not None:
    return [gpu for gpu in visible.split(",") if gpu]
  try:
    listed = subprocess.run(["nvidia-smi", "-L"], capture_output=True, text=True, check=True)
  except (OSError, subprocess.CalledProcessError):
    return []
  return [str(i) for i, _ in enumerate(filter(None, listed.stdout.splitlines()))]


def run_local(jobs: Sequence[Job], args: argparse.Namespace, gpus: Sequence[str] = ()) -> None:
  """Runs jobs as processes of this machine, one per GPU or `args.at_once` at the same time.

  Without GPUs, jobs that run at the same time divide the cores among them: a training step of a
  small CNN keeps one core busy, and a second one for half of the time. (Two steps of the demo preset
  take 142 ms one after the other, 115 ms at once, and 100 ms at once on a core each.)

  Output goes to the terminal where only one job runs at a time, and to `WORKDIR/logs` otherwise.
  An interrupted sweep goes on where it was when it is started again.

  Raises:
    UserError: jobs failed; the others have run.
  """
  slots = min(args.at_once or len(gpus) or min(2, num_cores()), len(jobs))
  logs = Path(args.workdir) / "logs" if slots > 1 else None
  waiting, running, ended, failed = list(jobs), {}, set(), []
  try:
    while waiting or running:
      if preemption.asked():
        raise preemption.Preempted(f"after {len(ended)} of {len(jobs)} jobs")
      for slot in [i for i in range(slots) if i not in running]:
        job = next((j for j in waiting if j.after is None or j.after in ended), None)
        if job is None:
          break
        waiting.remove(job)
        log = logs / f"{job.name}.log" if logs else None
        gpu = gpus[slot % len(gpus)] if gpus else None
        process = _start(job.command(args), gpu, log)
        if not gpus:
          _share_cores(process, slot, slots)
        running[slot] = (job, time.monotonic(), process)
      for slot, (job, started, process) in list(running.items()):
        if process.poll() is None:
          continue
        del running[slot]
        ended.add(job.name)
        if process.returncode:
          failed.append(job)
        state = f"failed, exit code {process.returncode}" if process.returncode else "done"
        if process.returncode in _PREEMPTED:
          state = "stopped on request, and saved"
        print(
          f"{job.name}: {state} after {time.monotonic() - started:.0f} s "
          f"({len(ended)} of {len(jobs)})",
          flush=True,
        )
      time.sleep(_POLL_SECONDS)
  finally:
    for _, _, process in running.values():  # SIGTERM lets a run save its state
      process.send_signal(signal.SIGTERM)
    for _, _, process in running.values():
      process.wait()
  if failed:
    reason = f"see {logs or 'above'}"
    if shutil.disk_usage(args.workdir).free < _FULL:  # then a log may lack its last line
      reason = f"the disk of {args.workdir} is full; make room"
    raise UserError(
      f"{len(failed)} of {len(jobs)} jobs failed: {', '.join(j.name for j in failed)}; "
      f"{reason}, then run the same command again: it goes on where it stopped"
    )


def _start(command: list[str], gpu: str | None, log: Path | None) -> subprocess.Popen:
  environment = dict(os.environ)
  if gpu is not None:
    environment["CUDA_VISIBLE_DEVICES"] = gpu
  # A group of its own: a terminal's Ctrl-C comes to us alone, and each job is asked once.
  start = functools.partial(subprocess.Popen, command, env=environment, process_group=0)
  if log is None:
    return start()
  log.parent.mkdir(parents=True, exist_ok=True)
  with log.open("a") as file:
    return start(stdout=file, stderr=subprocess.STDOUT)


def _share_cores(process: subprocess.Popen, slot: int, slots: int) -> None:
  """Keeps a process that has just started to its share of the cores, where the system can."""
  if slots == 1 or not hasattr(os, "sched_setaffinity"):
    return
  cores = sorted(os.sched_getaffinity(0))
  share = cores[slot * len(cores) // slots : (slot + 1) * len(cores) // slots]
  with contextlib.suppress(ProcessLookupError):  # ended already
    os.sched_setaffinity(process.pid, share or cores)
