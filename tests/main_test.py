"""Whole runs on a very small phantom, as a user types them."""

import csv
import json
import shutil
import subprocess

import decision_rule
from main_runs import ROOT, SMALL, command, no_training, results, small, two_views
import pytest

from rcm_jax import anatomy
from rcm_jax.cnn import extraction
from rcm_jax.cnn import training as cnn_training
from rcm_jax.data import slices as slices_lib
from rcm_jax.evaluation import attention_file, predictions
from rcm_jax.evaluation import results as results_lib
from rcm_jax.inference import bundle, predictor
from rcm_jax.reporting import plots
from rcm_jax.run import pipeline
from rcm_jax.runtime import devices
from rcm_jax.runtime.stage_cache import SEAL
from tfds_rcm.errors import UserError


def test_results_follow_the_contract(home):
  read = json.loads((home / "run" / "results.json").read_text())
  assert read["dataset"]["name"] == SMALL["data.sources"][0]
  assert read["dataset"]["stacks"] == {"train": 4, "validation": 2, "test": 3}
  runs = {(row["method"], row["input"], row["seed"]) for row in read["rows"]}
  assert runs == {("inception_v3", "single image", 0)} | {
    (f"toeplitz_d{d}", "whole stack", seed) for d in (0, 1) for seed in (0, 1)
  }
  for row in read["rows"]:
    assert 0 <= row["accuracy"] <= 1
    assert set(row["inconsistent"]) == {*anatomy.PAPER.transitions, "total"}
    assert set(row["boundary_mae_um"]) == set(row["boundary_n"]) == {"epidermis_dej", "dej_dermis"}
    assert row["train_seconds"] > 0


def test_accuracy_can_be_recomputed_from_the_csv_alone(home):
  with (home / "run" / "predictions.csv").open(newline="") as file:
    reader = csv.DictReader(file)
    assert tuple(reader.fieldnames) == predictions.columns(anatomy.PAPER)
    lines = list(reader)
  for row in results(home / "run")["rows"]:
    mine = [
      line
      for line in lines
      if (line["method"], line["seed"], line["split"]) == (row["method"], str(row["seed"]), "test")
    ]
    correct = sum(line["label"] == line["predicted"] for line in mine)
    assert row["accuracy"] == pytest.approx(correct / len(mine))


def test_everything_a_person_looks_at_is_there(home):
  names = {str(path.relative_to(home / "run")) for path in (home / "run").rglob("*")}
  for figure in ("cnn_training", "head_training", "boundary_errors", "strata", "toeplitz_weights"):
    assert f"figures/{figure}.png" in names
  assert {"config.json", "metrics.jsonl", "tensorboard"} <= names
  written = json.loads((home / "run" / "config.json").read_text())
  assert {"jax", "flax", "python"} <= set(written["versions"])
  assert written["config"]["name"] == "toeplitz_d1"


def test_a_second_run_answers_from_its_caches(home, monkeypatch):
  before = results(home / "run")
  no_training(monkeypatch)
  config = small("toeplitz_d1")
  config.data.data_dir = str(home / "data")
  pipeline.run(config, home / "run", home / "cache")
  assert results(home / "run") == before


def test_data_may_move(home, monkeypatch, tmp_path):
  for name in ("run", "data"):
    shutil.copytree(home / name, tmp_path / name)
  no_training(monkeypatch)
  config = small("toeplitz_d1")
  config.data.data_dir = str(tmp_path / "data")
  pipeline.run(config, tmp_path / "run", home / "cache")
  assert results(tmp_path / "run") == results(home / "run")
  written = json.loads((tmp_path / "run" / "config.json").read_text())
  assert written["config"]["data"]["data_dir"] == str(tmp_path / "data")


def test_only_the_first_process_draws_and_writes_results(home, monkeypatch, tmp_path):
  def fail(*args, **kwargs):
    raise AssertionError("drawn, or written, by another process")

  for module, names in (
    (plots, ("training_curves", "head_training", "strata_ribbon", "boundary_error_histograms")),
    (results_lib, ("write_run",)),
    (attention_file, ("write",)),
  ):
    for name in names:
      monkeypatch.setattr(module, name, fail)
  config = small("toeplitz_d1")
  config.data.data_dir = str(home / "data")
  with pytest.raises(AssertionError, match="by another process"):
    pipeline.run(config, tmp_path / "first", home / "cache")
  monkeypatch.setattr(devices, "is_first", lambda: False)
  pipeline.run(config, tmp_path / "other", home / "cache")
  assert not (tmp_path / "other").exists()


def test_another_head_trains_no_cnn(home, monkeypatch, tmp_path):
  monkeypatch.setattr(cnn_training, "train", None)
  monkeypatch.setattr(extraction, "extract", None)
  config = small("full_sequence")
  config.data.data_dir = str(home / "data")
  config.head.window = 3
  pipeline.run(config, tmp_path, home / "cache")
  inputs = {row["method"]: row["input"] for row in results(tmp_path)["rows"]}
  assert inputs == {"inception_v3": "single image", "full_sequence": "partial stack"}


@pytest.mark.parametrize(
  ("key", "value", "message"),
  [
    ("head.likelihood", "slices", "leave config.head.likelihood at 'boundaries'"),
    ("head.pca_components", 257, "config.head.pca_components: 257 is outside 1 to 256"),
    ("head.ema_decay", 1.0, "config.head.ema_decay: 1.0 is outside 0 to 1"),
    ("textures.components", 21, "config.textures.components: 21 is outside 1 to 20"),
    ("textures.gray_components", 33, "config.textures.gray_components: 33 is outside 1 to 32"),
    ("textures.gray_levels", 257, "config.textures.gray_levels: 257 is outside 1 to 256"),
    ("textures.views", ((1, 99),), "config.textures.views: down-sampling 99 is outside 1 to"),
    ("textures.views", ((1,), ()), "give each view at least one down-sampling"),
    ("textures.views", (), "give each view at least one down-sampling"),
    ("textures.views", (1, 2), "give each view at least one down-sampling"),
    ("textures.views", (("a",),), "give each view at least one down-sampling"),
  ],
)
def test_views_that_cannot_be_are_told_before_anything_trains(
  home, monkeypatch, tmp_path, key, value, message
):
  no_training(monkeypatch)
  config = two_views(home)
  config.update_from_flattened_dict({key: value})
  with pytest.raises(UserError, match=message):
    pipeline.run(config, tmp_path / "run", home / "cache")


def test_end_to_end_training_needs_all_features(home, monkeypatch, tmp_path):
  no_training(monkeypatch)
  config = small("end_to_end")
  config.data.data_dir = str(home / "data")
  config.head.pca_components = 8
  with pytest.raises(UserError, match="features change under the heads"):
    pipeline.run(config, tmp_path / "run", home / "cache")


def test_a_workdir_of_another_configuration_is_refused(home):
  config = small("toeplitz_d1")
  config.data.data_dir = str(home / "data")
  config.head.hidden = 9
  with pytest.raises(UserError, match=r"holds a run with config.head.hidden = 8, not 9"):
    pipeline.run(config, home / "run", home / "cache")


def test_a_run_from_before_a_key_was_there_is_the_run_of_its_default(home, tmp_path):
  config = small("toeplitz_d1")
  shutil.copytree(home / "run", tmp_path / "run")
  path = tmp_path / "run" / "config.json"
  written = json.loads(path.read_text())
  del written["config"]["head"]["l1_reduction"], written["config"]["cnn"]["count_include_pad"]
  path.write_text(json.dumps(written))
  config.data.data_dir = str(home / "data")
  pipeline._claim(tmp_path / "run", config)
  path.write_text(json.dumps(written))
  config.head.l1_reduction = "sum"
  with pytest.raises(UserError, match=r"holds a run with config.head.l1_reduction = mean, not sum"):
    pipeline._claim(tmp_path / "run", config)


@pytest.mark.parametrize(
  ("extra", "message"),
  [
    (["--config.head.half_width=3"], "did you mean --config.head.half_widths?"),
    (["--config.data.sources=('rcm_clinical',)"], "is not prepared; run: python -m tfds_rcm"),
  ],
)
def test_bad_input_is_one_line_and_exit_code_1(home, tmp_path, extra, message):
  done = subprocess.run(
    command(tmp_path / "w", tmp_path / "cache", home / "data", *extra),
    cwd=ROOT,
    capture_output=True,
    text=True,
    check=False,
  )
  assert done.returncode == 1
  (line,) = [line for line in done.stderr.splitlines() if not line.endswith(("…", " s"))]
  assert message in line


@pytest.mark.parametrize(
  ("change", "message"),
  [
    ({"pipeline": "haed"}, "'haed' is none of .*; did you mean 'head'"),
    ({"head.half_widths": (500,)}, "half_widths: 500 is outside 0 to"),
    ({"head.window": 2}, "window: 2 slices have no middle; give an odd number"),
    ({"head.attention": "toplitz"}, "did you mean 'toeplitz'"),
  ],
)
def test_a_method_that_cannot_be_is_told_before_anything_trains(
  home, monkeypatch, tmp_path, change, message
):
  no_training(monkeypatch)
  config = small("toeplitz_d1")
  config.update_from_flattened_dict({**change, "cnn.seed": 5})
  config.data.data_dir = str(home / "data")
  with pytest.raises(UserError, match=message):
    pipeline.run(config, tmp_path, home / "cache")


def test_a_mistake_does_not_use_up_the_workdir(home, monkeypatch, tmp_path):
  no_training(monkeypatch)
  config = small("toeplitz_d1")
  config.data.data_dir = str(home / "data")
  right = config.head.half_widths
  config.head.half_widths = (500,)
  with pytest.raises(UserError, match="half_widths"):
    pipeline.run(config, tmp_path, home / "cache")
  config.head.half_widths = right
  pipeline.run(config, tmp_path, home / "cache")
  kept = json.loads((tmp_path / "config.json").read_text())["config"]
  assert tuple(kept["head"]["half_widths"]) == right


def test_every_test_stack_gets_one_answer(home):
  said = predictor.Predictor(bundle.load(home / "run"))
  decoded = min((home / "cache").glob("decode-*"), key=lambda d: (d / SEAL).stat().st_mtime)
  test = slices_lib.load_slices(decoded)["test"]
  for stack in range(len(test.stack_id)):
    rows = test.rows(stack)
    found = said.predict(test.slices[rows], test.depth_um[rows])
    decision_rule.assert_holds(found.interpretation, found.boundaries, found.plan, found.depth_um)
