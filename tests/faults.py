"""What a whole run must survive; `make faults` runs it, `make test` a part of it (main_test).

Each fault befalls `rcm_jax.main` in a process of its own, on a very small phantom. Afterwards the same
command, with nothing deleted by hand, must end in the results of a run that was left alone.
"""

from __future__ import annotations

import os
import random
import re
import shlex
import shutil
import signal
import subprocess
import sys
import time

from main_runs import ROOT, Runs, flip_a_bit, largest
import pytest
import slurm_cluster

KILLS = int(os.environ.get("KILLS", "20"))
NAN_STEP = 15  # of 22
SEED = int(os.environ.get("SEED", "7"))  # of the moments


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory):
  """The run that was left alone, and how long it took with its programs compiled before."""
  runs = Runs(tmp_path_factory.mktemp("undisturbed"))
  runs.finish()
  return runs


@pytest.fixture
def runs(undisturbed, tmp_path):
  """A home without results or features, but with the data and the compiled programs."""
  shutil.copytree(undisturbed.cache / "xla", tmp_path / "cache" / "xla")
  return Runs(tmp_path, undisturbed.data)


def test_kill_9_at_random_moments(undisturbed, tmp_path):
  """Chains of kills, from the first stack of the phantom to the last figure, each then finished."""
  moments = random.Random(SEED)
  kills = chains = 0
  seconds = None
  while kills < KILLS:
    runs = Runs(tmp_path / f"chain{chains}")
    if seconds is None:  # this chain compiles, too
      whole = Runs(tmp_path / "timed")
      shutil.copytree(undisturbed.cache / "xla", whole.cache / "xla")
      started = time.monotonic()
      whole.finish()
      seconds = time.monotonic() - started
    else:
      shutil.copytree(undisturbed.cache / "xla", runs.cache / "xla")
    while kills < KILLS:
      process = runs.start()
      moment = moments.uniform(0, seconds)
      try:
        _, errors = process.communicate(timeout=moment)
        assert process.returncode == 0, errors
        break
      except subprocess.TimeoutExpired:
        process.kill()
        _, errors = process.communicate()
        kills += 1
        stages = [line for line in errors.splitlines() if line.endswith("…")]
        print(f"kill {kills}: after {moment:.1f} s, {stages[-1] if stages else 'at the start'}")
    runs.finish()
    assert runs.results() == undisturbed.results()
    chains += 1
  print(f"{kills} of {KILLS} kills, in {chains} runs, ended in the undisturbed results")


def test_asked_to_stop_in_each_training(undisturbed, runs):
  for stage in ("train_cnn", "train_heads"):
    errors = runs.stop_when(lambda stage=stage: runs.began(stage))
    assert f"stopped on request in {stage}" in errors
    assert runs.saved(stage)
  runs.finish()
  assert runs.results() == undisturbed.results()


def test_disk_full_at_every_size(undisturbed, tmp_path):
  """On a small file system, that grows until the run fits."""
  disk = tmp_path / "disk"
  disk.mkdir()
  mount = ["mount", "-t", "tmpfs", "-o", "size=2m", "tmpfs", str(disk)]
  if subprocess.run(mount, capture_output=True, check=False).returncode:
    pytest.skip("a small file system needs the right to mount one")
  try:
    runs = Runs(disk, undisturbed.data)
    full = 0
    for megabytes in (2, 4, 7, 10, 14, 100):
      grow = ["mount", "-o", f"remount,size={megabytes}m", str(disk)]
      subprocess.run(grow, check=True)
      process = runs.start()
      _, errors = process.communicate()
      if process.returncode == 0:
        break
      assert process.returncode == 1, errors
      assert "Traceback" not in errors, errors
      assert "cannot be written (disk full" in errors, errors
      full += 1
    assert full >= 2
    assert runs.results() == undisturbed.results()
  finally:
    subprocess.run(["umount", "--lazy", str(disk)], check=True)


def test_a_corrupted_checkpoint_falls_back_to_the_one_before(undisturbed, runs):
  runs.stop_when(lambda: len(runs.saved("train_cnn")) == 1)
  before, last = runs.saved("train_cnn")
  (folder,) = runs.cache.glob(f"train_cnn-*/checkpoints/{last}")
  flip_a_bit(largest(folder))
  errors = runs.finish()
  assert f"checkpoint of step {last} cannot be read" in errors
  assert before < last
  assert runs.results() == undisturbed.results()


@pytest.mark.parametrize(
  ("stage", "pattern"),
  [
    ("decode", "train.u8"),
    ("train_cnn", "*"),
    ("extract", "train_features.npy"),
    ("train_heads", "*"),
  ],
)
def test_a_corrupted_result_in_the_cache_is_made_again(undisturbed, tmp_path, stage, pattern):
  runs = Runs(tmp_path, undisturbed.data)
  shutil.copytree(undisturbed.cache, runs.cache)
  folders = runs.cache.glob(f"{stage}-*")  # two of "extract": test slices may come from elsewhere
  flip_a_bit(largest(next(folder for folder in folders if any(folder.rglob(pattern))), pattern))
  errors = runs.finish()
  assert f"{stage} …" in errors
  assert runs.results() == undisturbed.results()


def test_a_second_run_in_one_work_directory_is_refused(undisturbed, runs):
  first = runs.start()
  while not runs.began("train_cnn"):
    assert first.poll() is None, first.communicate()
    time.sleep(0.01)
  assert "another run is working here" in runs.fail()
  _, errors = first.communicate()
  assert first.returncode == 0, errors
  assert runs.results() == undisturbed.results()


def test_a_clock_that_jumps(undisturbed, runs):
  """Days ahead and back again while the run works, and files from the future when it resumes."""
  jumping = """
import itertools, runpy, sys, time
real, jumps = time.time, itertools.cycle([0.0, 86400.0 * 300, -86400.0 * 300, 3600.0])
time.time = lambda: real() + next(jumps)
time.time_ns = lambda: int(time.time() * 1e9)
sys.argv = sys.argv[1:]
runpy.run_module("rcm_jax.main", run_name="__main__", alter_sys=True)
"""
  runs.stop_when(lambda: runs.began("train_cnn"), signal.SIGKILL)
  ahead = time.time() + 86400 * 300
  for path in [*runs.cache.rglob("*"), *runs.workdir.rglob("*")]:
    os.utime(path, (ahead, ahead))
  _, _, _, *arguments = runs.command()
  runs.finish(command=[sys.executable, "-c", jumping, "rcm_jax.main", *arguments])
  assert runs.results() == undisturbed.results()


def test_a_loss_that_is_not_finite_from_the_start_names_its_stacks(undisturbed, runs):
  line = runs.fail("--config.cnn.learning_rate=1e30")
  assert re.search(
    r"loss of the CNN is (nan|inf) at step \d+ \(stacks \S+, .*\); nothing had been saved", line
  )
  runs.finish()
  assert runs.results() == undisturbed.results()


def test_a_loss_that_becomes_nan_leaves_the_last_good_state(undisturbed, runs):
  breaking = f"""
import runpy, sys
from rcm_jax.cnn import train_step
build = train_step.build
def broken(*args):
  programs = build(*args)
  def train(learned, seed, step, *batch):
    learned, metrics = programs.train(learned, seed, step, *batch)
    return learned, metrics * (float("nan") if step == {NAN_STEP} else 1)
  return programs._replace(train=train)
train_step.build = broken
sys.argv = sys.argv[1:]
runpy.run_module("rcm_jax.main", run_name="__main__", alter_sys=True)
"""
  _, _, _, *arguments = runs.command()
  line = runs.fail(command=[sys.executable, "-c", breaking, "rcm_jax.main", *arguments])
  (last,) = runs.saved("train_cnn")
  assert 0 < last <= NAN_STEP
  assert f"is nan at step {NAN_STEP} (stacks " in line
  assert f"the last good state, after step {last}, is kept in {runs.cache}" in line
  runs.finish()
  assert runs.results() == undisturbed.results()


def test_a_worker_that_dies(tmp_path):
  """Of the processes that prepare a study; the same command ends as if it had not."""
  code = """
import os, pathlib, signal, sys
from tfds_rcm import staging
from tfds_rcm.errors import UserError
folder = pathlib.Path(sys.argv[1])
def work(n):
  if n == 5 and not (folder / "died").exists():
    (folder / "died").touch()
    os.kill(os.getpid(), signal.SIGKILL)
  return n * n
if __name__ == "__main__":
  try:
    print(list(staging.in_parallel(work, range(9), workers=2)))
  except UserError as error:
    sys.exit(str(error))
"""
  program = tmp_path / "program.py"
  program.write_text(code)
  environment = {**os.environ, "PYTHONPATH": str(ROOT)}
  run = lambda: subprocess.run(
    [sys.executable, str(program), str(tmp_path)],
    env=environment,
    capture_output=True,
    text=True,
    check=False,
  )
  died = run()
  assert died.returncode == 1
  assert "a worker process ended" in died.stderr.strip().splitlines()[-1]
  assert run().stdout.strip() == str([n * n for n in range(9)])


@pytest.mark.parametrize("place", ["run", "cache"])
def test_an_unwritable_directory_is_told_in_one_line(undisturbed, runs, place):
  """A file system that may only be read: root may write wherever permissions forbid it."""
  folder = runs.home / place
  folder.mkdir(exist_ok=True)
  mount = ["mount", "-t", "tmpfs", "-o", "ro", "tmpfs", str(folder)]
  if subprocess.run(mount, capture_output=True, check=False).returncode:
    pytest.skip("a read-only file system needs the right to mount one")
  try:
    assert f"{folder}" in (line := runs.fail())
    assert "cannot be written" in line
  finally:
    subprocess.run(["umount", "--lazy", str(folder)], check=True)
  runs.finish()
  assert runs.results() == undisturbed.results()


def test_two_processes_preempted_by_slurm_are_queued_again_and_end_in_the_same_bits(
  undisturbed, runs, tmp_path
):
  """As docs/scaling.md says: exit code 75 asks for a requeue, which goes on at the last save."""
  if (absent := slurm_cluster.missing()) is not None:
    pytest.skip(f"no Slurm to test with: {absent}")
  calm = Runs(tmp_path / "calm", undisturbed.data)
  shutil.copytree(undisturbed.cache / "xla", calm.cache / "xla")
  both = "--config.cnn.norm_groups=2"
  script, log = tmp_path / "job.sh", tmp_path / "job.log"
  script.write_text(
    "#!/bin/bash\n"
    f"srun -n2 {shlex.join(runs.command(both))}\n"
    "[ $? -ne 75 ] || scontrol requeue $SLURM_JOB_ID\n"
  )
  submit = ["sbatch", "--requeue", "--ntasks=2", "--signal=USR1@60", "--time=60"]
  submit += ["--open-mode=append", f"--output={log}", f"--chdir={ROOT}", str(script)]
  (tmp_path / "slurm").mkdir()
  with slurm_cluster.cluster(tmp_path / "slurm") as names:
    environment = {**os.environ, **names}
    call = lambda *command: subprocess.run(
      command, cwd=ROOT, env=environment, check=True, capture_output=True, text=True
    )
    call("srun", "-n2", *calm.command(both))
    call(*submit)
    _wait_for(lambda: runs.began("train_cnn"), log)
    call("sbatch", "--partition=high", "--exclusive", "--wrap=sleep 1", "--output=/dev/null")
    _wait_for(lambda: (runs.workdir / "results.json").exists(), log)
  said = log.read_text()
  assert re.search(r"stopped on request in train_\w+, after (step|epoch) \d+", said), said
  assert said.count("decode …") == 1, said  # the second time it went on
  assert runs.results() == calm.results()


def _wait_for(happened, log):
  deadline = time.monotonic() + 1200  # others may hold the processor
  while not happened():
    assert time.monotonic() < deadline, log.read_text() if log.exists() else "no output"
    time.sleep(0.05)
