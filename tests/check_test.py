"""`--check` tells what is there and every fault with its place, and writes no dataset."""

import pytest

from tests import studies


@pytest.fixture(name="source")
def _source(tmp_path):
  return studies.write_study(tmp_path / "study")


def check(source, tmp_path, *options, code=0):
  found, out, err = studies.prepare("rcm_clinical", source, tmp_path / "data", "--check", *options)
  assert found == code, err
  assert not list((tmp_path / "data").rglob("*.csv"))
  assert not list((tmp_path / "data").rglob("*record*"))
  return out


def test_a_sound_study(source, tmp_path):
  out = check(source, tmp_path, "--split_sizes=2,2,2")
  for line in (
    "stacks      6 of 3 patients, 36 slices",
    "source      A (3), B (3)",
    "site        arm (6)",
    "classes     stratum_corneum 16.7 %, epidermis 16.7 %, dej 33.3 %, dermis 33.3 %",
    "slices      6 to 6 a stack, median 6",
    "pixels      12 x 12 (6)",
    "pixel, µm   0.5 (6)",
    "step, µm    3 (6)",
    "train       2 stacks of 1 patients; stratum_corneum 16.7 %",
    "0 problems, 0 warnings",
  ):
    assert line in out
  assert "disagree" not in out


def test_every_problem_is_listed_with_its_file(source, tmp_path):
  image = source / "p0/arm/VivaStack #0/v0000002.bmp"
  image.write_bytes(image.read_bytes()[:200])
  (source / "p1/arm/VivaStack #1/v0000003.bmp").unlink()
  studies.edit(source / "labels.csv", "s2,1,epidermis", "s2,1,muscle")
  studies.edit(source / "manifest.csv", "s3,p0", "s2,p0")
  out = check(source, tmp_path, code=1)
  problems = [line for line in out.splitlines() if line.startswith("problem")]
  for problem, parts in zip(problems, (
    ("manifest.csv, row 5", "'s2' is already in row 4"),
    ("labels.csv, row 20", "'s3' is not in manifest.csv"),
    ("manifest.csv, row 2", "v0000002.bmp", "copy or export it again"),
    ("manifest.csv, row 3", "v0000004.bmp", "number 3 is missing"),
    ("labels.csv, row 15", "unknown label: 'muscle' (row 15)"),
  ), strict=True):  # fmt: skip
    assert all(part in problem for part in parts), problem
  assert "5 problems" in out


def test_damage_that_only_decoding_finds(source, tmp_path):
  image = source / "p2/arm/VivaStack #5/v0000005.bmp"
  image.write_bytes(image.read_bytes()[:-10])
  assert "v0000005.bmp" in check(source, tmp_path, code=1)


def test_disagreements_of_readers_are_counted(source, tmp_path):
  text = (source / "labels.csv").read_text().splitlines()
  rows = [f"{line},ann" for line in text[1:]]
  rows += [f"{line},bob".replace("dej", "dermis") for line in text[1:13]]
  (source / "labels.csv").write_text("\n".join([f"{text[0]},reader", *rows]))
  out = check(source, tmp_path)
  assert "readers     ann, bob" in out
  assert "disagree    on 4 of the 12 slices that two or more read (33.3 %), in 2 stacks" in out
  assert "dej 33.3 %" in out  # ann comes first
  assert "dej 22.2 %" in check(source, tmp_path, "--readers=bob,ann")


def test_warnings_do_not_fail(source, tmp_path):
  studies.edit(source / "labels.csv", "s0,5,dermis", "s0,5,dej")
  out = check(source, tmp_path)
  assert "row 2: labels run backwards after slice 4" in out
  assert "0 problems, 2 warnings" in out  # the other: the counts of the splits


def test_options_that_make_no_sense(source, tmp_path):
  for option, expected in (
    ("--split_sizes=1,2", "expected 3 numbers"),
    ("--split_sizes=1,2,x", "expected 3 numbers"),
    ("--split_sizes=9,9,9", "add up to 27"),
    ("--label_map=dermis", "FOUND=STRATUM"),
    ("--value_range=5,1", "expected (lowest, highest)"),
    ("--manifest=nowhere.csv", "no such file"),
  ):
    line = studies.fail("rcm_clinical", source, tmp_path / "data", "--check", option)
    assert expected in line
