"""One person under two ids is a problem, until a user says that they are two."""

import pytest

from tests import studies
from tfds_rcm.errors import UserError
from tfds_rcm.study import patients

ALIKE = [
  ("07", "7"), ("P1", "p1"), ("P 1", "P1"), ("P01", "P1"), ("P-01", "p_1"), ("A07B003", "a7b3"),
  ("7.0", "7"), ("Mu\u0308ller", "M\u00fcller"), ("P\u00a01", "P1"), ("000", "0"), ("Straße", "STRASSE"),
]  # fmt: skip
DIFFERENT = [
  ("1-11", "11-1"), ("1-11", "111"), ("P1", "P10"), ("P1", "Q1"), ("7.5", "75"), ("70", "7"),
  ("P100", "P1"), ("a", "b"),
]  # fmt: skip


@pytest.mark.parametrize(("one", "other"), ALIKE)
def test_alike(one, other):
  assert patients.alike({one: "row 2", "another": "row 3", other: "row 4"}) == [[one, other]]


@pytest.mark.parametrize(("one", "other"), DIFFERENT)
def test_different(one, other):
  assert patients.alike({one: "row 2", other: "row 3"}) == []


def test_the_message_names_all_and_ends_in_the_option_that_settles_it():
  places = {"07": "m.csv, row 2", "a": "m.csv, row 3", "7": "m.csv, row 4", "A": "m.csv, row 9"}
  with pytest.raises(UserError) as error:
    patients.check(places, ())
  assert "m.csv, row 2: " in str(error.value)
  assert "'07' (row 2) and '7' (row 4); 'a' (row 3) and 'A' (row 9)" in str(error.value)
  option = str(error.value).rpartition("--distinct_patients=")[2]
  patients.check(places, patients.parse_ids(option))
  with pytest.raises(UserError, match=r"'a' .* and 'A' .*--distinct_patients=07,7,a,A"):
    patients.check(places, ("07", "7"))
  with pytest.raises(UserError, match="no patient '8'"):
    patients.check(places, ("07", "7", "a", "A", "8"))


def test_ids_with_commas_go_through_the_option():
  ids = ("Doe, J", 'say "x"', "7")
  assert patients.parse_ids(patients.format_ids(ids)) == ids


def test_a_study_with_such_ids_is_refused_until_they_are_said_to_be_two(tmp_path):
  source, data = studies.write_study(tmp_path / "study"), tmp_path / "data"
  studies.edit(source / "manifest.csv", "s0,p0", "s0,07")
  studies.edit(source / "manifest.csv", "s3,p0", "s3,7")
  for check in ((), ("--check",)):
    line = studies.fail("rcm_clinical", source, data, *check)
    assert "manifest.csv, row 2: " in line
    assert line.endswith("give --distinct_patients=07,7")
  out = studies.succeed("rcm_clinical", source, data, "--check", "--distinct_patients=07,7")
  assert "6 of 4 patients" in out


def test_one_stack_under_two_paths_is_told(tmp_path):
  source = studies.write_study(tmp_path / "study")
  (source / "link").symlink_to(source / "p0")
  for path in ("p0/arm/../arm/VivaStack #0", "link/arm/VivaStack #0"):
    table = (source / "manifest.csv").read_text()
    studies.edit(source / "manifest.csv", "p1/arm/VivaStack #1", path)
    line = studies.fail("rcm_clinical", source, tmp_path / "data", "--check")
    assert f"row 3: path {path!r} is already in row 2" in line
    (source / "manifest.csv").write_text(table)
