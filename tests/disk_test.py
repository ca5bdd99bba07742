"""A full disk is one line, and nothing half-made is left that a later run would trust."""

import errno
import shutil
import subprocess

import pytest

from tests import studies
from tfds_rcm import disk, shards
from tfds_rcm.errors import UserError
from tfds_rcm.rcm_clinical import rcm_clinical_dataset_builder as clinical

FULL = "write() failed: No space left on device; writing /x; at byte 1048576; Could not submit"


class Full:
  """What ArrayRecord does on a full disk."""

  def __init__(self, *_):
    pass

  def write(self, _):
    raise RuntimeError(FULL)

  def close(self):
    raise RuntimeError(FULL)


def test_array_record_on_a_full_disk_is_one_line(tmp_path, monkeypatch):
  source, data = studies.write_study(tmp_path / "study"), tmp_path / "data"
  monkeypatch.setattr(shards.array_record_module, "ArrayRecordWriter", Full)
  line = studies.fail("rcm_clinical", source, data)
  assert "staging" in line
  assert "No space left on device; make room" in line
  assert not clinical.Builder(data_dir=data).is_prepared()
  assert not list(data.glob("rcm_clinical/staging/*"))
  monkeypatch.undo()
  studies.succeed("rcm_clinical", source, data)


@pytest.mark.parametrize("what", ["report.txt", "splits.csv", "fingerprint.txt"])
def test_a_disk_that_fills_up_at_the_last_file_leaves_the_older_dataset(
  tmp_path, monkeypatch, what
):
  source, data = studies.write_study(tmp_path / "study"), tmp_path / "data"
  folder = data / "rcm_clinical/2.0.0"
  studies.succeed("rcm_clinical", source, data)
  before = (folder / "fingerprint.txt").read_text()
  studies.edit(source / "labels.csv", "s3,4,dermis", "s3,4,dej")
  original = disk.write_whole

  def full(path, content):
    if path == folder / what:
      raise OSError(errno.ENOSPC, "No space left on device")
    original(path, content)

  monkeypatch.setattr(disk, "write_whole", full)
  assert "2.0.0: No space left on device; make room" in studies.fail("rcm_clinical", source, data)
  assert (folder / "fingerprint.txt").read_text() == before
  monkeypatch.undo()
  studies.succeed("rcm_clinical", source, data)
  assert (folder / "fingerprint.txt").read_text() != before
  assert not list(folder.parent.glob("replaced*"))


def test_a_dataset_that_a_killed_run_was_replacing_comes_back(tmp_path):
  source, data = studies.write_study(tmp_path / "study"), tmp_path / "data"
  folder = data / "rcm_clinical/2.0.0"
  studies.succeed("rcm_clinical", source, data)
  replaced = folder.with_name("replaced.2.0.0")
  folder.rename(replaced)
  shutil.copytree(replaced, folder, ignore=shutil.ignore_patterns("fingerprint.txt"))
  image = source / "p1/arm/VivaStack #1/v0000004.bmp"
  image.write_bytes(image.read_bytes()[:300])
  studies.fail("rcm_clinical", source, data)
  assert (folder / "fingerprint.txt").is_file()


@pytest.fixture(name="small_disk")
def _small_disk(tmp_path):
  folder = tmp_path / "disk"
  folder.mkdir()
  mount = ["mount", "-t", "tmpfs", "-o", "size=64k", "tmpfs", str(folder)]
  if shutil.which("mount") is None or subprocess.run(mount, capture_output=True).returncode:
    pytest.skip("a small file system needs the right to mount one")
  yield folder
  subprocess.run(["umount", "--lazy", str(folder)], check=True)


@pytest.mark.parametrize("workers", [1, 2])
def test_a_small_disk_then_a_larger_one(tmp_path, small_disk, monkeypatch, workers):
  monkeypatch.setattr(studies, "SIDE", 60)  # 6 stacks of 22 kB
  source = studies.write_study(tmp_path / "study")
  line = studies.fail("rcm_clinical", source, small_disk, f"--workers={workers}")
  assert "No space left on device; make room" in line
  assert not list(small_disk.rglob("*.partial"))
  assert not clinical.Builder(data_dir=small_disk).is_prepared()
  subprocess.run(["mount", "-o", "remount,size=10m", str(small_disk)], check=True)
  studies.succeed("rcm_clinical", source, small_disk)
  assert clinical.Builder(data_dir=small_disk).is_prepared()


def test_other_failures_keep_their_words(tmp_path):
  with pytest.raises(KeyError), disk.failures_told(tmp_path / "x"):
    raise KeyError("x")
  with pytest.raises(UserError, match="slice"), disk.failures_told(tmp_path / "x"):
    raise UserError("slice: cannot be opened (Permission denied)")
  with pytest.raises(OSError, match="Input/output error") as error, disk.failures_told("/x"):
    raise RuntimeError("read() failed: Input/output error; reading")
  assert error.value.filename == "/x"


def test_a_file_is_written_whole_or_stays(tmp_path, monkeypatch):
  path = tmp_path / ("n" * 255)
  disk.write_whole(path, b"old")

  def full(_):
    raise OSError(errno.ENOSPC, "No space left on device")

  monkeypatch.setattr(disk.os, "fsync", full)
  with pytest.raises(OSError, match="No space"):
    disk.write_whole(path, b"new")
  assert path.read_bytes() == b"old"
  assert list(tmp_path.iterdir()) == [path]
