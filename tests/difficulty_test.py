"""The table that the phantom's difficulty is set by."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import pytest

from launch import difficulty, sweep
from rcm_jax.evaluation import predictions as predictions_lib
from rcm_jax.evaluation import results


@pytest.fixture(autouse=True)
def _at_the_root(monkeypatch):
  monkeypatch.chdir(Path(__file__).resolve().parent.parent)


def test_one_job_a_setting_and_method():
  knobs = sweep.grid({"texture_contrast": [0.8, 1.0], "reader_disagreement": [1.0]})
  jobs = sweep.fold(difficulty.points("paper_small", knobs))
  assert [job.fields["name"] for job in jobs] == ["inception_v3", "hames"] * 2
  assert len({job.name for job in jobs}) == 4
  assert jobs[0].fields["data.sources"] == (
    "rcm_phantom/paper_small+texture_contrast=0.8+reader_disagreement=1.0",
  )


def _stack(split, right):
  probabilities = np.eye(3, dtype=np.float32)[[0, 1, 2, 2]]
  labels = np.array([0, 1, 2, 2] if right else [0, 1, 1, 1])
  return predictions_lib.StackPrediction(
    "hames", "single image", 0, split, f"{split}{right}", split, 3.0 * np.arange(4), labels,
    probabilities,
  )  # fmt: skip


def test_accuracy_is_that_of_validation_stacks(tmp_path):
  stacks = [_stack("validation", True), _stack("validation", False), _stack("test", False)]
  counts = {"train": 0, "validation": 2, "test": 1}
  dataset = {"name": "clinic", "stacks": counts, "slices": counts}
  results.write_run(tmp_path / "run", dataset, stacks, versions={})
  assert difficulty.validation_accuracy(tmp_path) == [("clinic", {("hames", "all"): 0.75})]


def test_lesions_stand_apart(tmp_path):
  name = "rcm_phantom/demo+lesion_fraction=0.5"
  lesions = difficulty.lesions_of(name)
  healthy, nevus = (next(s for s in lesions if lesions[s] == kind) for kind in ("none", "nevus"))
  stacks = [
    dataclasses.replace(_stack("validation", right), stack_id=stack_id)
    for stack_id, right in ((healthy, True), (nevus, False))
  ]
  stacks.append(_stack("test", True))
  counts = {"train": 0, "validation": 2, "test": 1}
  dataset = {"name": name, "stacks": counts, "slices": counts}
  results.write_run(tmp_path / "run", dataset, stacks, versions={})
  ((_, accuracies),) = difficulty.validation_accuracy(tmp_path)
  assert accuracies == {
    ("hames", "all"): 0.75, ("hames", "none"): 1.0, ("hames", "nevus"): 0.5
  }  # fmt: skip
