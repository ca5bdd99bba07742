"""`--check` tells what is there and every fault with its place, and writes no dataset."""

import pytest

from tests import studies
from tfds_rcm import prepare


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


def test_a_split_without_validation_stacks_is_a_problem_unless_it_was_asked_for(source, tmp_path):
  rows = [(f"s{i}", "train" if i % 3 else "test") for i in range(6)]
  path = studies.write_table(tmp_path / "mine.csv", ("stack_id", "split", "Fold"), rows)
  out = check(source, tmp_path, f"--splits={path}", code=1)
  assert "mine.csv: no stack is in validation; give --split_sizes=4,0,2 if that is meant" in out
  assert "mine.csv, row 1: unknown column passed over: 'Fold'" in out
  assert "0 problems" in check(source, tmp_path, f"--splits={path}", "--split_sizes=4,0,2")
  assert "0 problems" in check(source, tmp_path, "--split_sizes=0,0,1")


def test_a_small_study_gets_a_validation_stack(tmp_path):
  source = studies.write_study(tmp_path / "small", num_stacks=3)
  assert "validation  1 stacks of 1 patients" in check(source, tmp_path)


def test_unknown_labels_of_all_stacks_are_one_problem(source, tmp_path):
  text = (source / "labels.csv").read_text().replace("epidermis", "2").replace("dermis", "4")
  (source / "labels.csv").write_text(text)
  (source / "p1/arm/VivaStack #1/v0000003.bmp").unlink()
  out = check(source, tmp_path, code=1)
  [gap, unknown] = [line for line in out.splitlines() if line.startswith("problem")]
  assert "number 3 is missing" in gap
  assert "'2' (6 rows, first in row 3), '4' (12 rows, first in row 6)" in unknown
  assert unknown.endswith("by '--label_map=2=?,4=?'")
  stack = source / "p1/arm/VivaStack #1"
  (stack / "v0000003.bmp").write_bytes((stack / "v0000002.bmp").read_bytes())
  assert "0 problems" in check(source, tmp_path, "--label_map=2=epidermis,4=dermis")


def test_columns_are_renamed_in_every_table(source, tmp_path):
  for table, old, new in (
    ("manifest.csv", "patient_id", "Patient code"), ("labels.csv", "label", "Layer"),
    ("labels.csv", "stack_id", "Stack"),
  ):  # fmt: skip
    studies.edit(source / table, old, new)
  names = "--columns=patient_id=patient code, label=Layer,stack_id=Stack"
  assert "0 problems" in check(source, tmp_path, names)
  for option, expected in (
    (
      "--columns=label=Layer,reader=Layr,patient_id=Patient code,stack_id=Stack",
      "no column 'Layr' in",
    ),
    ("--columns=patient_id=Patient code,labels=Layer", "did you mean 'label'"),
    ("--columns=label", "expected NAME=COLUMN"),
    ("--columns=label=Layer,slice=Layer", "each once"),
  ):
    assert expected in studies.fail("rcm_clinical", source, tmp_path / "data", "--check", option)


def test_help_names_the_datasets(capsys):
  with pytest.raises(SystemExit):
    prepare.main(["--help"])
  out = capsys.readouterr().out
  for name in prepare.COMMANDS:
    assert f"    {name}" in out
