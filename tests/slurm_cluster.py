"""A real Slurm of one node for tests, from the distribution's packages, in a temporary folder."""

from __future__ import annotations

from collections.abc import Iterator
import contextlib
import os
from pathlib import Path
import shutil
import signal
import subprocess
import time

PROGRAMS = ("slurmctld", "slurmd", "munged", "sbatch", "runuser")

_CONF = """
ClusterName=test
SlurmctldHost=localhost
SlurmUser=root
AuthInfo=cred_expire=5
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd.pid
SlurmctldLogFile={folder}/slurmctld.log
SlurmdLogFile={folder}/slurmd.log
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SelectType=select/cons_tres
SelectTypeParameters=CR_CPU
SlurmdParameters=config_overrides
SchedulerParameters=bf_interval=1,sched_interval=1
SlurmctldParameters=preempt_send_user_signal
ReturnToService=2
KillWait=5
PreemptType=preempt/partition_prio
PreemptMode=REQUEUE
GresTypes=gpu
NodeName=localhost CPUs=4 RealMemory=8000 Gres=gpu:{gpus}
PartitionName=low Nodes=localhost Default=YES PriorityTier=1 GraceTime=60
PartitionName=high Nodes=localhost PriorityTier=10 PreemptMode=OFF
"""

# Devices that stand for GPUs: Slurm hands out their numbers.
_GPUS = ("/dev/null", "/dev/zero")

# Accounting needs a database; this much of sacct is enough for submitit.
_SACCT = """#!/bin/bash
while getopts "o:j:-:" option; do [ "$option" = j ] && jobs="$jobs,$OPTARG"; done
echo "JobID|State|NodeList"
squeue -h -r -t all -j "${jobs#,}" -o '%F_%K|%T|%N' 2>/dev/null | sed 's/_N\\/A|/|/'
"""


def missing() -> str | None:
  """Says why a cluster cannot be started here, if so."""
  absent = [name for name in PROGRAMS if shutil.which(name, path=_path()) is None]
  if absent:
    return f"no {', '.join(absent)}: apt install slurmctld slurmd slurm-client munge"
  if os.geteuid() != 0:
    return "a single-node Slurm is started by root"
  return None


def _path() -> str:
  return f"{os.environ.get('PATH', '')}:/usr/sbin:/sbin"


def _wait(what: str, ready, seconds: float = 60) -> None:
  deadline = time.monotonic() + seconds
  while not ready():
    if time.monotonic() > deadline:
      raise TimeoutError(f"{what} did not happen within {seconds} s")
    time.sleep(0.1)


def _alive(pid: int) -> bool:
  """Whether a process runs; one that nobody has waited for does not."""
  try:
    state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
  except FileNotFoundError:
    return False
  return state != "Z"


@contextlib.contextmanager
def cluster(folder: Path) -> Iterator[dict[str, str]]:
  """Runs munge, a controller and a node with two GPUs and partitions low and high, which preempts low.

  Yields:
    Environment variables that programs need to reach it.
  """
  for name in ("state", "spool", "bin"):
    (folder / name).mkdir()
  (folder / "slurm.conf").write_text(_CONF.format(folder=folder, gpus=len(_GPUS)))
  (folder / "gres.conf").write_text("".join(f"Name=gpu File={path}\n" for path in _GPUS))
  sacct = folder / "bin" / "sacct"
  sacct.write_text(_SACCT)
  sacct.chmod(0o755)
  environment = {
    "SLURM_CONF": str(folder / "slurm.conf"),
    "PATH": f"{folder / 'bin'}:{_path()}",
  }
  everything = {**os.environ, **environment}

  def call(*command):
    return subprocess.run(
      command, env=everything, check=True, capture_output=True, text=True
    ).stdout.strip()

  munge = Path("/run/munge/munged.pid")
  mine = not (munge.exists() and _alive(int(munge.read_text())))
  if mine:
    call("install", "-d", "-o", "munge", "-g", "munge", "-m755", "/run/munge")
    call("runuser", "-u", "munge", "--", "munged")
  try:
    call("slurmctld", "-c")
    call("slurmd")
    _wait("an idle node", lambda: "idle" in call("sinfo", "-h", "-o", "%T"))
    yield environment
    subprocess.run(["scancel", "--user=root"], env=everything, check=False)
  finally:
    pids = [folder / "slurmd.pid", folder / "slurmctld.pid", *([munge] if mine else [])]
    for path in pids:
      if path.exists():
        pid = int(path.read_text())
        with contextlib.suppress(ProcessLookupError):
          os.kill(pid, signal.SIGTERM)
        _wait("the end of a daemon", lambda pid=pid: not _alive(pid))
