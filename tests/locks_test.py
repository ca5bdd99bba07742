"""One process at a time where two would spoil each other's files; a killed one frees the lock."""

import multiprocessing
import os
import threading
import zipfile

import pytest

from tests import studies
from tfds_rcm import locks
from tfds_rcm.errors import UserError
from tfds_rcm.formats import zip_archive


def hold(path, ready):
  with locks.held(path):
    ready.set()
    threading.Event().wait(60)


def test_a_lock_names_its_holder_and_ends_with_it(tmp_path):
  path = tmp_path / "new folder" / ".lock"
  context = multiprocessing.get_context("spawn")
  ready = context.Event()
  process = context.Process(target=hold, args=(path, ready))
  process.start()
  try:
    assert ready.wait(60)
    who = rf"new folder: another run is working here \(process {process.pid} on .* since 20"
    with pytest.raises(UserError, match=who), locks.held(path, wait=False):
      pass
  finally:
    process.kill()
    process.join()
  with locks.held(path, wait=False):
    assert f"process {os.getpid()} on" in path.read_text()
  assert path.read_text() == ""


def _in_thread(function, *args):
  thread = threading.Thread(target=function, args=args, daemon=True)
  thread.start()
  return thread


def test_the_second_waits_says_for_whom_and_takes_a_lock_that_was_removed(tmp_path, capsys):
  path, order, waiting = tmp_path / ".lock", [], threading.Event()

  def second():
    waiting.set()
    with locks.held(path):
      order.append("second")

  with locks.held(path):
    thread = _in_thread(second)
    waiting.wait()
    thread.join(0.1)
    path.unlink()  # by somebody who tidies up
    order.append("first")
  thread.join(10)
  assert order == ["first", "second"]
  assert path.exists()  # what the second holds is the file that a third would find
  assert (
    f"waiting for another run in {tmp_path} (process {os.getpid()} on" in capsys.readouterr().err
  )


def test_a_file_system_without_locks_is_told(tmp_path, monkeypatch):
  def flock(*_):
    raise OSError(38, "Function not implemented")

  monkeypatch.setattr(locks.fcntl, "flock", flock)
  with pytest.raises(UserError, match=r"\.lock: cannot be locked"), locks.held(tmp_path / ".lock"):
    pass


@pytest.fixture(name="packed")
def _packed(tmp_path):
  source = studies.write_study(tmp_path / "study")
  with zipfile.ZipFile(tmp_path / "study.zip", "w") as packed:
    for path in source.rglob("*"):
      packed.write(path, path.relative_to(source))
  return tmp_path / "study.zip"


def test_two_at_once_unpack_a_zip_once_and_whole(packed, tmp_path, monkeypatch):
  begun, go_on, unpacked, found = threading.Event(), threading.Event(), [], []
  original = zip_archive.unpack

  def slow(path, folder, **rest):
    unpacked.append(folder)
    begun.set()
    assert go_on.wait(20)
    original(path, folder, **rest)

  monkeypatch.setattr(zip_archive, "unpack", slow)

  def run():
    folder = zip_archive.source_folder(packed, tmp_path / "cache")
    found.append(len([p for p in folder.rglob("*") if p.is_file()]))

  threads = [_in_thread(run)]
  assert begun.wait(20)
  threads.append(_in_thread(run))
  threads[1].join(0.1)
  go_on.set()
  for thread in threads:
    thread.join(20)
  assert found == [38, 38]
  assert len(unpacked) == 1


def test_an_unpacked_folder_that_lost_files_is_not_trusted(packed, tmp_path):
  folder = zip_archive.source_folder(packed, tmp_path / "cache")
  (folder / "notes.txt").write_text("a user's own file")
  assert zip_archive.source_folder(packed, tmp_path / "cache") == folder
  victim = next(folder.rglob("*.bmp"))
  victim.unlink()
  with pytest.raises(UserError, match=r"1 files of the zip have gone, such as .*bmp; remove"):
    zip_archive.source_folder(packed, tmp_path / "cache")
  folder.with_name(folder.name + ".json").unlink()  # as earlier versions left it
  with pytest.raises(UserError, match="remove this folder"):
    zip_archive.source_folder(packed, tmp_path / "cache")


def test_preparing_waits_for_the_dataset_and_checking_does_not(packed, tmp_path):
  study, data, ended = tmp_path / "study", tmp_path / "data", []
  run = lambda: ended.append(studies.prepare("rcm_clinical", study, data))
  with locks.held(data / "rcm_clinical" / ".lock"):
    assert studies.prepare("rcm_clinical", study, data, "--check")[0] == 0
    thread = _in_thread(run)
    thread.join(0.3)
    assert not ended
  thread.join(60)
  [(code, _, err)] = ended
  assert code == 0
  assert f"waiting for another run in {data / 'rcm_clinical'} (process {os.getpid()} on" in err


def test_a_second_study_in_one_data_dir_is_told_and_the_first_stays(tmp_path):
  data, first = tmp_path / "data", studies.write_study(tmp_path / "first")
  second = studies.write_study(tmp_path / "second")
  studies.succeed("rcm_clinical", first, data)
  studies.edit(second / "manifest.csv", "\ns", "\nx", 6)
  studies.edit(second / "labels.csv", "\ns", "\nx", 36)
  line = studies.fail("rcm_clinical", second, data)
  assert "splits.csv: of another study: none of its 6 stacks" in line
  assert "up to date" in studies.succeed("rcm_clinical", first, data)
  out = studies.succeed("rcm_clinical", second, data, f"--splits={tmp_path / 'mine.csv'}")
  assert f"replaced    the dataset of {first / 'manifest.csv'}" in out
