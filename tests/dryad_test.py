"""Invented layouts of the Dryad archive, whose real one nobody here could see."""

import zipfile

import numpy as np
from PIL import Image
import tensorflow_datasets as tfds
import tifffile

from tests import studies
from tfds_rcm import record as record_lib
from tfds_rcm.rcm_dryad import convert, rcm_dryad_dataset_builder

NUMBERS = "--label_map=1=stratum_corneum,2=epidermis,3=dej,4=dermis"
CLASSES = (1, 2, 2, 3, 4, 4)


def folders(root, num_stacks=4):
  for index in range(num_stacks):
    where = root / "images" / f"young_{index % 3 + 1:02d}" / f"stack {index:02d}"
    where.mkdir(parents=True)
    for t, pixels in enumerate(studies.volume(index)):
      Image.fromarray(pixels).save(where / f"slice_{t + 1}.png")
  return root


def table(root, header, row_of, name="classes.csv", num_stacks=4):
  rows = [row_of(i, t) for i in range(num_stacks) for t in range(len(CLASSES))]
  return studies.write_table(root / name, header, rows)


def prepare(source, tmp_path, *options):
  return studies.succeed("rcm_dryad", source, tmp_path / "data", *options)


def fail(source, tmp_path, *options):
  return studies.fail("rcm_dryad", source, tmp_path / "data", *options)


def check_records(tmp_path, num_stacks=4):
  builder = rcm_dryad_dataset_builder.Builder(data_dir=tmp_path / "data")
  found = {}
  for split in builder.info.splits:
    for record in map(record_lib.read_record, builder.as_data_source(split)):
      index = int(record.stack_id[-2:])
      found[index] = record
      np.testing.assert_array_equal(np.stack(record.slices)[..., 0], studies.volume(index))
      np.testing.assert_array_equal(record.labels, np.array(CLASSES) - 1)
  assert len(found) == num_stacks
  return found


def test_folders_and_a_table_with_telling_columns(tmp_path):
  root = folders(tmp_path / "archive")
  table(
    root, ("Stack", "Volunteer", "Image Number", "Class"),
    lambda i, t: (f"stack {i:02d}", f"v{i % 3}", t + 1, CLASSES[t]),
  )  # fmt: skip
  out = prepare(root, tmp_path, "--step_um=3", "--pixel_um=0.5", "--first_slice=1", NUMBERS)
  assert out.startswith("note ")
  assert "could not be checked" in out
  assert check_records(tmp_path)[0].pixel_um == 0.5
  assert (tmp_path / "data/rcm_dryad/converted/manifest.csv").is_file()


def test_a_readme_and_columns_with_remarks(tmp_path):
  root = folders(tmp_path / "archive")
  (root / "README.txt").write_text("About the data\nStacks of skin, taken with care.\n")
  table(
    root, ("Stack name", "Image no.", "Class (1 = SC, 2 = VE)", "Volunteer"),
    lambda i, t: (f"stack {i:02d}", t + 1, CLASSES[t], f"v{i % 3}"),
  )  # fmt: skip
  prepare(root, tmp_path, "--step_um=3", "--first_slice=1", NUMBERS)
  check_records(tmp_path)


def test_a_zip_with_paths_in_the_table_and_patients_in_the_paths(tmp_path):
  root = folders(tmp_path / "archive")
  table(
    root, ("image", "label"),
    lambda i, t: (f"images/young_{i % 3 + 1:02d}/stack {i:02d}/slice_{t + 1}.png", CLASSES[t]),
  )  # fmt: skip
  packed = tmp_path / "rg58m.zip"
  with zipfile.ZipFile(packed, "w") as archive:
    for path in root.rglob("*"):
      archive.write(path, path.relative_to(root))
  prepare(packed, tmp_path, "--step_um=3", r"--patient_pattern=(young_\d+)", NUMBERS)
  assert {r.patient_id for r in check_records(tmp_path).values()} == {
    "young_01", "young_02", "young_03",
  }  # fmt: skip


def test_volumes_and_columns_that_a_user_names(tmp_path):
  root = tmp_path / "archive"
  root.mkdir()
  for index in range(4):
    tifffile.imwrite(root / f"RCM{index:02d}.tif", studies.volume(index))
  table(
    root, ("nr", "who", "z", "what"), lambda i, t: (i, f"v{i % 3}", t, CLASSES[t]), name="x.txt"
  )
  message = fail(root, tmp_path, "--step_um=3", NUMBERS)
  assert "no table with a slice and a label" in message
  assert "nr, who, z, what" in message
  names = "--columns=stack_id=nr,patient_id=who,slice=z,label=what"
  prepare(root, tmp_path, "--step_um=3", NUMBERS, f"--labels={root / 'x.txt'}", names)
  check_records(tmp_path)


def test_transitions_instead_of_labels(tmp_path):
  root = folders(tmp_path / "archive")
  rows = [(f"stack {i:02d}", f"v{i % 3}", 1, 3, 4) for i in range(4)]
  header = ("stack", "subject", "epidermis_index", "dej_index", "dermis_index")
  studies.write_table(root / "t.csv", header, rows)
  prepare(root, tmp_path, "--step_um=3")
  check_records(tmp_path)


def test_a_manifest_of_the_users_own_is_taken(tmp_path):
  out = prepare(studies.write_study(tmp_path / "study"), tmp_path)
  assert "could not be checked" in out
  assert "6 of 3 patients" in out


def test_what_cannot_be_inferred_is_asked_for(tmp_path):
  root = folders(tmp_path / "archive")
  assert "--labels=FILE" in fail(root, tmp_path)
  path = table(root, ("stack", "image", "class"), lambda i, t: (i, t + 1, CLASSES[t]))
  assert "--patient_pattern" in fail(root, tmp_path)
  pattern = r"--patient_pattern=(young_\d+)"
  assert "step_um" in fail(root, tmp_path, pattern)
  assert "--first_slice=1" in fail(root, tmp_path, pattern, "--step_um=3", NUMBERS)
  ready = (pattern, "--step_um=3", "--first_slice=1")
  assert "--label_map=1=?,2=?,3=?,4=?" in fail(root, tmp_path, *ready)
  assert "no regular expression" in fail(root, tmp_path, "--patient_pattern=(")
  assert "2 groups" in fail(root, tmp_path, "--patient_pattern=(a)(b)")
  assert "does not match the path" in fail(root, tmp_path, "--patient_pattern=(old)")
  studies.edit(path, "3,1,1", "77,1,1")
  message = fail(root, tmp_path, *ready, NUMBERS)
  assert "classes.csv, row 20: stack '77' fits none of the 4 found" in message
  studies.write_table(root / "second.csv", ("stack", "image", "class"), [])
  assert "several tables" in fail(root, tmp_path)
  (tmp_path / "empty").mkdir()
  assert "no folder with images" in fail(tmp_path / "empty", tmp_path)
  assert not tfds.core.DatasetBuilder.is_prepared(
    rcm_dryad_dataset_builder.Builder(data_dir=tmp_path / "data")
  )


def test_ambiguous_numbers_are_not_guessed(tmp_path):
  root = folders(tmp_path / "archive")
  (root / "images/young_01/stack 00").rename(root / "images/young_01/other 01")
  table(root, ("stack", "subject", "image", "class"), lambda i, t: (i, i, t, CLASSES[t]))
  message = fail(root, tmp_path, "--step_um=3", NUMBERS)
  assert "stack '0' fits none" in message
  assert set(convert.find_stacks(root)) >= {"images/young_01/other 01", "images/young_02/stack 01"}


def test_columns_that_the_table_has_not_are_refused(tmp_path):
  root = folders(tmp_path / "archive")
  table(
    root, ("Stack", "Volunteer", "Image", "Class"),
    lambda i, t: (f"stack {i:02d}", f"v{i % 3}", t + 1, CLASSES[t]),
  )  # fmt: skip
  assert "no column 'Observr' in" in fail(root, tmp_path, "--columns=reader=Observr")
  assert "no column raeder; did you mean 'reader'" in fail(root, tmp_path, "--columns=raeder=Class")


def test_a_stack_of_two_patients_is_refused(tmp_path):
  root = folders(tmp_path / "archive")
  table(
    root, ("Stack", "Volunteer", "Image", "Class"),
    lambda i, t: (f"stack {i:02d}", f"v{(i + t // 5) % 3}", t + 1, CLASSES[t]),
  )  # fmt: skip
  line = fail(root, tmp_path, "--step_um=3", "--first_slice=1", NUMBERS)
  assert "classes.csv, row 7: patient 'v1', expected 'v0' as of the same stack in row 2" in line


def test_a_volume_beside_one_of_another_kind_is_not_lost(tmp_path):
  np.save(tmp_path / "a.npy", studies.volume(0))
  tifffile.imwrite(tmp_path / "a.tif", studies.volume(1))
  assert set(convert.find_stacks(tmp_path)) == {"a", "a.tif"}
