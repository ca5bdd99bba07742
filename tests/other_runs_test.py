"""Whole runs of other kinds, from what one small run left in its caches."""

import csv
import json
import signal

from main_runs import SMALL, Runs, no_training, results, small, two_views
import numpy as np
import pytest

from rcm_jax.cnn import training as cnn_training
from rcm_jax.data import slices as slices_lib
from rcm_jax.heads import training as head_training
from rcm_jax.inference import bundle
from rcm_jax.run import pipeline
from rcm_jax.runtime.stage_cache import SEAL
from tfds_rcm.errors import UserError

pytestmark = pytest.mark.slow


def test_cnn_and_heads_are_tuned_after_the_two_stages(home, monkeypatch, tmp_path):
  monkeypatch.setattr(cnn_training, "train", None)
  config = small("end_to_end")
  config.data.data_dir = str(home / "data")
  config.update_from_flattened_dict({"end_to_end.epochs": 1, "end_to_end.cnn_rate": 1e-3})
  pipeline.run(config, tmp_path / "run", home / "cache")
  rows = [(row["method"], row["seed"]) for row in results(tmp_path / "run")["rows"]]
  methods = ("toeplitz_d1", "toeplitz_d1_end_to_end")
  assert sorted(rows) == [("inception_v3", 0), *((m, seed) for m in methods for seed in (0, 1))]
  assert tuple(bundle.load(tmp_path / "run/model").description.seeds) == (0, 1)


def test_views_are_averaged(home, monkeypatch, tmp_path):
  monkeypatch.setattr(cnn_training, "train", None)
  views = []
  of_one = head_training.Trained.probabilities

  def kept(trained, features):
    views.append(of_one(trained, features))
    return views[-1]

  monkeypatch.setattr(head_training.Trained, "probabilities", kept)
  pipeline.run(two_views(home), tmp_path / "run", home / "cache")
  rows = results(tmp_path / "run")["rows"]
  assert sorted((row["method"], row["seed"]) for row in rows) == [
    ("inception_v3", 0),
    ("ordered_textures", 0),
    ("ordered_textures", 1),
  ]
  assert all(row["inconsistent"]["total"] == 0 for row in rows if row["seed"] or row["ordered"])
  in_test = [of_members for of_members in views if of_members.shape[1] == 3]
  assert len(in_test) == 2  # a view each; there are three test stacks
  with (tmp_path / "run" / "predictions.csv").open(newline="") as file:
    lines = [
      [float(line[f"p_{name}"]) for name in ("epidermis", "dej", "dermis")]
      for line in csv.DictReader(file)
      if (line["method"], line["seed"], line["split"]) == ("ordered_textures", "1", "test")
    ]
  first = np.mean([of_members[1, 0] for of_members in in_test], axis=0)
  np.testing.assert_allclose(lines[:4], first[:4], atol=1e-4)
  # What is left for `predict` says the same of a stack.
  model = bundle.load(tmp_path / "run")
  assert model.description.views == ((0, 1),)
  by_seed = np.mean([of_members[:, 0] for of_members in in_test], axis=0)
  decoded = min((home / "cache").glob("decode-*"), key=lambda d: (d / SEAL).stat().st_mtime)
  test = slices_lib.load_slices(decoded)["test"]
  found = model.classify(test.slices[test.rows(0)])
  np.testing.assert_allclose(found, by_seed.mean(0)[: len(found)], atol=1e-3)


def test_a_baseline_needs_no_cnn(home, monkeypatch, tmp_path):
  no_training(monkeypatch)
  config = small("hames")
  config.data.data_dir = str(home / "data")
  config.seeds = (0,)
  pipeline.run(config, tmp_path, home / "cache")
  (row,) = results(tmp_path)["rows"]
  assert (row["method"], row["input"]) == ("hames", "single image")


def test_other_test_stacks_need_no_training(home, monkeypatch, tmp_path):
  no_training(monkeypatch)
  config = small("toeplitz_d1")
  config.data.data_dir = str(home / "data")
  others = SMALL["data.sources"][0].replace("4,2,3", "1,1,2") + "+seed=9+depth_step_um=5"
  config.data.test_sources = (others,)
  pipeline.run(config, tmp_path, home / "cache")
  read = results(tmp_path)
  assert read["dataset"]["name"] == f"{others} (trained on {SMALL['data.sources'][0]})"
  assert read["dataset"]["stacks"] == {"train": 4, "validation": 2, "test": 2}
  with (tmp_path / "predictions.csv").open(newline="") as file:
    lines = list(csv.DictReader(file))
  with (home / "run" / "predictions.csv").open(newline="") as file:
    usual = list(csv.DictReader(file))
  steps = {split: {float(x["depth_um"]) % 5 for x in lines if x["split"] == split}
           for split in ("validation", "test")}  # fmt: skip
  assert steps["test"] == {0}
  assert steps["validation"] != {0}
  assert [x for x in lines if x["split"] == "validation"] == [
    x for x in usual if x["split"] == "validation"
  ]


def test_heads_train_from_a_file_of_features(home, monkeypatch, tmp_path):
  monkeypatch.setattr(cnn_training, "train", None)
  config = small("features")
  config.data.data_dir = str(home / "data")
  pipeline.run(config, tmp_path / "features", home / "cache")
  config = small("toeplitz_d1")
  config.data.data_dir = str(tmp_path / "nothing there")
  config.features.file = str(tmp_path / "features/features.npz")
  pipeline.run(config, tmp_path / "run", tmp_path / "cache")
  usual, mine = results(home / "run"), results(tmp_path / "run")
  assert mine["dataset"] == usual["dataset"]
  for row, other in zip(mine["rows"], usual["rows"], strict=True):
    assert (row["method"], row["seed"]) == (other["method"], other["seed"])
    assert row["accuracy"] == pytest.approx(other["accuracy"], abs=0.05)  # float16 features
  kept, model = bundle.load(home / "run").description, bundle.load(tmp_path / "run")
  assert model.network is None
  assert model.description.encoder == "inception_v3"
  assert model.description.patients == kept.patients
  assert model.description.training.dataset == kept.training.dataset
  whole = (tmp_path / "features/features.npz").read_bytes()
  (tmp_path / "half.npz").write_bytes(whole[: len(whole) // 2])
  for path, text in (("half.npz", "not a whole file"), ("none.npz", "no such file")):
    config.features.file = str(tmp_path / path)
    with pytest.raises(UserError, match=text):
      pipeline.run(config, tmp_path / text, tmp_path / "cache")
  config = small("hames")
  config.features.file = str(tmp_path / "features/features.npz")
  with pytest.raises(UserError, match="'hames' needs images"):
    pipeline.run(config, tmp_path / "hames", tmp_path / "cache")


def test_fewer_training_stacks_are_trained_on(home, tmp_path):
  config = small("toeplitz_d1")
  config.data.data_dir = str(home / "data")
  config.update_from_flattened_dict({"cnn.epochs": 1, "head.epochs": 1, "data.train_stacks": 2})
  pipeline.run(config, tmp_path, home / "cache")
  assert results(tmp_path)["dataset"]["stacks"] == {"train": 2, "validation": 2, "test": 3}
  config.data.train_stacks = 5
  with pytest.raises(UserError, match=r"train_stacks: 5 is not between 1 and 4"):
    pipeline.run(config, tmp_path / "more", home / "cache")


def test_features_come_from_any_engine(home, monkeypatch, tmp_path):
  no_training(monkeypatch)
  config = small("features")
  config.data.data_dir = str(home / "data")
  kept = {}
  for engine in ("xla", "onnxruntime"):
    config.features.engine = engine
    pipeline.run(config, tmp_path / engine, home / "cache")
    kept[engine] = np.load(tmp_path / engine / "features.npz")
  usual, found = kept["xla"], kept["onnxruntime"]
  assert usual.files == found.files
  specs = [json.loads(path.read_text()) for path in (home / "cache").glob("extract-*/spec.json")]
  assert sum(spec.get("engine") == "onnxruntime" for spec in specs) == 2  # the test split apart
  for name in ("features", "probabilities"):  # both are float16
    np.testing.assert_allclose(found[name], usual[name], atol=1e-2 * np.abs(usual[name]).max())
  config.features.engine = "onnx"
  with pytest.raises(UserError, match=r"'onnx' is none of xla, onnxruntime; did you mean"):
    pipeline.run(config, tmp_path / "none", home / "cache")


def test_killed_and_asked_to_stop_the_same_command_ends_in_the_same_results(home, tmp_path):
  """Once in each training; the stages are not taken from the shared cache."""
  runs = Runs(tmp_path, home / "data")
  runs.stop_when(lambda: runs.began("train_cnn"), signal.SIGKILL)
  assert "stopped on request in train_cnn, after step" in runs.stop_when(
    lambda: runs.saved("train_cnn")
  )
  runs.stop_when(lambda: runs.began("train_heads"), signal.SIGKILL)
  assert not (runs.workdir / "results.json").exists()
  runs.finish()
  assert runs.results() == results(home / "run")
