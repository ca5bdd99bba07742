"""From predictions to results.json and back to tables, through files and the command line."""

from __future__ import annotations

import csv
import dataclasses
import io
import json
import re

import numpy as np
import pytest
import rich.console
from scipy import special
from sklearn import metrics as sk_metrics

from rcm_jax import evaluate
from rcm_jax.evaluation import attention_file, finished_runs, results
from rcm_jax.evaluation import predictions as predictions_lib
from rcm_jax.reporting import console_table
from tfds_rcm import errors

DATASET = {"name": "rcm_phantom/tiny", "stacks": {"test": 8}, "slices": {"test": 100}}


def run(method, sees, seed, noise, split="test", stacks=12):
  """One run's stacks: the same stacks for all methods and seeds, with noise of their own."""
  truth = np.random.default_rng(0 if split == "test" else 1)
  rng = np.random.default_rng([seed, len(method), split == "test"])
  out = []
  for i in range(stacks):
    n = int(truth.integers(9, 16))
    first, second = sorted(truth.choice(np.arange(2, n - 2), size=2, replace=False))
    labels = np.repeat([0, 1, 2], [first, second - first, n - second])
    logits = 2 * np.eye(3)[labels] + rng.normal(scale=noise, size=(n, 3))
    out.append(
      predictions_lib.StackPrediction(
        method=method,
        input=sees,
        seed=seed,
        split=split,
        stack_id=f"{split}{i}",
        patient_id=f"{split} patient {i // 2}",
        depth_um=3 * np.arange(n, dtype=np.float32),
        labels=labels,
        probabilities=special.softmax(logits, axis=-1).astype(np.float32),
      )
    )
  return out


def run_files(root):
  """A head's run (two methods, two seeds, the CNN's row besides) and the CNN's own run."""
  head = [p for s in range(2) for p in run("toeplitz_d1", "whole stack", s, 0.7)]
  head += [p for s in range(2) for p in run("toeplitz_d1", "whole stack", s, 0.7, "validation", 30)]
  cnn = run("inception_v3", "single image", 0, 1.5)
  results.write_run(root / "a" / "head", DATASET, head + cnn, versions={})
  results.write_run(root / "cnn", DATASET, cnn, versions={})
  results.write_run(root / "new", DATASET, run("mine", "whole stack", 0, 1.0), versions={})
  taps = np.array([0.1, 0.6, 0.3], np.float32)
  attention = np.eye(9, dtype=np.float32)
  attention_file.write(
    root / "a" / "head", {("toeplitz_d1", 0, "test0"): attention}, {("toeplitz_d1", 0): taps}
  )


def numbers(path):
  with open(path, newline="") as f:
    return list(csv.DictReader(f))


def _median_then_max(prediction):
  """The paper's rule, slice by slice: the median of three, then never shallower again."""
  x = prediction.predicted
  padded = np.concatenate([x[:1], x, x[-1:]])
  median = np.median([padded[:-2], padded[1:-1], padded[2:]], axis=0).astype(int)
  return np.maximum.accumulate(median)


def test_rows_are_what_scikit_learn_and_a_plain_loop_say():
  predictions = run("toeplitz_d1", "whole stack", 3, 1.5)
  validation = run("toeplitz_d1", "whole stack", 3, 1.5, "validation")
  [row] = results.summarize(predictions + validation, {("toeplitz_d1", 3): 12.5})
  labels = np.concatenate([p.labels for p in predictions])
  found = np.concatenate([p.predicted for p in predictions])
  assert row["accuracy"] == pytest.approx(sk_metrics.accuracy_score(labels, found))
  recall = sk_metrics.recall_score(labels, found, average=None)
  assert list(row["sensitivity"].values()) == pytest.approx(list(recall))
  counts = dict.fromkeys(("epidermis_dermis", "dej_epidermis", "dermis_epidermis", "dermis_dej"), 0)
  names = ("epidermis", "dej", "dermis")
  for p in predictions:
    for a, b in zip(p.predicted, p.predicted[1:]):
      if f"{names[a]}_{names[b]}" in counts:
        counts[f"{names[a]}_{names[b]}"] += 1
  assert row["inconsistent"] == counts | {"total": sum(counts.values())}
  errors = [
    [3 * np.argmax(np.append(x >= stratum, True)) for p, x in zip(predictions, strata)]
    for strata in ([p.labels for p in predictions], [_median_then_max(p) for p in predictions])
    for stratum in (1, 2)
  ]
  errors = np.abs(np.array(errors[:2]) - errors[2:])
  assert list(row["boundary_mae_um"].values()) == pytest.approx(list(errors.mean(1)))
  assert list(row["boundary_median_um"].values()) == list(np.median(errors, axis=1))
  for measure in ("boundary_mae_um", "boundary_median_um"):
    assert row[measure] == row["decoding"]["median_then_max"][measure]
  assert row["decoding"]["monotone"]["inconsistent"] == 0
  assert (row["method"], row["seed"], row["input"]) == ("toeplitz_d1", 3, "whole stack")
  assert row["train_seconds"] == 12.5
  assert row["boundary_n"] == {"epidermis_dej": 12, "dej_dermis": 12}


def test_perfect_predictions_and_absent_strata():
  perfect = [
    dataclasses.replace(p, probabilities=np.eye(3, dtype=np.float32)[p.labels])
    for p in run("m", "single image", 0, 0.0)
  ]
  [row] = results.summarize(perfect)
  assert row["accuracy"] == 1
  assert row["inconsistent"]["total"] == 0
  for decoding in row["decoding"].values():
    assert list(decoding["boundary_mae_um"].values()) == [0, 0]
  epidermis = [dataclasses.replace(p, labels=0 * p.labels) for p in perfect]
  [row] = results.summarize(epidermis)
  assert row["sensitivity"]["dermis"] is None
  assert row["boundary_mae_um"]["dej_dermis"] is None
  assert row["boundary_n"] == {"epidermis_dej": 0, "dej_dermis": 0}


def test_every_row_is_recomputable_from_the_csv_alone(tmp_path):
  predictions = run("toeplitz_d1", "whole stack", 0, 1.0) + run("kaur", "single image", 1, 2.0)
  rows = results.write_run(tmp_path, DATASET, predictions, versions={"jax": "0"})
  written = json.loads((tmp_path / "results.json").read_text())
  assert written == {"dataset": DATASET, "versions": {"jax": "0"}, "rows": rows}
  inputs = {"toeplitz_d1": "whole stack", "kaur": "single image"}
  back = predictions_lib.read_csv(tmp_path / "predictions.csv", inputs)
  assert results.summarize(back) == rows


def test_a_failed_write_leaves_no_results(tmp_path):
  results.write_run(tmp_path, DATASET, run("m", "whole stack", 0, 1.0), versions={})
  (tmp_path / "predictions.csv").unlink()
  (tmp_path / "predictions.csv").mkdir()
  with pytest.raises(errors.UserError, match="cannot be written"):
    results.write_run(tmp_path, DATASET, run("m", "whole stack", 0, 1.0), versions={})
  assert not (tmp_path / "results.json").exists()


def test_printed_table_names_methods_as_the_paper_does():
  rows = results.summarize(
    run("kaur", "single image", 0, 2.0)
    + run("toeplitz_d1", "whole stack", 0, 1.0)
    + run("toeplitz_d1", "whole stack", 1, 1.0)
    + run("mine[/]", "", 0, 1.0)
  )
  console = rich.console.Console(record=True, width=120, file=io.StringIO())
  console_table.print_table(rows, "[link=x]phantom[/b]", console)
  lines = console.export_text().splitlines()
  text = "\n".join(lines)
  assert "[link=x]phantom[/b]" in text  # as it stands in a file, not as markup
  assert "mine[/]" in text
  assert text.index("whole stack") < text.index("single image") < text.index("other")
  [toeplitz] = [line.split() for line in lines if "Toeplitz Att. (D = 1)" in line]
  mean = np.mean([r["accuracy"] for r in rows if r["method"] == "toeplitz_d1"])
  assert toeplitz[5:7] == ["2", f"{100 * mean:.1f}"]


def test_command_writes_tables_and_figures(tmp_path, capsys):
  run_files(tmp_path / "runs")
  (tmp_path / "runs" / "unfinished").mkdir()
  (tmp_path / "runs" / "unfinished" / "predictions.csv").write_text("method,seed,spl")
  (tmp_path / "runs" / "torn").mkdir()
  (tmp_path / "runs" / "torn" / "results.json").write_text('{"dataset": {"na')
  out = tmp_path / "out"
  assert evaluate.main([f"--runs={tmp_path / 'runs'}", f"--out={out}"]) == 0
  printed = capsys.readouterr().out.replace("\n", "")
  assert "unfinished: left out" in printed
  assert "torn: left out" in printed
  for figure in ("boundary_errors", "strata", "reliability", "toeplitz_weights", "attention"):
    assert (out / "figures" / f"{figure}.png").read_bytes().startswith(b"\x89PNG")
  table = numbers(out / "table1.csv")
  measured = [(row["method"], row["measured_on"]) for row in table]
  assert measured == [
    ("Toeplitz Att. (D = 1)", "rcm_phantom/tiny, 2 seeds"),
    ("Toeplitz Att. (D = 1)", "paper's 504 stacks"),
    ("mine", "rcm_phantom/tiny, 1 seed"),
    ("Inception-V3", "rcm_phantom/tiny, 1 seed"),
    ("Inception-V3", "paper's 504 stacks"),
  ]
  assert [row["input"] for row in table][::2] == ["Whole stack", "Whole stack", "Single image"]
  assert float(table[1]["accuracy_percent"]) == 88.07
  rows = json.loads((tmp_path / "runs/a/head/results.json").read_text())["rows"]
  ours = [r["accuracy"] for r in rows if r["method"] == "toeplitz_d1"]
  assert float(table[0]["accuracy_percent"]) == pytest.approx(100 * np.mean(ours))
  low, high = (float(table[0][f"accuracy_percent_{end}"]) for end in ("low", "high"))
  assert low <= 100 * np.mean(ours) <= high
  assert low < high
  for row in numbers(out / "table4_decoding.csv"):
    assert float(row["inconsistent_transitions_monotone"]) == 0
  assert len(numbers(out / "paired_tests.csv")) == 9  # three pairs, three measures
  models = [row["models"] for row in numbers(out / "table6_uncertainty.csv")]
  assert models == ["1", "ensemble of 2"]
  text = (out / "tables.md").read_text()
  assert text.startswith("# Measured on rcm_phantom/tiny")
  assert re.findall(r"^## Table (\d)", text, re.M) == list("123456")


def test_datasets_are_never_mixed(tmp_path):
  other = {**DATASET, "name": "rcm_dryad"}
  results.write_run(tmp_path / "a", DATASET, run("m", "whole stack", 0, 1.0), versions={})
  results.write_run(tmp_path / "b", other, run("m", "whole stack", 0, 1.0), versions={})
  datasets, notes = finished_runs.gather(tmp_path)
  assert [s.dataset for s in datasets] == ["rcm_dryad", "rcm_phantom/tiny"]
  assert not notes


@pytest.mark.parametrize("make", [False, True])
def test_nothing_to_evaluate_is_one_line_and_exit_code_one(tmp_path, capsys, make):
  runs = tmp_path / "runs"
  if make:
    (runs / "half").mkdir(parents=True)
    (runs / "half" / "predictions.csv").write_text("")
  assert evaluate.main([f"--runs={runs}", f"--out={tmp_path / 'out'}"]) == 1
  message = capsys.readouterr().err
  assert message.count("\n") == 1
  assert str(runs) in message
  assert not (tmp_path / "out").exists()
