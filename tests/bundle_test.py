"""A trained model survives its journey whole, or says in a line that it did not."""

from __future__ import annotations

import dataclasses
import json
import pathlib
import shutil

import bundles
from flax import nnx
import jax
import jax.numpy as jnp
import numpy as np
import precision
import pytest

from rcm_jax.data import batches
from rcm_jax.data import slices as slices_lib
from rcm_jax.evaluation import calibration as calibration_lib
from rcm_jax.evaluation.predictions import StackPrediction
from rcm_jax.heads.attention import AttentionSpec
from rcm_jax.heads.head import Head
from rcm_jax.inference import bundle, describe, interpretation, model_card
from rcm_jax.inference.description import Description
from rcm_jax.runtime import stage_cache
from rcm_jax.textures import encoder as texture_encoder
from tfds_rcm.errors import UserError


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
  made = bundles.made()
  directory = tmp_path_factory.mktemp("run") / "model"
  bundle.save(directory, made)
  return directory


@pytest.mark.parametrize("on_textures", [False, True])
def test_what_is_saved_is_loaded(tmp_path, on_textures):
  made = bundles.made(1, on_textures)
  bundle.save(tmp_path, made)
  loaded = bundle.load(tmp_path)
  assert loaded.description == made.description
  leaves = lambda b: jax.tree.leaves(
    (nnx.state(b.network, nnx.Param, nnx.BatchStat), b.heads, b.encoders, b.view_heads)
  )
  for ours, theirs in zip(leaves(loaded), leaves(made), strict=True):
    np.testing.assert_array_equal(ours, theirs)


def test_a_run_is_named_by_its_work_directory(saved):
  assert bundle.load(saved.parent).description == bundles.DESCRIPTION


def test_saving_again_replaces_the_model_and_ignores_a_half_written_one(saved, tmp_path):
  shutil.copytree(saved, tmp_path / "model")
  (tmp_path / ".model.part").mkdir()
  (tmp_path / ".model.part" / "bundle.json").write_text("{")
  made = bundles.made()
  renamed = dataclasses.replace(made.description, method="another")
  bundle.save(tmp_path / "model", dataclasses.replace(made, description=renamed))
  assert bundle.load(tmp_path).description.method == "another"
  assert [path.name for path in tmp_path.iterdir()] == ["model"]


def test_the_ensemble_is_the_mean_of_its_members():
  made, stack = bundles.made(), bundles.slices(11)
  features = jnp.asarray(made.features(stack))
  graph = nnx.split(Head(bundles.HEAD, nnx.Rngs(0)))[0]

  def one_by_one(heads, features):
    expected = []
    for i, half_width in enumerate(bundles.DESCRIPTION.half_widths):
      head = nnx.merge(graph, jax.tree.map(lambda leaf: leaf[i], heads))
      logits = head(features, jnp.ones(11, bool), half_width=half_width)
      expected.append(jax.nn.softmax(logits))
    return jnp.stack(expected)

  found = made.classify(stack)
  exact, plain = precision.references(one_by_one, made.heads, features)
  precision.assert_close(found, exact.mean(0), plain.mean(0))
  assert np.abs(found - exact[0]).max() > 1e-3


def test_views_of_textures_are_members_as_good_as_those_on_the_cnn():
  made, stack = bundles.made(1, True), bundles.slices(11)
  cnn = jax.jit(made.network.features)(jnp.asarray(stack[..., None] / 127.5 - 1, jnp.float32))
  encoded = [
    texture_encoder.encode(encoder, stack, spec.downsampling)
    for spec, encoder in zip(bundles.TEXTURES, made.encoders, strict=True)
  ]
  together = np.concatenate([cnn, *encoded], axis=1)
  assert made.num_features == together.shape[1] == 256 + 5 + 2 + 3
  np.testing.assert_allclose(made.features(stack), together, rtol=1e-3, atol=1e-3)
  seen = [cnn, *(np.concatenate([encoded[i] for i in view], axis=1) for view in bundles.VIEWS)]
  found = []
  for values, heads in zip(seen, [made.heads, *made.view_heads], strict=True):
    spec = dataclasses.replace(made.description.head, num_features=values.shape[1])
    for i, half_width in enumerate(bundles.DESCRIPTION.half_widths):
      head = bundles.head_of(spec, jax.tree.map(lambda leaf, i=i: leaf[i], heads))
      logits = jax.jit(head)(jnp.asarray(values), jnp.ones(11, bool), half_width=half_width)
      found.append(jax.nn.softmax(logits))
  np.testing.assert_allclose(made.classify(stack), np.mean(found, axis=0), atol=1e-4)
  assert np.abs(np.mean(found[:2], axis=0) - np.mean(found, axis=0)).max() > 1e-2


def test_a_description_without_textures_is_one_of_a_model_without():
  fields = json.loads(bundles.DESCRIPTION.to_json())
  del fields["textures"], fields["views"]
  assert Description.from_json(json.dumps(fields)) == bundles.DESCRIPTION


@pytest.mark.parametrize("on_textures", [False, True])
def test_a_slice_has_its_features_in_any_batch(on_textures):
  made, stack = bundles.made(1, on_textures), bundles.slices(bundle.CNN_BATCH + 3)
  one_by_one = np.concatenate([made.features(stack[t : t + 1]) for t in (0, 7, len(stack) - 1)])
  together = made.features(stack)[[0, 7, len(stack) - 1]]
  layers = 94  # each rounds, in another order of sums
  precision.assert_close(together, np.float64(one_by_one), factor=layers)


@pytest.mark.parametrize("context", [1, 3, 5])
def test_neighbours_are_those_of_training(context):
  stack = bundles.slices(6, size=4)
  split = slices_lib.Slices(
    slices=stack,
    labels=np.zeros(6, np.int8),
    depth_um=np.arange(6.0),
    stack=np.zeros(6, int),
    stack_id=("a",),
    patient_id=("b",),
  )
  rows = np.array([0, 1, 3, 5])
  np.testing.assert_array_equal(
    bundle.neighbours(stack, rows, context), batches.with_context(split, rows, context)
  )


def _damage(directory):
  largest = max((p for p in directory.rglob("*") if p.is_file()), key=lambda p: p.stat().st_size)
  content = bytearray(largest.read_bytes())
  content[len(content) // 2] ^= 1
  largest.write_bytes(content)


def _rewrite(**changes):
  def change(directory):
    path = directory / bundle.DESCRIPTION
    fields = {**json.loads(path.read_text()), **changes}
    path.write_text(json.dumps({k: v for k, v in fields.items() if v is not None}))
    stage_cache.seal(directory)

  return change


@pytest.mark.parametrize(
  ("change", "message"),
  [
    (_damage, "missing or damaged"),
    (lambda d: shutil.rmtree(d / bundle.WEIGHTS), "missing or damaged"),
    (lambda d: (d / "sealed.json").unlink(), "missing or damaged"),
    (lambda d: (d / "sealed.json").write_text("[]"), "missing or damaged"),
    (lambda d: (d / "sealed.json").write_text('{"files": []}'), "missing or damaged"),
    (lambda d: (d / "sealed.json").write_text('{"files": {"a": 1}}'), "missing or damaged"),
    (lambda d: (d / bundle.DESCRIPTION).unlink(), "no model in it"),
    (_rewrite(format=99), "not of format 1"),
    (_rewrite(strata=["dermis", "dej", "epidermis"]), "strata"),
    (_rewrite(method=None), "method"),
    (_rewrite(seeds=[0, 1, 2]), "half_widths and seeds"),
    (_rewrite(seeds=[0, 1, 2], half_widths=[0, 1, 1]), "does not fit"),
  ],
)
def test_a_damaged_model_is_told_in_one_line(saved, tmp_path, change, message):
  directory = tmp_path / "model"
  shutil.copytree(saved, directory)
  change(directory)
  with pytest.raises(UserError, match=message) as caught:
    bundle.load(directory)
  assert str(directory) in str(caught.value)
  assert "\n" not in str(caught.value)


def _set(path, value):
  """Sets a field, or takes it away."""

  def change(fields):
    *outer, name = path.split(".")
    for key in outer:
      fields = fields[int(key) if key.isdigit() else key]
    if value is MISSING:
      del fields[name]
    else:
      fields[int(name) if name.isdigit() else name] = value

  return change


MISSING = object()
MALFORMED = [
  ("calibration.temperature", float("nan")),
  ("calibration.temperature", 0),
  ("calibration.temperature", "1"),
  ("calibration.temperature", True),
  ("calibration.margin_um.0", float("inf")),
  ("calibration.margin_um", [1.0]),
  ("calibration.margin_um.1", None),
  ("calibration.coverage", 1.5),
  ("calibration.boundary_temperature", -1.0),
  ("calibration.boundary_temperature", None),
  ("calibration", MISSING),
  ("calibration", []),
  ("calibration.width", 3),
  ("image_shape", [80]),
  ("image_shape.0", 10**9),
  ("image_shape.1", -80),
  ("image_shape.1", 80.5),
  ("cnn.width", 1e30),
  ("cnn.width", -1),
  ("cnn.context", 2),
  ("cnn.context", MISSING),
  ("head.hidden", 10**400),
  ("head.hidden", 0),
  ("head.hidden", MISSING),
  ("head.cell", "transformer"),
  ("head.num_features", 255),
  ("head.window", 2),
  ("head", None),
  ("seeds", []),
  ("seeds", [0]),
  ("seeds", [0] * 100_000),
  ("half_widths.0", 7),
  ("training.step_um", [0, float("inf"), 1]),
  ("training.gray_mean.0", 256),
  ("training.stacks", {"train": -1}),
  ("training.wide_um", MISSING),
  ("figures.accuracy", "good"),
  ("textures", [{"patch": 7}]),
  ("views", [[0]]),
  ("method", 7),
  ("format", "one"),
  ("format", MISSING),
  ("strata", MISSING),
  ("more", 1),
]


@pytest.mark.parametrize(("path", "value"), MALFORMED)
def test_a_malformed_description_is_told_by_its_field(path, value):
  fields = json.loads(bundles.DESCRIPTION.to_json())
  _set(path, value)(fields)
  with pytest.raises(ValueError, match=r".") as caught:
    Description.from_json(json.dumps(fields))
  message = str(caught.value)
  assert path.rstrip("0123456789.").rpartition(".")[2].split("_")[0] in message
  assert "\n" not in message
  assert len(message) < 200


@pytest.mark.parametrize("text", ["", "[]", "null", "7", "{", '"', "[" * 100_000, "\udcff"])
def test_what_is_no_description_is_told(text):
  with pytest.raises(ValueError, match=r"."):
    Description.from_json(text)


@pytest.mark.slow
def test_sizes_that_the_weights_do_not_have_are_never_made(saved, tmp_path):
  """A head of 60,000 units would take 43 GB a member."""
  directory = shutil.copytree(saved, tmp_path / "model")
  fields = json.loads((directory / bundle.DESCRIPTION).read_text())
  fields["head"]["hidden"], fields["cnn"]["width"] = 60_000, 8.0
  (directory / bundle.DESCRIPTION).write_text(json.dumps(fields))
  bundle.stage_cache.seal(directory)
  with pytest.raises(UserError, match="does not fit") as caught:
    bundle.load(directory)
  assert "\n" not in str(caught.value)


def test_a_description_of_the_first_release_is_read():
  text = (pathlib.Path(__file__).parent / "data" / "bundle_1.json").read_text()
  description = Description.from_json(text)
  assert description.training.first_um == (0.0, 0.0)
  assert description.measured_coverage == (
    pytest.approx(0.107, abs=1e-3),
    pytest.approx(0.786, abs=1e-3),
  )
  assert Description.from_json(description.to_json()) == description
  assert "epidermis–DEJ 11%, DEJ–dermis 79%" in model_card.markdown(description)


def test_slices_of_another_size_are_refused():
  with pytest.raises(UserError, match="96 x 96 pixels; this model sees 80 x 80"):
    bundles.made().classify(bundles.slices(2, size=96))


def test_location_attention_tells_its_longest_stack():
  head = dataclasses.replace(
    bundles.HEAD, attention=AttentionSpec("location", units=4), max_slices=20
  )
  made = dataclasses.replace(
    bundles.made(), description=dataclasses.replace(bundles.DESCRIPTION, head=head)
  )
  assert made.padded_length(18) == 20  # not 24, which it has no scores for
  with pytest.raises(UserError, match="at most 20"):
    made.padded_length(21)


def _predictions(patients):
  labels = np.repeat([0, 1, 2], 4).astype(np.int32)
  probabilities = np.full((12, 3), 0.1, np.float32)
  probabilities[np.arange(12), labels] = 0.8
  return [
    StackPrediction(
      "m",
      "whole stack",
      0,
      "validation",
      f"s{i}",
      f"p{i}",
      np.arange(12.0) * 3,
      labels,
      probabilities,
    )
    for i in range(patients)
  ]


@pytest.mark.parametrize(("patients", "coverage"), [(9, 0.9), (7, 0.8), (5, 0.8)])
def test_intervals_promise_what_the_validation_patients_suffice_for(patients, coverage):
  calibration, wide_um = describe.calibration_of(_predictions(patients))
  assert calibration.coverage == coverage
  assert np.isfinite(calibration.margin_um).all()
  assert all(width >= 0 for width in wide_um)


def test_few_validation_patients_give_no_interval():
  _, wide_um = describe.calibration_of(_predictions(calibration_lib.MIN_PATIENTS - 1))
  assert wide_um is None


def test_figures_are_those_of_what_predict_shows():
  """Scored with the boundary temperature that `predict` uses, against a by-hand count."""
  rng = np.random.default_rng(0)
  test = []
  for p in _predictions(6):
    logits = np.log(p.probabilities) + rng.normal(scale=3.0, size=p.probabilities.shape)
    probabilities = np.exp(logits) / np.exp(logits).sum(1, keepdims=True)
    test.append(dataclasses.replace(p, probabilities=probabilities.astype(np.float32)))
  calibration = bundles.DESCRIPTION.calibration._replace(boundary_temperature=6.0)
  figures = describe.figures_of(calibration, test)
  errors, right = [], []
  for p in test:
    found = jax.device_get(
      jax.jit(interpretation.interpret)(p.probabilities, p.depth_um, np.ones(12, bool), calibration)
    )
    errors.append(np.abs(found.boundary_um[:, 1] - [12.0, 24.0]))
    right.append(found.strata == p.labels)
  assert figures["accuracy"] == pytest.approx(np.mean(right))
  mae = [figures["epidermis_dej_mae_um"], figures["dej_dermis_mae_um"]]
  np.testing.assert_allclose(mae, np.mean(errors, axis=0), rtol=1e-6)
  assert figures["dej_dermis_stacks"] == 6
  other = describe.figures_of(calibration._replace(boundary_temperature=1.0), test)
  assert other != figures  # the temperature matters here


def test_a_model_without_intervals_stays_one(tmp_path):
  stacks = [
    dataclasses.replace(p, labels=np.zeros(12, np.int32)) for p in _predictions(2)
  ]  # no stack shows a boundary
  calibration, wide_um = describe.calibration_of(stacks)
  assert wide_um is None
  description = dataclasses.replace(
    bundles.DESCRIPTION,
    calibration=calibration,
    training=dataclasses.replace(bundles.TRAINING, wide_um=wide_um),
  )
  text = description.to_json()
  assert Description.from_json(text) == description
  assert "too few validation patients" in model_card.markdown(description)


def test_training_is_measured(tmp_path):
  stack = np.concatenate([np.full((3, 8, 8), 40, np.uint8), np.full((2, 8, 8), 90, np.uint8)])
  split = slices_lib.Slices(
    slices=stack,
    labels=np.zeros(5, np.int8),
    depth_um=np.array([0, 3, 6, 0, 5.0]),
    stack=np.array([0, 0, 0, 1, 1]),
    stack_id=("a", "b"),
    patient_id=("p", "p"),
  )
  training = describe.training_of("d", {"train": split}, None)
  assert training.step_um == (3.0, 3.0, 5.0)
  assert training.first_um == (0.0, 0.0)
  assert training.gray_mean == (40.0, 90.0)
  assert (training.stacks, training.patients, training.slices) == (
    {"train": 2},
    {"train": 1},
    {"train": 5},
  )
