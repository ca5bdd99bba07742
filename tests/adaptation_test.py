"""The study of adaptation: what it trains, what it does not do again, what it writes."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from launch import adaptation
from launch.runners import dispatch
from rcm_jax import recalibrate, validate
from tfds_rcm import prepare
from tfds_rcm.errors import UserError
from tfds_rcm.rcm_phantom import anatomy, spec

FIGURES = {
  "accuracy": [0.8, 0.7, 0.9],
  "boundary_mae_um": {"epidermis_dej": [9.0, None, None], "dej_dermis": [11.0, 8.0, 14.0]},
  "interval_coverage": {"epidermis_dej": [0.9, 0.8, 1.0], "dej_dermis": [None, None, None]},
  "interval_width_um": {"epidermis_dej": 40.0, "dej_dermis": None},
  "calibration_error": 0.05,
}


@pytest.fixture
def study(tmp_path, monkeypatch):
  """Runs the command with nothing trained and nothing validated; returns what was asked for."""
  monkeypatch.chdir(Path(__file__).resolve().parent.parent)
  asked = {"jobs": [], "validated": [], "recalibrated": []}

  def validated(model, source, out, **options):
    asked["validated"].append((model.name, source))
    out.mkdir(parents=True)
    written = {"dataset": source, "all": FIGURES}
    (out / "validation.json").write_text(json.dumps(written))
    return written

  def recalibrated(model, source, out, **options):
    asked["recalibrated"].append((model.name, source, options["split"]))
    if "stacks=7," in source:
      raise UserError("too few patients")
    out.mkdir()
    (out / "sealed.json").touch()

  monkeypatch.setattr(dispatch, "launch", lambda jobs, args: asked["jobs"].extend(jobs))
  monkeypatch.setattr(validate, "run", validated)
  monkeypatch.setattr(recalibrate, "run", recalibrated)
  monkeypatch.setattr(adaptation.report, "to_json", lambda found: found)
  monkeypatch.setattr(prepare, "prepare_phantom", lambda *args: None)
  arguments = [f"--workdir={tmp_path / 'work'}", f"--out={tmp_path / 'out'}"]
  arguments += ["--stacks", "10", "30", "--seeds=2"]

  def run():
    for calls in asked.values():
      calls.clear()
    adaptation.main(arguments)
    return asked

  return run


def test_every_way_is_validated_on_the_same_stacks_of_other_people(study, tmp_path):
  asked = study()
  names = [job.name for job in asked["jobs"]]
  assert names == ["home", "scratch_10", "tuned_10", "scratch_30", "tuned_30"]
  jobs = dict(zip(names, asked["jobs"], strict=True))
  assert jobs["home"].overrides["seeds"] == (0, 1)
  assert "data.sources" not in jobs["home"].overrides
  for stacks in (10, 30):
    sources = {jobs[f"{way}_{stacks}"].overrides["data.sources"] for way in ("scratch", "tuned")}
    assert len(sources) == 1
    assert jobs[f"tuned_{stacks}"].overrides["init"] == str(tmp_path / "work/home")
    assert "init" not in jobs[f"scratch_{stacks}"].overrides
    [[source]] = sources
    phantom = spec.named(source.partition("/")[2])
    assert sum(phantom.stacks[:2]) == stacks
    assert (phantom.noise, phantom.section_um) == (2.0, 8.0)
  tested = {source for name, source in asked["validated"]}
  assert len(tested) == 2  # on the shifted instrument, and once at home
  [shifted] = [source for source in tested if "noise=2" in source]
  there = spec.named(shifted.partition("/")[2])
  assert there.stacks[2] == 60
  assert there.seed != spec.named(source.partition("/")[2]).seed
  assert len(asked["validated"]) == 1 + 1 + 4 + 1
  assert {split for *_, split in asked["recalibrated"]} == {"train,validation"}


def test_the_table_says_what_could_not_be_done(study, tmp_path):
  study()
  text = (tmp_path / "out/adaptation.md").read_text()
  assert text.count("| fine-tuned |") == 2
  assert "| recalibrated | 10 | - | - |" in text
  assert "10 stacks, recalibrated: too few patients." in text
  assert "80.0 (70.0, 90.0)" in text
  assert (tmp_path / "out/figures/adaptation.png").read_bytes().startswith(b"\x89PNG")


def test_what_was_validated_is_not_done_again(study):
  study()
  again = study()
  assert again["validated"] == []
  assert [source for _, source, _ in again["recalibrated"]] == [
    adaptation.local("paper_small", adaptation.SHIFT, 10)
  ]


def test_people_of_the_two_phantoms_are_many(study):
  local = spec.named(adaptation.local("paper_small", "", 10).partition("/")[2])
  patients = {a.patient_id for a in anatomy.draw_anatomies(local)}
  assert len(patients) >= 7


@pytest.mark.parametrize(
  ("extra", "message"),
  [(["--stacks", "3"], "at least 4 local stacks"), (["--method=hames"], "take a sequence head")],
)
def test_what_cannot_be_is_told(study, tmp_path, capsys, extra, message):
  with pytest.raises(SystemExit, match="1"):
    adaptation.main([f"--workdir={tmp_path}", *extra])
  assert message in capsys.readouterr().err
