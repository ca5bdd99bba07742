"""The evaluation on phantoms that nobody looked at: its rows, its statistics and its record."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import numpy as np
import pytest
from scipy import stats

from launch import study, sweep, table1
from launch.replication import evaluation, findings
from launch.runners import dispatch
from rcm_jax.evaluation import bootstrap, finished_runs, several_datasets
from rcm_jax.evaluation import predictions as predictions_lib
from rcm_jax.evaluation import scores as scores_lib
from rcm_jax.run import cnn_stages
from tfds_rcm.errors import UserError
from tfds_rcm.rcm_phantom import spec


@pytest.fixture(autouse=True)
def _at_the_root(monkeypatch):
  monkeypatch.chdir(Path(__file__).resolve().parent.parent)


def stack(method: str, seed: int, number: int, rng: np.random.Generator, errs: float):
  length = int(rng.integers(20, 30))
  first, second = sorted(rng.integers(3, length - 3, 2).tolist())
  labels = (np.arange(length) >= first).astype(int) + (np.arange(length) >= second + 1)
  shown = np.where(rng.uniform(size=length) < errs, rng.integers(0, 3, length), labels)
  probabilities = 0.05 + 0.85 * np.eye(3, dtype=np.float32)[shown]
  return predictions_lib.StackPrediction(
    method=method,
    seed=seed,
    input="whole stack",
    split="test",
    stack_id=f"s{number}",
    patient_id=f"p{number // 2}",
    depth_um=3.0 * np.arange(length, dtype=np.float32),
    labels=labels,
    probabilities=probabilities,
  )


def runs_on(dataset: str, seed: int, methods: dict[str, float]) -> finished_runs.FinishedRuns:
  predictions = {}
  for method, errs in methods.items():
    rng = np.random.default_rng([seed, len(method)])
    predictions[method] = {
      s: [stack(method, s, number, rng, errs) for number in range(16)] for s in (0, 1)
    }
  return finished_runs.FinishedRuns(dataset, predictions, {}, {})


FOUND = [
  runs_on(f"phantom {seed}", seed, {"ordered": 0.02 + 0.01 * seed, "toeplitz_d1": 0.2})
  for seed in range(4)
]


def scores():
  return {runs.dataset: evaluation._scores(runs) for runs in FOUND}


def test_a_mean_is_the_mean_over_phantoms_of_the_mean_over_seeds():
  known = scores()
  for measure in several_datasets.MEASURES:
    found = several_datasets.mean(known, "ordered", measure)
    by_dataset = []
    for runs in known.values():
      by_run = []
      for run in runs["ordered"]:
        error = np.abs(run.error_um).sum(0) / run.counted.sum(0)
        by_run.append(
          {
            "accuracy": run.confusion[:, 0].trace(axis1=1, axis2=2).sum()
            / run.confusion[:, 0].sum(),
            "inconsistent": run.inconsistent[:, 0].sum(),
            "paper_rule_epidermis_dej_um": error[scores_lib.PAPER_RULE, 0],
            "paper_rule_dej_dermis_um": error[scores_lib.PAPER_RULE, 1],
            "medians_epidermis_dej_um": error[2, 0],
            "medians_dej_dermis_um": error[2, 1],
          }[measure]
        )
      by_dataset.append(np.mean(by_run))
    assert found.value == pytest.approx(np.mean(by_dataset))
    assert list(found.by_dataset.values()) == pytest.approx(by_dataset)
    assert found.low <= found.value <= found.high


def test_an_interval_over_more_patients_is_narrower_as_the_root_of_their_number():
  rng = np.random.default_rng(0)
  whole = np.full((1, 60), 40.0)
  parts = []
  for number in range(9):
    weights = bootstrap.draw(60, number)
    parts.append(bootstrap.resample(rng.binomial(40, 0.8, (1, 60)).astype(float), whole, weights))
  widths = [
    np.ptp(bootstrap.studentised_interval(bootstrap.mean_of(p))) for p in (parts[:1], parts)
  ]
  assert widths[0] / widths[1] == pytest.approx(3, rel=0.2)
  one, alone = bootstrap.mean_of(parts[:1]), parts[0]
  for field, expected in zip(one, alone, strict=True):
    np.testing.assert_allclose(field, expected)


def test_differences_are_scipys_paired_t_tests_with_holms_correction():
  means = {
    method: {
      name: several_datasets.mean(scores(), method, name) for name in several_datasets.MEASURES
    }
    for method in ("ordered", "toeplitz_d1")
  }
  pairs = (("ordered", "toeplitz_d1"), ("toeplitz_d1", "ordered"), ("ordered", "absent"))
  found = several_datasets.differences(means, pairs)
  assert len(found) == 2 * len(several_datasets.COMPARED)
  for d in found:
    values = [list(means[m][d.measure].by_dataset.values()) for m in (d.first, d.second)]
    expected = stats.ttest_rel(*values)
    assert d.p_value == pytest.approx(expected.pvalue)
    assert (d.low, d.high) == pytest.approx(tuple(expected.confidence_interval()))
    assert d.p_holm == pytest.approx(min(2 * d.p_value, 1))
    assert d.datasets == 4


def test_two_phantoms_give_a_difference_without_a_test():
  few = dict(list(scores().items())[:2])
  means = {
    method: {name: several_datasets.mean(few, method, name) for name in several_datasets.MEASURES}
    for method in ("ordered", "toeplitz_d1")
  }
  (found, *_) = several_datasets.differences(means, [("ordered", "toeplitz_d1")])
  assert found.value > 0
  assert np.isnan([found.low, found.high, found.p_value, found.p_holm]).all()


def test_every_row_of_table_1_and_ours_is_evaluated_once_on_each_phantom():
  named = []
  for part in evaluation.PARTS:
    moved = study.on_phantom(
      evaluation.points(part, "paper_small"), "rcm_phantom/x+seed=2101", 2101
    )
    for job in sweep.fold(moved):
      assert job.fields["data.sources"] == ("rcm_phantom/x+seed=2101",)
      assert job.fields["cnn.seed"] == 2_101_000
      widths = job.fields["head.half_widths"]
      name = job.fields["name"]
      assert part == "whole_stacks" or len(widths) == 1
      toeplitz = name.startswith("toeplitz") and "regularised" not in name
      named += [f"toeplitz_d{width}" for width in widths] if toeplitz else [name]
  regularised = [f"{name}_regularised" for name in evaluation.REGULARISED]
  assert sorted(named) == sorted([*table1.METHODS, *findings.METHODS, *regularised, "depth_prior"])
  compared = {name for pair in evaluation.PAIRS for name in pair}
  assert compared == set(named) - {"depth_prior"} | {"depth_and_end"}
  assert not set(spec.EVALUATION_SEEDS) & set(spec.DEVELOPMENT_SEEDS)


def test_tables_and_a_figure_are_written_of_what_is_finished(tmp_path, monkeypatch):
  monkeypatch.setattr(evaluation.finished_runs, "gather", lambda workdir: (FOUND, []))
  evaluation.write(tmp_path, tmp_path)
  text = (tmp_path / "evaluation.md").read_text()
  assert "| ordered | 4 | 2 | " in text
  each = several_datasets.mean(scores(), "ordered", "accuracy").by_dataset.values()
  assert f" {100 * min(each):.1f} to {100 * max(each):.1f} " in text
  assert "| Accuracy, points | ordered | Toeplitz" in text
  assert (tmp_path / "evaluation.png").stat().st_size > 10_000
  assert "toeplitz_d1" not in (tmp_path / "evaluation_means.csv").read_text().split("\n")[0]


def test_a_changed_method_is_refused_on_phantoms_that_it_has_seen(tmp_path, monkeypatch):
  started = []
  monkeypatch.setattr(dispatch, "launch", lambda jobs, args: started.extend(j.name for j in jobs))
  monkeypatch.setattr(evaluation, "write", lambda workdir, out: None)
  command = ["--evaluate", f"--workdir={tmp_path}", f"--out={tmp_path}", "--parts", "ours"]
  study.main(command)
  assert len(started) == 2 * len(spec.EVALUATION_SEEDS)
  study.main(command)  # nothing has changed: it goes on
  used = json.loads((tmp_path / evaluation.USED).read_text())
  assert set(used) == {f"{s}/{row}" for s in spec.EVALUATION_SEEDS for row in findings.METHODS}
  assert all(row["revision"] and row["phantom"] == spec.VERSION for row in used.values())
  job = sweep.fold(study.on_phantom(evaluation.points("ours", "paper_small"), "x", 2101))[0]
  changed = dataclasses.replace(job, fields={**job.fields, "head.hidden": 65})
  with pytest.raises(UserError, match=r"saw its phantom with another configuration.*five seeds"):
    evaluation.spend(tmp_path, 2101, [changed])
  evaluation.spend(tmp_path, 2106, [changed])


def test_parts_of_the_other_kind_are_refused(tmp_path, capsys):
  with pytest.raises(SystemExit):
    study.main([f"--workdir={tmp_path}", "--evaluate", "--parts", "boundary"])
  assert "--parts: boundary; here there are whole_stacks" in capsys.readouterr().err


def test_a_cnn_that_saw_other_gray_levels_has_a_row_of_its_own():
  assert cnn_stages._row(sweep.load("configs/toeplitz_d1.py:demo")) == "inception_v3"
  for method in findings.METHODS:
    assert cnn_stages._row(sweep.load(f"configs/{method}.py:demo")) == "inception_v3_photometry"
