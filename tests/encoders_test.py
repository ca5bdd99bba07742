"""Features from any encoder: made by the example, trained on, and read again."""

from __future__ import annotations

import csv
import dataclasses
import json
import pathlib
import runpy
import sys

import jsonschema
import numpy as np
import onnx
from onnx import helper
import pytest

from rcm_jax import export, predict, validate
from rcm_jax.anatomy import PAPER
from rcm_jax.configs import full_sequence, hames, toeplitz_d1
from rcm_jax.data import feature_file, labelled
from rcm_jax.inference import bundle as bundle_lib
from rcm_jax.inference import model_card
from rcm_jax.inference.predictor import Predictor, StreamingPredictor
from rcm_jax.run import pipeline
from tests.main_runs import ROOT, SMALL, small
from tests.predict_test import SCHEMA
from tfds_rcm.errors import UserError
from tfds_rcm.study.splits import SPLITS

SIZE = 12  # features


def write_encoder(path):
  """A network of one convolution, as ONNX."""
  rng = np.random.default_rng(0)
  kernels = rng.normal(size=(SIZE, 3, 5, 5)).astype(np.float32)
  nodes = [
    helper.make_node("Conv", ["image", "kernels"], ["seen"], strides=[3, 3]),
    helper.make_node("Relu", ["seen"], ["active"]),
    helper.make_node("GlobalAveragePool", ["active"], ["mean"]),
    helper.make_node("Flatten", ["mean"], ["features"]),
  ]
  tensor = lambda name, shape: helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, shape)
  graph = helper.make_graph(
    nodes,
    "encoder",
    [tensor("image", [1, 3, 40, 40])],
    [tensor("features", [1, SIZE])],
    [helper.make_tensor("kernels", onnx.TensorProto.FLOAT, kernels.shape, kernels.ravel())],
  )
  opset = [helper.make_opsetid("", 17)]
  onnx.save(helper.make_model(graph, opset_imports=opset, ir_version=8), path)


@pytest.fixture(scope="module")
def encoded(home, tmp_path_factory):
  """The file that the example makes of the phantom."""
  root = tmp_path_factory.mktemp("encoded")
  write_encoder(root / "tiny.onnx")
  builder, _ = labelled.open_builder(SMALL["data.sources"][0], str(home / "data"), SPLITS)
  argv, sys.argv = (
    sys.argv,
    ["", str(root / "tiny.onnx"), str(builder.data_dir), str(root / "features.npz")],
  )
  try:
    runpy.run_path(str(ROOT / "examples/encode_stacks.py"))
  finally:
    sys.argv = argv
  return root / "features.npz"


@pytest.fixture(scope="module")
def trained(encoded):
  config = small(toeplitz_d1)
  config.features.file = str(encoded)
  pipeline.run(config, encoded.parent / "run", encoded.parent / "cache")
  return encoded.parent / "run"


def test_the_example_writes_what_is_read(encoded):
  found = feature_file.load(str(encoded))
  assert found.num_features == SIZE
  assert found.method == "tiny"
  assert [len(found.splits[name].stack_id) for name in ("train", "validation", "test")] == [4, 2, 3]
  encoder, stacks = feature_file.load_stacks(str(encoded))
  assert encoder == "tiny"
  assert sum(len(stack.depth_um) for stack in stacks) == sum(map(len, found.splits.values()))


@pytest.mark.slow
def test_heads_on_it_leave_a_model_that_reads_such_files(encoded, trained, tmp_path, capsys):
  model = bundle_lib.load(trained)
  assert model.network is None
  assert model.description.encoder == "tiny"
  assert model.description.head.num_features == SIZE
  card = model_card.markdown(model.description)
  assert f"features that tiny made, {SIZE} a slice" in card
  assert "It sees features and no images" in card
  arguments = [f"--checkpoint={trained}", f"--features={encoded}", f"--out={tmp_path}"]
  assert predict.main(arguments) == 0
  assert capsys.readouterr().err.count("→") == 9
  with (trained / "predictions.csv").open(newline="") as file:
    lines = [row for row in csv.DictReader(file) if row["method"] == model.description.method]
  stacks = {row["stack_id"] for row in lines if row["split"] == "test"}
  temperature = model.description.calibration.temperature
  for name in stacks:
    [path] = [p for p in tmp_path.glob("*.json") if p.stem.endswith(f"features-{name}")]
    result = json.loads(path.read_text())
    jsonschema.validate(result, SCHEMA)
    assert result["model"]["image_size"] is None
    assert result["stack"]["source"] == f"{encoded}, stack {name}"
    mine = np.array([[s["probabilities"][c] for c in PAPER.names] for s in result["slices"]])
    rows = [row for row in lines if row["stack_id"] == name]
    every = np.array([[float(row[f"p_{c}"]) for c in PAPER.names] for row in rows])
    mean = every.reshape(2, -1, len(PAPER)).mean(0) ** (1 / temperature)
    np.testing.assert_allclose(mine, mean / mean.sum(1, keepdims=True), atol=2e-4)
    html = path.with_suffix(".html").read_text()
    assert "data:image/jpeg" not in html
    assert '"images":[]' in html


def test_a_model_without_a_cnn_says_what_it_reads(encoded, trained, home, tmp_path, capsys):
  model = bundle_lib.load(trained)
  reader = Predictor(model)
  for ask in (
    lambda: reader.predict(np.zeros((4, 80, 80), np.uint8), np.arange(4)),
    lambda: StreamingPredictor(reader),
  ):
    with pytest.raises(UserError, match="reads features that tiny made"):
      ask()
  assert export.main([f"--checkpoint={trained}", f"--out={tmp_path}"]) == 1
  assert validate.main([f"--checkpoint={trained}", "--source=x", f"--out={tmp_path}"]) == 1
  assert capsys.readouterr().err.count("this model has no CNN") == 2
  with pytest.raises(UserError, match=rf"this model reads \[slices, {SIZE}\], those of tiny"):
    reader.predict_features(np.zeros((4, SIZE + 1), np.float32), np.arange(4))
  with pytest.raises(UserError, match="features of slice 2 hold NaN"):
    reader.predict_features(np.diag([1, 1, np.nan]) @ np.ones((3, SIZE)), np.arange(3))
  # The features of another encoder are refused by its name.
  other = [f"--checkpoint={home / 'run'}", f"--features={encoded}", f"--out={tmp_path / 'other'}"]
  assert predict.main(other) == 1
  assert "this model reads [slices, 256]" in capsys.readouterr().err


def test_a_stack_is_judged_by_its_features_alone(encoded, trained):
  model = bundle_lib.load(trained)
  assert len(model.familiar.centre) == SIZE
  strict = dataclasses.replace(model, familiar=model.familiar._replace(limit=np.full(5, -99.0)))
  stack = feature_file.load_stacks(str(encoded))[1][0]
  found = Predictor(strict).predict_features(stack.features, stack.depth_um)
  [message] = [w.message for w in found.warnings if w.code == "unfamiliar"]
  assert "single slices look unlike those of training" in message


@pytest.mark.slow
def test_heads_start_from_a_model_on_the_same_features(encoded, trained, tmp_path):
  config = small(toeplitz_d1)
  config.features.file, config.init = str(encoded), str(trained)
  config.head.epochs, config.head.learning_rates = 1, (0.0,)
  pipeline.run(config, tmp_path / "run", tmp_path / "cache")
  old, new = bundle_lib.load(trained), bundle_lib.load(tmp_path / "run")
  assert new.description.initial.startswith(old.description.method)
  same = full_sequence
  for module, message in ((same, "its heads have attention = toeplitz"), (hames, "starts from no")):
    config = small(module)
    config.features.file = str(encoded) if module is same else None
    config.init = str(trained)
    with pytest.raises(UserError, match=message):
      pipeline.run(config, tmp_path / module.__name__, tmp_path / "cache")


def changed(encoded, path, **change):
  with np.load(encoded) as stored:
    arrays = {name: stored[name] for name in stored.files}
  for name, edit in change.items():
    if edit is None:
      del arrays[name]
    else:
      arrays[name] = edit(arrays[name].copy() if name in arrays else None)
  np.savez(path, **arrays)
  return str(path)


def at(row, value):
  def edit(values):
    values = values.astype(object) if isinstance(value, str) else values
    values[row] = value
    return values.astype(str) if isinstance(value, str) else values

  return edit


@pytest.mark.parametrize(
  ("change", "message"),
  [
    ({"stack": None}, "no array 'stack'"),
    ({"label": None}, "no array 'label'"),
    ({"features": lambda f: f[:, 0]}, "expected floats, \\[slices, F\\]"),
    ({"features": at((7, 3), np.nan)}, "row 7 .*no numbers; encode the stack again"),
    ({"depth_um": lambda d: d[:-1]}, "depth_um has shape .*a row a slice"),
    ({"depth_um": at(5, -9.0)}, "depth_um of row 5 .*order slices shallow to deep"),
    ({"stack": at(3, "odd")}, "stack of row 4 is that of row 0 again"),
    (
      {"label": at(2, "subcutis")},
      "label of row 2 is 'subcutis'; expected stratum_corneum, epidermis",
    ),
    ({"split": at(0, "tran")}, "split of row 1 is 'train', that of its stack"),
    ({"split": lambda s: np.where(s == "train", "tran", s)}, "did you mean 'train'"),
    ({"patient": at(1, "odd")}, "patient of row 1 is 'odd'"),
    ({"split": lambda s: np.full(len(s), "train")}, "split validation has no stacks"),
    ({"patient": lambda p: np.full(len(p), "one")}, "patient one is in train and"),
    ({"probabilities": lambda _: np.ones((3, 3))}, "probabilities has shape"),
    ({"image_size": lambda _: np.array("big")}, "image_size is big; expected one number"),
  ],
)
def test_a_file_that_cannot_be_is_told_in_a_line(encoded, tmp_path, change, message):
  path = changed(encoded, tmp_path / "f.npz", **change)
  with pytest.raises(UserError, match=message) as told:
    feature_file.load(path)
  assert str(told.value).startswith(f"config.features.file: {path}: ")
  assert len(str(told.value).splitlines()) == 1


def test_labels_may_be_numbers_and_are_not_needed_for_reading(encoded, tmp_path):
  known = feature_file.load(str(encoded))
  number = {**{name: i for i, name in enumerate(PAPER.names)}, "stratum_corneum": 0}
  numbers = lambda label: np.array([number[name] for name in label.tolist()])
  again = feature_file.load(changed(encoded, tmp_path / "n.npz", label=numbers))
  for name, split in known.splits.items():
    np.testing.assert_array_equal(split.labels, again.splits[name].labels)
  path = changed(encoded, tmp_path / "r.npz", label=None, patient=None, split=None)
  assert len(feature_file.load_stacks(path)[1]) == 9


def test_pickles_are_refused(tmp_path):
  np.savez(tmp_path / "p.npz", features=np.ones((2, 2)), stack=np.array(["a", None], object))
  with pytest.raises(UserError, match="write texts as plain arrays of str"):
    feature_file.load(str(tmp_path / "p.npz"))


def test_the_example_is_as_short_as_promised():
  code = pathlib.Path(ROOT / "examples/encode_stacks.py").read_text().partition("import pathlib")[2]
  assert len([line for line in code.splitlines() if line.strip()]) <= 25
