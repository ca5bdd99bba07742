from __future__ import annotations

import hashlib
import os
import pathlib
import shutil
import signal
import subprocess
import sys
import time

from array_record.python import array_record_module
import numpy as np
import pytest
from tensorflow_datasets.proto import tf_example_pb2

from tfds_rcm import prepare, shards
from tfds_rcm import record as record_lib
from tfds_rcm.rcm_phantom import anatomy as anatomy_lib
from tfds_rcm.rcm_phantom import annotators, render, spec, stacks
from tfds_rcm.rcm_phantom import rcm_phantom_dataset_builder as builder_lib

# Three stacks of a few small slices.
TINY = "demo+stacks=2,1,1+stacks_per_patient=1,1+size_px=20+depth_step_um=9"
ROOT = pathlib.Path(__file__).resolve().parent.parent


def digest(folder):
  """What the records are; the rest of a dataset's folder tells when and how it was made."""
  return {
    path.name: hashlib.sha256(path.read_bytes()).hexdigest()
    for path in sorted(folder.glob("*.array_record*"))
  }


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
  return prepare.prepare_phantom(TINY, tmp_path_factory.mktemp("data"))


def test_records_come_back_as_they_were_rendered(tiny):
  phantom = spec.named(TINY)
  builder = builder_lib.Builder(config=TINY, data_dir=tiny.parents[2])
  anatomies = {a.stack_id: a for a in anatomy_lib.draw_anatomies(phantom)}
  for split, count in zip(anatomy_lib.SPLITS, phantom.stacks):
    source = builder.as_data_source(split)
    assert len(source) == count
    for example in source:
      record = record_lib.read_record(example)
      anatomy = anatomies[record.stack_id]
      plan = annotators.plan_stack(phantom, anatomy)
      assert anatomy.split == split
      assert (record.patient_id, record.site) == (anatomy.patient_id, anatomy.site)
      assert record.pixel_um == pytest.approx(phantom.pixel_um)
      np.testing.assert_array_equal(record.labels, plan.labels)
      np.testing.assert_allclose(record.depth_um, plan.depth_um)
      rendered = list(render.render_stack(phantom, anatomy, plan))
      np.testing.assert_array_equal(np.stack(record.slices)[..., 0], rendered)


def test_an_older_version_is_read_where_it_lies_and_is_not_made(tiny, tmp_path, capsys):
  ((old, _),) = spec.OLD_VERSIONS.items()
  folder = tmp_path / "rcm_phantom" / TINY / old
  shutil.copytree(tiny, folder)
  for path in folder.iterdir():  # as that version wrote its own name
    if path.suffix == ".json":
      path.write_text(path.read_text().replace(spec.VERSION, old))
  builder = builder_lib.Builder(config=f"{TINY}:{old}", data_dir=tmp_path)
  assert str(builder.version) == old
  assert len(builder.as_data_source("train")) == 2
  assert prepare.prepare_phantom(f"{TINY}:{old}", tmp_path) == folder
  for seed in ("0", "1"):
    arguments = [f"--preset={TINY}:{old}", f"--seed={seed}", f"--data_dir={tmp_path / 'other'}"]
    assert prepare.main(["rcm_phantom", *arguments]) == 1
    assert "git checkout" in capsys.readouterr().err
  assert not (tmp_path / "other").exists()


def test_a_prepared_phantom_is_not_made_again(tiny, monkeypatch):
  monkeypatch.setattr(stacks, "stack_fields", None)
  assert prepare.prepare_phantom(TINY, tiny.parents[2]) == tiny


def test_progress_reaches_the_end_and_nothing_is_left_over(tmp_path):
  seen = []
  folder = prepare.prepare_phantom(
    TINY, tmp_path, seed=1, progress=lambda done, total: seen.append((done, total))
  )
  assert folder.parent.name == f"{TINY}+seed=1"
  assert seen[-1] == (4, 4)
  assert seen == sorted(seen)
  assert not list(tmp_path.rglob("*.zip"))
  assert not list(tmp_path.rglob("*incomplete*"))


def test_an_interrupted_run_goes_on_to_the_same_bytes(tiny, tmp_path, monkeypatch):
  made = []
  original = stacks.stack_fields

  def interrupted(phantom, anatomy):
    if len(made) == 2:
      raise KeyboardInterrupt
    made.append(anatomy.stack_id)
    return original(phantom, anatomy)

  monkeypatch.setattr(stacks, "stack_fields", interrupted)
  with pytest.raises(KeyboardInterrupt):
    prepare.prepare_phantom(TINY, tmp_path)
  assert len(list(tmp_path.rglob("*.zip"))) == 2
  resumed = []
  monkeypatch.setattr(
    stacks, "stack_fields", lambda p, a: (resumed.append(a.stack_id), original(p, a))[1]
  )
  folder = prepare.prepare_phantom(TINY, tmp_path)
  assert len(resumed) == 2
  assert not set(made) & set(resumed)
  assert digest(folder) == digest(tiny)


def test_a_killed_run_goes_on_to_the_same_bytes(tiny, tmp_path):
  command = [
    sys.executable, "-m", "tfds_rcm.prepare", "rcm_phantom", f"--preset={TINY}",
    f"--data_dir={tmp_path}",
  ]  # fmt: skip
  process = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.DEVNULL)
  deadline = time.time() + 120
  while not list(tmp_path.rglob("*.zip")) and time.time() < deadline and process.poll() is None:
    time.sleep(0.01)
  process.send_signal(signal.SIGKILL)
  process.wait()
  assert not list(tmp_path.rglob("dataset_info.json")) or process.returncode == 0
  check = (
    "import sys; from tfds_rcm import prepare; code = prepare.main(sys.argv[1:]);"
    "assert 'tensorflow' not in sys.modules; sys.exit(code)"
  )
  done = subprocess.run(
    [sys.executable, "-c", check, *command[3:]], cwd=ROOT, capture_output=True, text=True
  )
  assert done.returncode == 0, done.stderr
  folder = pathlib.Path(done.stdout.split()[-1])
  assert digest(folder) == digest(tiny)


def test_a_damaged_staged_stack_is_made_again(tmp_path):
  phantom = spec.named(TINY)
  anatomy = anatomy_lib.draw_anatomies(phantom)[0]
  first = stacks.staged_fields(tmp_path, phantom, anatomy)
  (path,) = tmp_path.glob("*.zip")
  path.write_bytes(path.read_bytes()[:100])
  assert stacks.staged_fields(tmp_path, phantom, anatomy) == first


def test_preview_draws_and_writes_no_dataset(tmp_path, capsys):
  sheet = tmp_path / "sheet.png"
  arguments = ["rcm_phantom", f"--data_dir={tmp_path / 'data'}", f"--preview={sheet}"]
  assert prepare.main([*arguments, f"--preset={TINY}", "--stack=p000_s0"]) == 0
  assert sheet.stat().st_size > 0
  assert not (tmp_path / "data").exists()
  assert str(sheet) in capsys.readouterr().out


@pytest.mark.parametrize(
  ("arguments", "what"),
  [
    (["--preset=dema"], "no preset 'dema'"),
    (
      ["--preview=out.png", "--stack=p999_s0", f"--preset={TINY}"],
      "--stack=p999_s0: no such stack",
    ),
    (["--data_dir=/proc/nowhere", f"--preset={TINY}"], "/proc/nowhere"),
  ],
)
def test_bad_input_is_one_line(arguments, what, capsys):
  assert prepare.main(["rcm_phantom", *arguments]) == 1
  error = capsys.readouterr().err
  assert what in error
  assert error.startswith("error: ")
  assert error.count("\n") == 1


def test_default_folder_is_tfds_own(monkeypatch):
  monkeypatch.setenv("TFDS_DATA_DIR", "/somewhere")
  assert prepare.default_data_dir() == pathlib.Path("/somewhere")
  monkeypatch.delenv("TFDS_DATA_DIR")
  assert prepare.default_data_dir() == pathlib.Path(os.path.expanduser("~/tensorflow_datasets"))


@pytest.mark.parametrize(
  ("change", "what"),
  [
    ({"slices": []}, "0 slices"),
    ({"labels": [0, 4]}, "slice 1: label 4"),
    ({"depth_um": [3.0, 3.0]}, "depths must grow"),
  ],
)
def test_records_are_checked(change, what):
  fields = {
    "stack_id": "s",
    "patient_id": "p",
    "slices": [b"", b""],
    "labels": [0, 1],
    "depth_um": [0.0, 3.0],
  }
  record_lib.stack_record(**fields)
  with pytest.raises(ValueError, match=what):
    record_lib.stack_record(**{**fields, **change})


GRAY = np.arange(200, dtype=np.uint8).reshape(2, 10, 10)


@pytest.mark.parametrize("slices", [[b"one\0", b"two"], list(GRAY), [s.T for s in GRAY]])
@pytest.mark.parametrize("pixel_um", [None, 0.5])
@pytest.mark.parametrize("columns", [None, {}, {"läsion": 'nævus, "atypical"'}])
def test_shards_hold_what_tfds_would_write(tmp_path, slices, pixel_um, columns):
  record = record_lib.stack_record(
    stack_id="s", patient_id="Ørsted", slices=slices, labels=[0, 3], depth_um=[0.0, 3.1],
    site="arm" * 50, pixel_um=pixel_um, columns=columns, readings={"ann": (0, -1)},
  )  # fmt: skip
  path = tmp_path / "shard"
  shards.write_shard(path, [record] * 2)
  assert shards.is_whole_shard(path, 2)
  assert not shards.is_whole_shard(path, 3)
  [written, _] = array_record_module.ArrayRecordReader(str(path)).read_all()
  features = record_lib.stack_features(png=isinstance(slices[0], bytes), about=columns is not None)
  by_tfds = features.serialize_example(record)
  ordered = tf_example_pb2.Example.FromString(by_tfds).SerializeToString(deterministic=True)
  assert written == ordered
