"""A study read in shares: each stack once, interrupted or not, and one table in the end."""

import csv
import json

import bundles
import pytest
import tifffile

from rcm_jax import predict_study
from rcm_jax.inference import bundle
from tfds_rcm.errors import UserError

NAMES = ("s1", "S1", "ä/3", "s4", "s5")


@pytest.fixture(scope="module")
def study(tmp_path_factory):
  """A model, and five stacks of which the fourth cannot be read."""
  root = tmp_path_factory.mktemp("study")
  bundle.save(root / "run" / "model", bundles.made())
  rows = ["stack_id,patient_id,path,step_um,pixel_um"]
  for i, name in enumerate(NAMES):
    path = root / "study" / f"{i}.tif"
    path.parent.mkdir(exist_ok=True)
    tifffile.imwrite(path, bundles.slices(3 + i, seed=i), photometric="minisblack")
    rows.append(f"{name},p{i // 2},{path.name},3,0.5")
  (root / "study" / "3.tif").write_bytes(b"II")
  (root / "study" / "manifest.csv").write_text("\n".join(rows) + "\n", encoding="utf-8")
  return root


def argv(study, out, *more):
  return [f"--checkpoint={study / 'run'}", f"--source={study / 'study'}", f"--out={out}", *more]


def read(path):
  with path.open(newline="", encoding="utf-8") as file:
    return list(csv.DictReader(file))


@pytest.mark.slow
def test_shares_make_the_table_of_one_process(study, tmp_path, capsys, monkeypatch):
  assert predict_study.main(argv(study, tmp_path / "one")) == 1  # a stack cannot be read
  assert "5 stacks, 1 of which could not be read" in capsys.readouterr().out
  for share in ("2/3", "3/3"):
    assert predict_study.main(argv(study, tmp_path / "many", f"--share={share}")) == 0
    assert not (tmp_path / "many" / "stacks.csv").exists()
  assert "3 of 5 stacks are read" in capsys.readouterr().out
  for name, value in {"ID": 7, "MIN": 7, "MAX": 11, "STEP": 2, "COUNT": 3}.items():
    monkeypatch.setenv(f"SLURM_ARRAY_TASK_{name}", str(value))
  assert predict_study.main(argv(study, tmp_path / "many")) == 1
  whole, shared = (tmp_path / name / "stacks.csv" for name in ("one", "many"))
  assert whole.read_bytes() == shared.read_bytes()
  rows = read(whole)
  assert [row["stack_id"] for row in rows] == list(NAMES)
  assert [row["patient_id"] for row in rows] == ["p0", "p0", "p1", "p1", "p2"]
  assert [row["slices"] for row in rows] == ["3", "4", "5", "", "7"]
  assert str(study / "study" / "3.tif") in rows[3]["error"]
  assert [bool(row["error"]) for row in rows] == [False, False, False, True, False]
  for row in rows:
    if row["file"]:
      found = json.loads((whole.parent / row["file"]).read_text(encoding="utf-8"))
      depth = found["boundaries"][0]["depth_um"]
      assert row["epidermis_dej_depth_um"] == ("" if depth is None else f"{depth:.6g}")
      assert row["warnings"].split() == list(dict.fromkeys(w["code"] for w in found["warnings"]))


@pytest.mark.slow
def test_what_was_read_is_not_read_again(study, tmp_path, monkeypatch):
  calls, real = [], predict_study.read_stack

  def stop_at_third(predictor, path, **options):
    calls.append(path.name)
    if len(calls) == 3:
      raise KeyboardInterrupt
    return real(predictor, path, **options)

  monkeypatch.setattr(predict_study, "read_stack", stop_at_third)
  with pytest.raises(KeyboardInterrupt):
    predict_study.main(argv(study, tmp_path))
  predict_study.main(argv(study, tmp_path))
  assert calls == ["0.tif", "1.tif", "2.tif", "2.tif", "3.tif", "4.tif"]
  before = (tmp_path / "stacks.csv").read_bytes()
  tifffile.imwrite(study / "study" / "3.tif", bundles.slices(4), photometric="minisblack")
  try:
    assert predict_study.main(argv(study, tmp_path)) == 0  # only what could not be read is tried
  finally:
    (study / "study" / "3.tif").write_bytes(b"II")
  assert calls[6:] == ["3.tif"]
  rows = read(tmp_path / "stacks.csv")
  assert rows[3]["slices"] == "4"
  assert not rows[3]["error"]
  assert (tmp_path / "stacks.csv").read_bytes() != before


def test_another_model_s_answers_are_not_mixed_in(study, tmp_path, capsys):
  bundle.save(tmp_path / "other" / "model", bundles.made(on_textures=True))
  predict_study.main(argv(study, tmp_path / "out", "--share=4/4"))
  other = argv(study, tmp_path / "out")
  other[0] = f"--checkpoint={tmp_path / 'other'}"
  capsys.readouterr()
  assert predict_study.main(other) == 1
  said = capsys.readouterr().err
  assert said.startswith("error: ")
  assert said.count("\n") == 1
  assert str(study / "run") in said


@pytest.mark.parametrize(
  ("source", "header", "words"),
  [
    ("nosuch", None, "no such folder"),
    ("here", None, "--manifest"),
    ("here", "stack_id,pateint_id,path", "no column patient_id"),
  ],
)
def test_a_study_that_is_none_is_told_in_a_line(source, header, words, study, tmp_path, capsys):
  (tmp_path / "here").mkdir()
  if header:
    (tmp_path / "here" / "manifest.csv").write_text(f"{header}\ns1,p1,0.tif\n")
  options = [f"--checkpoint={study / 'run'}", f"--source={tmp_path / source}"]
  assert predict_study.main([*options, f"--out={tmp_path / 'out'}"]) == 1
  said = capsys.readouterr().err
  assert said.startswith(f"error: {tmp_path / source}")
  assert words in said
  assert "--columns" not in said  # which this command does not have
  assert said.count("\n") == 1
  assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("text", ["0/3", "4/3", "x/3", "2"])
def test_shares_that_are_none(text, study, tmp_path, capsys):
  with pytest.raises(SystemExit):
    predict_study.main(argv(study, tmp_path, f"--share={text}"))
  assert "--share" in capsys.readouterr().err


def test_an_array_that_is_no_range_has_to_say_its_shares():
  array = {"ID": "6", "MIN": "1", "MAX": "6", "STEP": "1", "COUNT": "3"}
  with pytest.raises(UserError, match="--share=I/N"):
    predict_study.default_share({f"SLURM_ARRAY_TASK_{k}": v for k, v in array.items()})
