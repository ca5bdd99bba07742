"""Staged stacks: the same whoever makes them, kept over a kill, remade when damaged."""

import io

import numpy as np
from PIL import Image
import pytest

from tfds_rcm import png, staging


def make(job):
  name, size = job
  if size == 0:
    raise ValueError(name)
  pixels = np.random.default_rng(size).integers(0, 256, (size, size + 3)).astype(np.uint8)
  return {"stack_id": name, "depth_um": [0.0, 1.5], "slices": [png.encode_png(pixels)] * 2}


JOBS = [(f"k{i}", (f"stack {i}", 5 + i)) for i in range(5)]


@pytest.mark.parametrize("shape", [(1, 1), (7, 3), (33, 64)])
def test_png_is_lossless(shape):
  gray = np.random.default_rng(0).integers(0, 256, shape).astype(np.uint8)
  image = Image.open(io.BytesIO(png.encode_png(gray)))
  image.verify()
  np.testing.assert_array_equal(np.asarray(Image.open(io.BytesIO(png.encode_png(gray)))), gray)


def test_processes_make_what_one_makes_and_in_order(tmp_path):
  alone = list(staging.staged(tmp_path / "a", JOBS, make, workers=1))
  together = list(staging.staged(tmp_path / "b", JOBS, make, workers=2))
  assert alone == together == [make(job) for _, job in JOBS]


def test_a_second_run_makes_only_what_is_missing_or_damaged(tmp_path):
  list(staging.staged(tmp_path, JOBS, make, workers=1))
  (tmp_path / "k1.zip").unlink()
  (tmp_path / "k3.zip").write_bytes((tmp_path / "k3.zip").read_bytes()[:200])
  made = []

  def counted(job):
    made.append(job[0])
    return make(job)

  assert list(staging.staged(tmp_path, JOBS, counted, workers=1)) == [make(j) for _, j in JOBS]
  assert made == ["stack 1", "stack 3"]


@pytest.mark.parametrize("workers", [1, 2])
def test_an_error_leaves_finished_stacks_and_nothing_half_written(tmp_path, workers):
  jobs = [*JOBS[:3], ("bad", ("bad", 0))]
  with pytest.raises(ValueError, match="bad"):
    list(staging.staged(tmp_path, jobs, make, workers=workers))
  assert sorted(p.name for p in tmp_path.iterdir()) == ["k0.zip", "k1.zip", "k2.zip"]


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
