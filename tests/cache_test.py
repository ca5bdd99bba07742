"""Sealed stage directories: what counts as finished, and what is made again."""

import json
import multiprocessing
import pathlib

import pytest

from rcm_jax.runtime import files, stage_cache
from tfds_rcm import disk
from tfds_rcm.errors import UserError


class Stage:
  """Counts how often it computes, and can be interrupted."""

  def __init__(self):
    self.calls = 0
    self.interrupt = False

  def __call__(self, directory: pathlib.Path) -> None:
    self.calls += 1
    (directory / "part").write_text("part")
    if self.interrupt:
      raise KeyboardInterrupt
    (directory / "deep").mkdir(exist_ok=True)
    (directory / "deep" / "result").write_text("result")


def test_a_stage_computes_once_per_description(tmp_path):
  compute = Stage()
  first = stage_cache.stage(tmp_path, "x", {"a": 1, "b": (1, 2)}, compute)
  assert stage_cache.stage(tmp_path, "x", {"b": [1, 2], "a": 1}, compute) == first
  assert compute.calls == 1
  assert stage_cache.stage(tmp_path, "x", {"a": 2}, compute) != first
  assert compute.calls == 2
  assert json.loads((first / "spec.json").read_text()) == {"a": 1, "b": [1, 2]}


def test_an_interrupted_stage_goes_on_with_what_it_left(tmp_path):
  compute = Stage()
  compute.interrupt = True
  with pytest.raises(KeyboardInterrupt):
    stage_cache.stage(tmp_path, "x", {}, compute)
  (directory,) = tmp_path.iterdir()
  assert not stage_cache.is_sealed(directory)
  assert (directory / "part").exists()
  compute.interrupt = False
  assert stage_cache.is_sealed(stage_cache.stage(tmp_path, "x", {}, compute))


@pytest.mark.parametrize("damage", ["change", "truncate", "remove", "seal"])
def test_a_damaged_result_is_made_again(tmp_path, damage):
  compute = Stage()
  directory = stage_cache.stage(tmp_path, "x", {}, compute)
  result = directory / "deep" / "result"
  if damage == "change":
    result.write_text("rEsult")
  elif damage == "truncate":
    result.write_text("")
  elif damage == "remove":
    result.unlink()
  else:
    (directory / stage_cache.SEAL).write_text("{")
  stage_cache.stage(tmp_path, "x", {}, compute)
  assert compute.calls == 2
  assert result.read_text() == "result"


def hold(directory, ready, release):
  with stage_cache.locked(directory, wait=False):
    ready.set()
    release.wait(30)


def test_a_locked_directory_refuses_a_second_process_until_the_first_is_killed(tmp_path):
  context = multiprocessing.get_context("spawn")
  ready, release = context.Event(), context.Event()
  process = context.Process(target=hold, args=(tmp_path, ready, release))
  process.start()
  try:
    assert ready.wait(60)
    with (
      pytest.raises(UserError, match="another run is working here"),
      stage_cache.locked(tmp_path, wait=False),
    ):
      pass
  finally:
    process.kill()
    process.join()
  with stage_cache.locked(tmp_path, wait=False):
    pass


def test_an_unwritable_directory_is_named(tmp_path):
  (tmp_path / "file").write_text("")
  with (
    pytest.raises(UserError, match="file: cannot be written"),
    stage_cache.locked(tmp_path / "file", wait=False),
  ):
    pass


def test_write_text_leaves_the_old_file_when_it_fails(tmp_path, monkeypatch):
  path = tmp_path / "f"
  files.write_text(path, "old")

  def full(_):
    raise OSError(28, "No space left on device")

  monkeypatch.setattr(disk.os, "fsync", full)
  with pytest.raises(OSError, match="No space"):
    files.write_text(path, "new")
  assert path.read_text() == "old"
  assert list(tmp_path.iterdir()) == [path]
