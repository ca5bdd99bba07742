"""A folder and a spreadsheet become a dataset."""

import subprocess
import sys
import zipfile

import numpy as np
from PIL import Image
import pytest
import tensorflow_datasets as tfds

from rcm_jax.configs import base
from rcm_jax.data import scale as scale_lib
from rcm_jax.data import slices as slices_lib
from rcm_jax.run import pipeline
from rcm_jax.runtime import metric_writer as writer_lib
from tests import studies
from tfds_rcm import record as record_lib
from tfds_rcm.errors import UserError
from tfds_rcm.rcm_clinical import rcm_clinical_dataset_builder as clinical
from tfds_rcm.study import builder as builder_lib
from tfds_rcm.study import plan as plan_lib
from tfds_rcm.study.splits import SPLITS


@pytest.fixture(name="source")
def _source(tmp_path):
  return studies.write_study(tmp_path / "study")


def prepare(source, data_dir, *options):
  return studies.succeed("rcm_clinical", source, data_dir, *options)


def records(data_dir):
  builder = clinical.Builder(data_dir=data_dir)
  return {
    split: [record_lib.read_record(r) for r in builder.as_data_source(split)]
    for split in SPLITS if split in builder.info.splits
  }  # fmt: skip


def check_records(data_dir, num_stacks=6):
  by_split = records(data_dir)
  found = {record.stack_id: record for of_split in by_split.values() for record in of_split}
  assert len(found) == num_stacks
  for stack_id, record in found.items():
    np.testing.assert_array_equal(
      np.stack(record.slices)[..., 0], studies.volume(int(stack_id[1:]))
    )
    np.testing.assert_array_equal(record.labels, [0, 1, 2, 2, 3, 3])
    np.testing.assert_allclose(record.depth_um, 3 * np.arange(6))
    assert record.pixel_um == 0.5
    assert record.site == "arm"
  patients = [{record.patient_id for record in of_split} for of_split in by_split.values()]
  assert sum(map(len, patients)) == len(set.union(*patients))
  return by_split


def assert_nothing_registered(data_dir):
  builder = clinical.Builder(data_dir=data_dir)
  assert not builder.is_prepared()
  assert not list(data_dir.glob("rcm_clinical/*2.0.0*"))


def test_a_study_becomes_a_dataset(source, tmp_path):
  data = tmp_path / "data"
  out = prepare(source, data, "--split_sizes=2,2,2")
  assert {split: len(r) for split, r in check_records(data).items()} == dict.fromkeys(SPLITS, 2)
  assert "6 of 3 patients, 36 slices" in out
  assert "dej 33.3 %" in out
  assert (data / "rcm_clinical/2.0.0/splits.csv").is_file()
  assert "0 problems" in (data / "rcm_clinical/2.0.0/report.txt").read_text()
  assert not (data / "rcm_clinical/staging").exists()


def test_a_zip_gives_the_same_dataset(source, tmp_path):
  packed = tmp_path / "study.zip"
  with zipfile.ZipFile(packed, "w") as archive:
    for path in source.rglob("*"):
      archive.write(path, f"top/{path.relative_to(source)}")
  prepare(packed, tmp_path / "data")
  check_records(tmp_path / "data")


def test_a_second_run_does_nothing_and_an_edited_split_is_obeyed(source, tmp_path):
  data = tmp_path / "data"
  prepare(source, data, "--split_sizes=2,2,2")
  assert "up to date" in prepare(source, data)
  table = data / "rcm_clinical/splits.csv"
  first = {r.stack_id for r in records(data)["train"]}
  swapped = table.read_text().replace(",train,", ",-,").replace(",test,", ",train,")
  table.write_text(swapped.replace(",-,", ",test,"))
  prepare(source, data)
  assert {r.stack_id for r in check_records(data)["test"]} == first
  message = studies.fail("rcm_clinical", source, data, "--split_sizes=4,1,1")
  assert "splits.csv: 2/2/2 stacks instead of 4/1/1" in message
  check_records(data)  # the older dataset stays


def test_what_changed_is_prepared_anew(source, tmp_path):
  data = tmp_path / "data"
  prepare(source, data)
  studies.edit(source / "labels.csv", "s3,4,dermis", "s3,4,dej")
  prepare(source, data)
  found = {r.stack_id: r for of_split in records(data).values() for r in of_split}
  assert found["s3"].labels.tolist() == [0, 1, 2, 2, 2, 3]
  studies.edit(source / "manifest.csv", "VivaStack #3,3,0.5", "VivaStack #3,5,0.25")
  prepare(source, data)
  found = {r.stack_id: r for of_split in records(data).values() for r in of_split}
  np.testing.assert_allclose(found["s3"].depth_um, 5 * np.arange(6))
  assert found["s3"].pixel_um == 0.25


def test_a_failed_rerun_leaves_the_older_dataset(source, tmp_path):
  data = tmp_path / "data"
  prepare(source, data)
  image = source / "p1/arm/VivaStack #1/v0000004.bmp"
  image.write_bytes(image.read_bytes()[:300])
  assert "v0000004.bmp" in studies.fail("rcm_clinical", source, data)
  check_records(data)


def test_an_interrupted_run_goes_on_where_it_was(source, tmp_path, monkeypatch):
  data, made = tmp_path / "data", []
  original = plan_lib.make_record

  def interrupted(job):
    if len(made) == 4:
      raise KeyboardInterrupt
    made.append(job.stack.entry.stack_id)
    return original(job)

  monkeypatch.setattr(builder_lib, "make_record", interrupted)
  with pytest.raises(KeyboardInterrupt):
    prepare(source, data)
  assert_nothing_registered(data)
  assert len(list((data / "rcm_clinical/staging").iterdir())) == 4

  def counted(job):
    made.append(job.stack.entry.stack_id)
    return original(job)

  monkeypatch.setattr(builder_lib, "make_record", counted)
  prepare(source, data)
  assert sorted(made) == [f"s{i}" for i in range(6)]  # none was made twice
  check_records(data)


def test_all_cores_give_the_same_dataset(source, tmp_path):
  prepare(source, tmp_path / "data", "--workers=2")
  check_records(tmp_path / "data")


def test_a_damaged_shard_of_an_interrupted_run_is_made_again(source, tmp_path, monkeypatch):
  data = tmp_path / "data"
  original, made = plan_lib.make_record, []

  def interrupted(job):
    if len(made) == 2:
      raise KeyboardInterrupt
    made.append(job)
    return original(job)

  monkeypatch.setattr(builder_lib, "make_record", interrupted)
  with pytest.raises(KeyboardInterrupt):
    prepare(source, data)
  monkeypatch.undo()
  cut, flipped = (data / "rcm_clinical/staging").iterdir()
  cut.write_bytes(cut.read_bytes()[:-1])
  damaged = bytearray(flipped.read_bytes())
  damaged[damaged.index(b"slices/value") + 50] ^= 1
  flipped.write_bytes(damaged)
  prepare(source, data)
  check_records(data)


def test_one_stack_at_a_time_is_in_memory(source, tmp_path, monkeypatch):
  alive, most = set(), [0]
  original = plan_lib.make_record

  class Counted(list):
    def __init__(self, *args):
      super().__init__(*args)
      alive.add(id(self))
      most[0] = max(most[0], len(alive))

    def __del__(self):
      alive.discard(id(self))

  def counting(job):
    fields = original(job)
    return {**fields, "slices": Counted(fields["slices"])}

  monkeypatch.setattr(builder_lib, "make_record", counting)
  monkeypatch.setattr(builder_lib, "_MIN_SHARDS", 1)
  prepare(source, tmp_path / "data")
  assert most[0] == 1
  check_records(tmp_path / "data")


@pytest.mark.parametrize("compression", ["fast", "small"])
def test_compression_changes_the_size_alone(tmp_path, compression):
  source = studies.write_study(tmp_path / "study", num_stacks=3)
  flat = np.full((studies.SIDE, studies.SIDE), 7, np.uint8)
  for path in source.rglob("*.bmp"):
    Image.fromarray(flat).save(path)
  prepare(source, tmp_path / "data", f"--compression={compression}")
  files = (tmp_path / "data").rglob("*train*array_record*")
  stored = b"\x07" * studies.SIDE in b"".join(path.read_bytes() for path in files)
  for record in records(tmp_path / "data")["train"]:
    assert np.all(np.equal(record.slices, 7))
  assert stored == (compression == "fast")


def test_a_zip_in_a_zip_is_unpacked(source, tmp_path):
  inner = tmp_path / "inner.zip"
  with zipfile.ZipFile(inner, "w") as archive:
    for path in source.rglob("*"):
      archive.write(path, path.relative_to(source))
  packed = tmp_path / "outer.zip"
  with zipfile.ZipFile(packed, "w") as archive:
    archive.write(inner, "data/inner.zip")
  prepare(packed, tmp_path / "data")
  check_records(tmp_path / "data")


def test_without_beam_it_is_said_what_to_install(source, tmp_path, monkeypatch):
  monkeypatch.setitem(sys.modules, "apache_beam", None)
  message = studies.fail(
    "rcm_clinical", source, tmp_path / "data", "--beam_options=--runner=DirectRunner"
  )
  assert "pip install apache-beam" in message
  assert_nothing_registered(tmp_path / "data")


def test_beam_gives_the_same_dataset(source, tmp_path):
  pytest.importorskip("apache_beam", reason="Beam asks for an older protobuf than we pin")
  prepare(source, tmp_path / "data", "--beam_options=--runner=DirectRunner")
  check_records(tmp_path / "data")


@pytest.mark.parametrize("compression", ["fast", "small"])
def test_programs_without_our_code_read_the_dataset(source, tmp_path, compression):
  prepare(source, tmp_path / "data", f"--compression={compression}")
  script = """
import sys, numpy as np, tensorflow_datasets as tfds
folder = tfds.builder_from_directory(sys.argv[1])
for split in folder.info.splits:
  for record in folder.as_data_source(split):
    print(record["stack_id"].decode(), *np.asarray(list(record["slices"])).sum((1, 2, 3)))
assert "tfds_rcm" not in sys.modules and "tensorflow" not in sys.modules
"""
  folder = tmp_path / "data/rcm_clinical/2.0.0"
  out = subprocess.check_output([sys.executable, "-c", script, folder], cwd=tmp_path, text=True)
  sums = {name: list(map(int, rest)) for name, *rest in map(str.split, out.splitlines())}
  assert sums == {f"s{i}": studies.volume(i).sum((1, 2)).tolist() for i in range(6)}


def test_the_dataset_is_found_by_its_name(source, tmp_path):
  prepare(source, tmp_path / "data")
  builder = tfds.builder("rcm_clinical", data_dir=tmp_path / "data", file_format="array_record")
  assert sum(split.num_examples for split in builder.info.splits.values()) == 6


def test_a_study_and_the_phantom_mix_in_one_run(source, tmp_path):
  data_dir, phantom = tmp_path / "data", "rcm_phantom/demo+stacks=2,1,1+size_px=20+depth_step_um=9"
  prepare(source, data_dir, "--split_sizes=2,2,2")
  wanted = base.get_config().data
  wanted.sources, wanted.data_dir = ("rcm_clinical", phantom), str(data_dir)
  writer = writer_lib.Writer(tmp_path)
  with pytest.raises(
    UserError, match=r"a field of 48 µm, .* one of 6 µm; set config.data.field_um"
  ):
    pipeline._decode(wanted.sources, wanted, tmp_path, tmp_path / "cache", writer)
  wanted.image_size, wanted.field_um = 16, 6.0
  splits = slices_lib.load_slices(
    pipeline._decode(wanted.sources, wanted, tmp_path, tmp_path / "cache", writer)
  )
  writer.close()
  for split, count in (("train", 4), ("validation", 3), ("test", 3)):
    mixed = splits[split]
    assert len(mixed.stack_id) == count
    assert mixed.slices.shape == (mixed.lengths.sum(), 16, 16)
    study = [i for i, name in enumerate(mixed.stack_id) if name.startswith("rcm_clinical/s")]
    assert len(study) == 2
    for stack in study:
      rows = mixed.rows(stack)
      assert mixed.labels[rows].tolist() == [0, 0, 1, 1, 2, 2]
      original = studies.volume(int(mixed.stack_id[stack][-1]))
      np.testing.assert_array_equal(
        mixed.slices[rows][3], scale_lib.tiles(original[3], None, scale_lib.Scale(16, None))[0]
      )
  assert (tmp_path / "splits_rcm_clinical.csv").is_file()
