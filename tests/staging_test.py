"""Staged files: the same whoever makes them, kept over a kill, remade when damaged."""

import io
import os
import signal
import subprocess
import sys
import time

import numpy as np
from PIL import Image
import pytest

from tfds_rcm import staging
from tfds_rcm.formats import png


def make(job, path):
  if job == 0:
    path.write_bytes(b"half")
    raise ValueError("bad")
  path.write_bytes(bytes(job))


def is_whole(job, path):
  return path.stat().st_size == job


JOBS = [(f"k{i}", 5 + i) for i in range(5)]


@pytest.mark.parametrize("shape", [(1, 1), (7, 3), (300, 400)])
def test_png_is_lossless(shape):
  gray = np.random.default_rng(0).integers(0, 256, shape).astype(np.uint8)
  encoded = png.encode_png(gray)
  Image.open(io.BytesIO(encoded)).verify()
  np.testing.assert_array_equal(np.asarray(Image.open(io.BytesIO(encoded))), gray)


def test_processes_make_what_one_makes_and_in_order(tmp_path):
  for workers in (1, 2):
    folder = tmp_path / str(workers)
    paths = list(staging.finished(folder, JOBS, make, is_whole, workers=workers))
    assert paths == [folder / key for key, _ in JOBS]
    assert [path.stat().st_size for path in paths] == [size for _, size in JOBS]


def test_a_second_run_makes_only_what_is_missing_or_damaged(tmp_path):
  list(staging.finished(tmp_path, JOBS, make, is_whole, workers=1))
  (tmp_path / "k1").unlink()
  (tmp_path / "k3").write_bytes(b"cut")
  made = []

  def counted(job, path):
    made.append(job)
    make(job, path)

  paths = staging.finished(tmp_path, JOBS, counted, is_whole, workers=1)
  assert [path.stat().st_size for path in paths] == [size for _, size in JOBS]
  assert made == [6, 8]


@pytest.mark.parametrize("workers", [1, 2])
def test_an_error_leaves_finished_files_and_nothing_half_written(tmp_path, workers):
  jobs = [*JOBS[:3], ("bad", 0)]
  with pytest.raises(ValueError, match="bad"):
    list(staging.finished(tmp_path, jobs, make, is_whole, workers=workers))
  assert sorted(p.name for p in tmp_path.iterdir()) == ["k0", "k1", "k2"]


def test_few_jobs_are_ahead_of_the_reader(tmp_path):
  taken = []

  def jobs():
    for i in range(100):
      taken.append(i)
      yield i

  results = staging.in_parallel(abs, jobs(), workers=2)
  assert next(results) == 0
  assert len(taken) <= 6
  results.close()


def test_workers_of_a_killed_run_end(tmp_path):
  run = (
    "import os, pathlib, signal, sys; from tests import staging_test as t;"
    "from tfds_rcm import staging; pids = staging.in_parallel(t.pid, range(4), workers=2);"
    "pathlib.Path(sys.argv[1]).write_text(str(next(pids)));"
    "os.kill(os.getpid(), signal.SIGKILL)"
  )
  subprocess.run([sys.executable, "-c", run, tmp_path / "pid"])
  worker = int((tmp_path / "pid").read_text())
  deadline = time.monotonic() + 20
  while time.monotonic() < deadline:
    try:
      os.kill(worker, 0)
    except ProcessLookupError:
      return
    time.sleep(0.02)
  os.kill(worker, signal.SIGKILL)
  raise AssertionError(f"worker {worker} was still there")


def pid(_):
  return os.getpid()
