"""Jobs on a real Slurm, started here when its packages are installed."""

from __future__ import annotations

import argparse
import dataclasses
import os
from pathlib import Path
import subprocess
import sys
import time

import pytest
import slurm_cluster

from launch.runners import job, slurm
from tfds_rcm.errors import UserError

ROOT = Path(__file__).resolve().parent.parent
NONE = slurm_cluster.missing()
on_a_cluster = pytest.mark.skipif(NONE is not None, reason=f"no Slurm to test with: {NONE}")


@dataclasses.dataclass(frozen=True)
class Stand(job.Job):
  """A job that runs some Python instead of a training."""

  code: str = ""

  def command(self, args):
    return [sys.executable, "-c", self.code]


def stand(name, code, after=None):
  return Stand(name, "", {}, {}, 1, after, code)


@pytest.fixture(scope="module")
def cluster(tmp_path_factory):
  with (
    slurm_cluster.cluster(tmp_path_factory.mktemp("slurm")) as environment,
    pytest.MonkeyPatch.context() as patch,
  ):
    for name, value in environment.items():
      patch.setenv(name, value)
    patch.chdir(ROOT)  # a job starts where it was submitted
    yield


@pytest.fixture
def args(tmp_path):
  return argparse.Namespace(workdir=str(tmp_path), at_once=None, slurm=["partition=low", "time=5"])


def wait_for(path, seconds=60):
  deadline = time.monotonic() + seconds
  while not path.exists():
    assert time.monotonic() < deadline, f"no {path} after {seconds} s"
    time.sleep(0.1)


@on_a_cluster
def test_a_job_starts_after_the_one_it_waits_for(cluster, args, tmp_path, capfd):
  code = "import pathlib, time; time.sleep({}); pathlib.Path({!r}).write_text(str(time.time()))"
  times = {name: tmp_path / f"{name} ended" for name in "abc"}
  first = stand("a", code.format(1.5, str(times["a"])))
  second = stand("b", code.format(0, str(times["b"])), after="a")
  third = stand("c", code.format(0, str(times["c"])))
  handles = slurm.submit([first, second, third], args)
  for path in times.values():
    wait_for(path)
  ended = {name: float(path.read_text()) for name, path in times.items()}
  assert ended["c"] < ended["a"] < ended["b"]
  out = capfd.readouterr().out
  for handle in handles:
    assert f"Slurm job {handle.job_id}" in out


@on_a_cluster
def test_a_preempted_job_saves_is_queued_again_and_goes_on(cluster, args, tmp_path):
  state, done = tmp_path / "state", tmp_path / "done"
  code = f"""
import pathlib, signal, sys, time
state = pathlib.Path({str(state)!r})
step, starts = map(int, state.read_text().split()) if state.exists() else (0, 0)
def save(*_):
  state.write_text(f"{{step}} {{starts + 1}}")
  sys.exit(143)
signal.signal(signal.SIGTERM, save)
pathlib.Path({str(tmp_path)!r}, f"started {{starts}}").touch()
while not starts:  # until preempted
  time.sleep(0.1)
  step += 1
pathlib.Path({str(done)!r}).write_text(f"{{step}} {{starts}}")
"""
  slurm.submit([stand("preempted", code)], args)
  wait_for(tmp_path / "started 0")
  time.sleep(1)
  subprocess.run(
    ["sbatch", "--partition=high", "--exclusive", "--wrap=sleep 1", "--output=/dev/null"],
    check=True,
  )
  wait_for(tmp_path / "started 1")
  saved_step, starts = map(int, state.read_text().split())
  assert saved_step > 0
  assert starts == 1
  wait_for(done)
  assert done.read_text() == f"{saved_step} 1"


TELL = """
import os, pathlib, time
names = "SLURM_STEP_NUM_TASKS", "SLURM_LOCALID", "CUDA_VISIBLE_DEVICES"
told = " ".join(os.environ[name] for name in names)
pathlib.Path(DIRECTORY, f"{os.getpid()}").write_text(told)
while len(os.listdir(DIRECTORY)) < 2: time.sleep(0.1)
"""


@on_a_cluster
@pytest.mark.parametrize(
  ("jobs", "options", "told"),
  [
    (2, ["gres=gpu:1"], ["1 0 0", "1 0 1"]),  # both at once: each ends when the other is there
    (1, ["gres=gpu:2", "ntasks_per_node=2"], ["2 0 0,1", "2 1 0,1"]),
  ],
)
def test_gpus_are_shared_out(cluster, args, tmp_path, jobs, options, told):
  args.slurm += [*options, "cpus_per_task=1"]
  found = tmp_path / "told"
  found.mkdir()
  code = TELL.replace("DIRECTORY", repr(str(found)))
  for job_ in slurm.submit([stand(f"job{i}", code) for i in range(jobs)], args):
    job_.results()
  assert sorted(path.read_text() for path in found.iterdir()) == told


@on_a_cluster
def test_a_failure_is_slurms_failure(cluster, args):
  (handle,) = slurm.submit([stand("bad", "import sys; sys.exit('what went wrong')")], args)
  deadline = time.monotonic() + 60
  while handle.state not in ("FAILED", "COMPLETED"):
    assert time.monotonic() < deadline
    time.sleep(0.2)
    handle.watcher.update()
  with pytest.raises(Exception, match="exit status 1"):
    handle.result()
  assert "what went wrong" in Path(handle.paths.stderr).read_text()


@on_a_cluster
def test_an_option_that_slurm_refuses_is_told_in_one_line(cluster, args):
  for option in ("partition=nowhere", "partitoin=low"):
    args.slurm = [option]
    with pytest.raises(UserError) as raised:
      slurm.submit([stand("a", "")], args)
    assert "\n" not in str(raised.value)
    assert option.split("=")[0 if option.endswith("low") else 1] in str(raised.value)


def test_no_slurm_here(args, monkeypatch):
  monkeypatch.setenv("PATH", os.path.dirname(sys.executable))
  with pytest.raises(UserError, match="no sbatch"):
    slurm.submit([stand("a", "")], args)


def test_no_submitit_here(args, monkeypatch):
  monkeypatch.setattr(slurm, "submitit", None)
  with pytest.raises(UserError, match="pip install submitit"):
    slurm.submit([stand("a", "")], args)
