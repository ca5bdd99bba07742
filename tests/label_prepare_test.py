"""A folder of labels, a file a reader, is read as the label page leaves it."""

from __future__ import annotations

import pytest

from tests import studies
from tfds_rcm.labelling import answers, journal
from tfds_rcm.labelling.journal import FIRST

EDGES = {"ann": (0, 2, 4), "bob": (0, 3, 4)}


def label(study, reader, said, where="labels"):
  kept = journal.Journal(study / where, reader)
  for stack_id, answer in said.items():
    kept.save((stack_id, FIRST), answer, 6, kept[stack_id, FIRST].revision)
  kept.close()


@pytest.fixture
def study(tmp_path):
  folder = studies.write_study(tmp_path / "study", num_stacks=6, num_patients=6)
  (folder / "labels.csv").unlink()
  for reader, starts in EDGES.items():
    label(folder, reader, {f"s{k}": answers.Answer("done", starts) for k in range(6)})
  return folder


def test_two_readers_files_are_one_study(study, tmp_path):
  out = studies.succeed("rcm_clinical", study, tmp_path / "data", "--check")
  assert "readers     ann, bob" in out
  assert "disagree    on 6 of the" in out
  assert "0 problems" in out
  assert "epidermis 33.3 %" in out
  out = studies.succeed("rcm_clinical", study, tmp_path / "data", "--check", "--readers=bob,ann")
  assert "epidermis 50.0 %" in out


def test_a_dataset_is_made_of_them(study, tmp_path):
  assert "dataset" in studies.succeed("rcm_clinical", study, tmp_path / "data")


def test_who_decided_between_readers_is_obeyed(study, tmp_path):
  decided = {f"s{k}": answers.Answer("done", (0, 0, 0)) for k in range(6)}
  label(study, "cy", decided, "labels/adjudicated")
  out = studies.succeed("rcm_clinical", study, tmp_path / "data", "--check")
  assert "dermis 100.0 %" in out
  label(study, "dan", {"s1": decided["s1"]}, "labels/adjudicated")
  assert "decided already" in studies.fail("rcm_clinical", study, tmp_path / "data", "--check")


def test_what_cannot_be_read_is_left_out_and_told(study, tmp_path):
  bad = answers.Answer("unreadable", reason="bubble", note="no contact")
  label(study, "ann", {"s1": bad, "s2": bad})
  label(study, "bob", {"s1": answers.Answer("unreadable", reason="blurred")})
  out = studies.succeed("rcm_clinical", study, tmp_path / "data", "--check")
  assert "stacks      5 of" in out
  assert (
    "row 3: stack s1 is left out, it cannot be read (ann: bubble; no contact, bob: blurred)" in out
  )
  assert "row 4: stack s2 could not be read by all (ann: bubble; no contact)" in out
  label(study, "cy", {"s3": bad}, "labels/adjudicated")
  out = studies.succeed("rcm_clinical", study, tmp_path / "data", "--check")
  assert "stack s3 is left out" in out


def test_stacks_that_nobody_labelled_yet_are_left_out_and_told(study, tmp_path):
  for reader in EDGES:
    label(study, reader, {"s4": answers.Answer()})
  out = studies.succeed("rcm_clinical", study, tmp_path / "data", "--check")
  assert "1 of 6 stacks are left out, nobody has labelled them yet: s4" in out
  assert "stacks      5 of" in out


def test_a_study_that_nobody_labelled_is_refused(study, tmp_path):
  for reader in EDGES:
    label(study, reader, {f"s{k}": answers.Answer() for k in range(6)})
  line = studies.fail("rcm_clinical", study, tmp_path / "data", "--check")
  assert "nobody has labelled a stack yet" in line


def test_labels_of_two_kinds_are_a_choice(study, tmp_path):
  studies.write_table(study / "labels.csv", ("stack_id", "slice", "label"), [])
  assert "choose by --labels" in studies.fail("rcm_clinical", study, tmp_path / "d", "--check")
  labels = f"--labels={study / 'labels'}"
  assert "0 problems" in studies.succeed("rcm_clinical", study, tmp_path / "d", "--check", labels)


def test_the_page_counts_slices_from_0(study, tmp_path):
  line = studies.fail("rcm_clinical", study, tmp_path / "d", "--check", "--first_slice=1")
  assert "counts slices from 0" in line


def test_one_file_of_the_folder_is_labels_too(study, tmp_path):
  one = f"--labels={study / 'labels' / 'bob.csv'}"
  out = studies.succeed("rcm_clinical", study, tmp_path / "data", "--check", one)
  assert "readers     bob" in out


def test_a_stack_that_the_manifest_does_not_have_is_told(study, tmp_path):
  label(study, "ann", {"s9": answers.Answer("done", (0, 1, 2))})
  line = studies.fail("rcm_clinical", study, tmp_path / "data", "--check")
  assert "ann.csv" in line
  assert "'s9' is not in manifest.csv" in line


def test_errors_name_the_readers_file(study, tmp_path):
  studies.edit(study / "labels" / "bob.csv", "epidermis", "skin")
  line = studies.fail("rcm_clinical", study, tmp_path / "data", "--check")
  assert "bob.csv, row 2" in line
