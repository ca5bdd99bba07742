"""Runs jobs as processes of this machine, one a GPU or a share of the cores each."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
import contextlib
import functools
import os
from pathlib import Path
import shutil
import signal
import subprocess
import time

from launch.runners.job import Job
from rcm_jax.runtime import preemption
from tfds_rcm.cores import num_cores
from tfds_rcm.errors import UserError

_POLL_SECONDS = 0.1
_FULL = 1 << 20  # bytes that are left of a full disk
_PREEMPTED = (preemption.EXIT_CODE, preemption.CTRL_C_CODE)


def visible_gpus() -> list[str]:
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
