"""The study's sweeps, its findings, and one small study from nothing to its tables."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from launch import study, sweep
from launch.replication import ablations, findings, seeds
from launch.runners import dispatch
from rcm_jax.evaluation import finished_runs, paper_results
from rcm_jax.evaluation import predictions as predictions_lib

SOURCE = "rcm_phantom/paper_small"


@pytest.fixture(autouse=True)
def _at_the_root(monkeypatch):
  monkeypatch.chdir(Path(__file__).resolve().parent.parent)


def test_the_core_is_table_1_and_the_ordered_heads():
  folded = sweep.fold(study.core("paper_small", 5, 3))
  assert len(folded) == 11
  members = {job.fields["name"]: job.members for job in folded}
  once_a_cnn = {"inception_v3", "iv3_context", "hames", "kaur"}
  assert members.pop("toeplitz_d7") == 30
  assert members.pop("depth_prior") == 1
  assert set(findings.METHODS) < set(members)
  assert {count for method, count in members.items() if method not in once_a_cnn} == {5}
  seeds = {job.fields["name"]: len(job.fields["seeds"]) for job in folded}
  assert {seeds[method] for method in once_a_cnn} == {3}
  for job in folded:
    assert job.fields["data.sources"] == (SOURCE,)


@pytest.mark.parametrize("name", [name for name in ablations.ABLATIONS if name != "seeds"])
def test_an_ablation_varies_something_over_three_seeds(name):
  points = ablations.ABLATIONS[name]("paper_small", SOURCE)
  folded = sweep.fold(points)
  assert sum(job.members for job in folded) == len(points)
  assert len(points) % 3 == 0
  assert len(points) > 3
  assert len({job.name for job in folded}) == len(folded)


def test_another_seed_moves_the_phantom_and_every_training():
  points = study.on_phantom(study.core("paper_small", 2, 1), SOURCE + "+seed=1", 1)
  for job in sweep.fold(points):
    assert job.fields["data.sources"] == (SOURCE + "+seed=1",)
    assert set(job.fields["seeds"]) <= {1000, 1001}
    assert job.fields["cnn.seed"] == 1000
    assert job.fields["name"] in (*paper_results.METHODS, *findings.METHODS, "depth_prior")


def test_tests_of_other_domains_share_no_patient_with_training():
  for name in ("test_domain", "training_domain"):
    for point in ablations.ABLATIONS[name]("paper_small", SOURCE):
      assert "+seed=1000" in point["data.test_sources"][0]
      assert "+seed=1000" not in point["data.sources"][0]


def test_groups_of_seeds_by_hand():
  """Seeds that err in slices of their own: means stay where they are, ensembles err nowhere."""
  labels = np.array([0, 0, 0, 1, 1, 1, 2, 2, 2, 2])

  def predicted(seed):
    strata = labels.copy()
    strata[[seed, seed + 5]] = (labels[[seed, seed + 5]] + 1) % 3
    return predictions_lib.StackPrediction(
      method="toeplitz_d1",
      seed=seed,
      input="whole stack",
      split="test",
      stack_id="s",
      patient_id="p",
      depth_um=3.0 * np.arange(10, dtype=np.float32),
      labels=labels,
      probabilities=np.eye(3, dtype=np.float32)[strata],
    )

  runs = range(5)
  run = finished_runs.FinishedRuns(
    "here", {"toeplitz_d1": {s: [predicted(s)] for s in runs}}, {}, {}
  )
  table = seeds.table(run, "toeplitz_d1", "seeds", "title")
  values = [[cell.value for cell in row] for row in table.rows]
  assert [row[:4] for row in values] == [
    [1, 5, 80, 80],
    [2, 2, 80, 80],
    [3, 1, 80, 80],
    [5, 1, 80, 80],
  ]
  assert [row[4] for row in values if row[0] != 2] == [80, 100, 100]  # two that differ tie
  assert values[2][5:] == [0.0, 0.0, 0.0]
  assert values[0][5] > 0
  assert "standard deviation is 0.00 points" in table.notes[0]


def _row(method, accuracy, inconsistent, errors, own=None, monotone=None):
  def decoded(values):
    return {"boundary_mae_um": dict(zip(("epidermis_dej", "dej_dermis"), values, strict=True))}

  return {
    "method": method,
    "accuracy": accuracy / 100,
    "inconsistent": {"total": inconsistent},
    "decoding": {
      "median_then_max": decoded(errors),
      "posterior_median": decoded(own or errors),
      "monotone": decoded(monotone or errors),
    },
  }


def _papers_rows():
  return [
    _row(name, x.accuracy, x.inconsistent, x.mae_um or (None, None))
    for name, x in findings.papers().items()
    for _ in range(2)
  ]


def test_the_papers_own_figures_bear_out_every_finding():
  figures = findings.measured(_papers_rows())
  for finding in findings.FINDINGS:
    assert finding.holds(figures), finding.claim
    assert finding.shown(figures) == finding.shown(findings.papers())


@pytest.mark.parametrize(
  ("index", "changed"),
  [
    (0, {"iv3_context": (80, 3)}),
    (1, {"partial_sequence": (80, 3)}),
    (2, {"full_sequence": (87, 3)}),
    (3, {"kaur": (99, 3)}),
    (4, {"toeplitz_d7": (89, 3)}),
    (5, {"inception_v3": (84.87, 26)}),
    (6, {"inception_v3": (86, 68)}),
  ],
)
def test_a_finding_falls_with_its_figures(index, changed):
  rows = [row for row in _papers_rows() if row["method"] not in changed]
  rows += [_row(name, *values, (1.0, 2.0)) for name, values in changed.items()]
  held = [finding.holds(findings.measured(rows)) for finding in findings.FINDINGS]
  assert not held[index]


def test_findings_name_what_was_not_reached():
  rows = [*_papers_rows(), _row("ordered", 88, 0, (5, 9), own=(5.0, 8.5))]
  text = findings.to_markdown(rows, "a phantom")
  assert "(-13 and -4 %) | **no** |" in text
  assert "The ordered head has no impossible transition | 0.0 | yes |" in text
  rows[-1] = _row("ordered", 88, 0, (5, 9), own=(5.0, 7.9))
  assert "(-13 and -11 %) | yes |" in findings.to_markdown(rows, "a phantom")
  assert "textures" not in findings.to_markdown(rows, "a phantom")
  rows.append(_row("ordered_textures", 88, 0, (5, 9), own=(5.0, 8.5)))
  assert "textures beside the CNN's | 5.00 and 8.50 µm" in findings.to_markdown(rows, "a phantom")
  rows = [
    _row(name, 88, 0, (7, 9), monotone=(7, 9 + more)) for name, more in (("a", 0.04), ("b", 0))
  ]
  text = findings.to_markdown(rows, "a phantom")
  assert "epidermis-DEJ in 2, DEJ-dermis in 1 of 2 methods; at most 0.04 µm more | **no** |" in text
  assert "epidermis-DEJ in 2, DEJ-dermis in 2 of 2 methods | yes |" in text  # medians


def test_a_dry_run_says_what_each_part_costs(tmp_path, capsys):
  study.main([f"--workdir={tmp_path}", f"--out={tmp_path / 'out'}", "--dry-run"])
  out = capsys.readouterr().out
  for part in (study.CORE, *ablations.ABLATIONS):
    assert f"{part}: " in out
  assert list(tmp_path.iterdir()) == []


def test_a_part_runs_its_jobs_below_its_name_and_writes_its_table(tmp_path, monkeypatch):
  started = []

  def launched(folded, args):
    del args
    started.extend(job.name for job in folded)

  monkeypatch.setattr(dispatch, "launch", launched)
  written = []
  write = lambda part, folded, workdir, out: written.append((part, workdir, out))
  monkeypatch.setattr(study, "_write_ablation", write)
  study.main([f"--workdir={tmp_path}", "--parts", "boundary", "feedback"])
  where = (tmp_path, tmp_path / "tables")  # not over the tables of the checkout
  assert written == [("boundary", *where), ("feedback", *where)]
  assert {name.split("/")[0] for name in started} == {"boundary", "feedback"}
