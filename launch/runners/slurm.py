"""Submits jobs to Slurm through submitit: arrays, requeued when preempted, resumed where they were.

A job that is preempted or runs out of time is told by a signal. It lets its run save (SIGTERM) and
asks Slurm to queue it again; the run then goes on from its last checkpoint. A job that dies without
a warning, with its node, is queued again by Slurm itself.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
import os
from pathlib import Path
import shutil
import signal
import subprocess

try:
  import submitit
except ModuleNotFoundError:
  submitit = None

from launch.runners import job as jobs_lib
from tfds_rcm.errors import UserError

_DEFAULTS = {"time": 240, "signal_delay_s": 90, "array_parallelism": 256}
_MAX_TIMEOUTS = 20  # times that a job may run out of its time and go on


def _ignore_warnings() -> None:
  for warning in (signal.SIGUSR1, signal.SIGUSR2):
    signal.signal(warning, signal.SIG_IGN)


class Command:
  """A command line as submitit runs it: it can be stopped, and submitted again."""

  def __init__(self, command: Sequence[str]):
    self.command = list(command)
    self._pid = None

  def __call__(self) -> None:
    """Runs the command.

    Raises:
      subprocess.CalledProcessError: it failed.
    """
    # Slurm signals every process of a job. SIGTERM lets a run save; its earlier warning is for us.
    process = subprocess.Popen(self.command, preexec_fn=_ignore_warnings)
    self._pid = process.pid
    code = process.wait()
    if code:
      raise subprocess.CalledProcessError(code, self.command)

  def checkpoint(self) -> submitit.helpers.DelayedSubmission:
    """Lets the run save, and returns what to submit again; submitit calls it on a signal."""
    if self._pid is not None:
      os.kill(self._pid, signal.SIGTERM)
      # Not Popen.wait: the signal has interrupted it, and it holds its lock.
      os.waitid(os.P_PID, self._pid, os.WEXITED | os.WNOWAIT)
    return submitit.helpers.DelayedSubmission(Command(self.command))


def submit(jobs: Sequence[jobs_lib.Job], args: argparse.Namespace) -> list[submitit.Job]:
  """Submits all jobs and returns at once; a job waits for the one that it comes after.

  Args:
    jobs: those that others come after before these.
    args: `slurm` has sbatch options as NAME=VALUE, besides those of `jobs.add_arguments`.

  Raises:
    UserError: submitit or Slurm is not there, or refuses an option.
  """
  if submitit is None:
    raise UserError("slurm: submitit is not installed; pip install submitit")
  if shutil.which("sbatch") is None:
    raise UserError(
      "slurm: no sbatch on the PATH; run this where jobs are submitted, or use --on=local"
    )
  options = {**_DEFAULTS, **dict(_option(text) for text in args.slurm)}
  if args.at_once:
    options["array_parallelism"] = args.at_once
  folder = Path(args.workdir).absolute() / "logs" / "slurm"
  submitted: dict[str, submitit.Job] = {}
  for leader in dict.fromkeys(job.after for job in jobs):  # an array each: None, then every leader
    executor = submitit.SlurmExecutor(folder=folder, max_num_timeout=_MAX_TIMEOUTS)
    additional = {"requeue": True}
    if leader is not None:
      additional["dependency"] = f"afterany:{submitted[leader].job_id}"
    array = [job for job in jobs if job.after == leader]
    try:
      executor.update_parameters(job_name="rcm_jax", additional_parameters=additional, **options)
      with executor.batch():
        handles = [executor.submit(Command(job.command(args))) for job in array]
    except (NameError, ValueError, submitit.core.utils.FailedJobError) as error:
      raise UserError(f"slurm: {' '.join(str(error).split())}") from error
    submitted |= zip([job.name for job in array], handles, strict=True)
  for name, handle in submitted.items():
    print(f"{name}: Slurm job {handle.job_id}, output in {handle.paths.stdout}")
  return list(submitted.values())


def _option(text: str) -> tuple[str, str | int]:
  name, equals, value = text.partition("=")
  if not (name and equals and value):
    raise UserError(f"--slurm: '{text}' is not NAME=VALUE, such as partition=gpu")
  return name.replace("-", "_"), int(value) if value.isdigit() else value
