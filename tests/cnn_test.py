"""Training of the single-slice classifier: resumption, snapshot, divergence; extraction."""

import dataclasses
import json
import signal

from flax import nnx
import interrupted
import jax
import jax.numpy as jnp
import numpy as np
import precision
import pytest

from rcm_jax.cnn import extraction, inception, train_step
from rcm_jax.cnn import spec as cnn_spec
from rcm_jax.cnn import training as cnn_training
from rcm_jax.cnn.augmentation import Augmentation
from rcm_jax.data.slices import Slices
from rcm_jax.runtime import checkpoints, devices, preemption
from tfds_rcm.errors import UserError

SPEC = cnn_spec.CnnSpec(
  context=1,
  width=0.0625,
  epochs=3,
  batch_size=6,
  norm_groups=1,
  learning_rate=3e-3,
  dropout=0.2,
  bn_momentum=0.5,
  pretrained=None,
  pretrained_input="symmetric",
  frozen_epochs=1,
  body_rate=0.1,
  augmentation=Augmentation(),
  seed=0,
)


def slices(count: int, seed: int) -> Slices:
  rng = np.random.default_rng(seed)
  labels = (np.arange(count) % 3).astype(np.int8)
  contrast = np.array([5, 25, 60])[labels]
  images = 128 + contrast[:, None, None] * rng.normal(size=(count, 75, 75))
  return Slices(
    slices=images.clip(0, 255).astype(np.uint8),
    labels=labels,
    depth_um=np.arange(count, dtype=np.float32),
    stack=np.arange(count) // 3,
    stack_id=tuple(f"stack{i}" for i in range(-(-count // 3))),
    patient_id=tuple(f"patient{i}" for i in range(-(-count // 3))),
  )


LEARNED = nnx.filterlib.Any(nnx.Param, nnx.BatchStat)
SPLITS = {"train": slices(15, 0), "validation": slices(7, 1), "test": slices(5, 2)}


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
  directory = tmp_path_factory.mktemp("cnn")
  reported = {}
  cnn_training.train(SPEC, SPLITS, directory, scalars=reported.__setitem__)
  return directory, reported


def test_history_is_what_was_reported(trained):
  directory, reported = trained
  history = json.loads((directory / "history.json").read_text())
  assert sorted(reported) == [0, 1, 2]
  for name, curve in history.items():
    assert curve == pytest.approx([reported[epoch][name] for epoch in range(3)])
  assert {path.name for path in directory.iterdir()} == {"model", "history.json"}


def test_the_best_epoch_is_kept(trained):
  directory, reported = trained
  model = extraction.load(SPEC, directory)
  validation = SPLITS["validation"]
  logits = model(inception.from_uint8(jnp.asarray(validation.slices[..., None])))
  accuracy = np.mean(np.argmax(logits, -1) == validation.labels)
  assert accuracy == pytest.approx(max(r["validation_accuracy"] for r in reported.values()))


def test_resume_equals_uninterrupted(trained, tmp_path, monkeypatch):
  monkeypatch.setattr(checkpoints, "MAX_STALL", float("inf"))
  whole, _ = trained

  class Killed(Exception):
    pass

  def kill(epoch, values):
    if epoch == 2:
      raise Killed

  with pytest.raises(Killed):
    cnn_training.train(SPEC, SPLITS, tmp_path, scalars=kill)
  began = []
  cnn_training.train(SPEC, SPLITS, tmp_path, resumed=began.append)
  assert began == [2]
  assert_equal_trainings(tmp_path, whole)


def assert_equal_trainings(first, second):
  expected, actual = (json.loads((d / "history.json").read_text()) for d in (first, second))
  assert actual["loss"] == expected["loss"]
  assert actual["validation_accuracy"] == expected["validation_accuracy"]
  trees = (nnx.state(extraction.load(SPEC, directory), LEARNED) for directory in (first, second))
  jax.tree.map(np.testing.assert_array_equal, *trees)


@pytest.fixture
def asked_to_stop():
  """Sends this process a signal, as Slurm does, and tidies up."""
  with interrupted.handled():
    yield interrupted.send


def test_stopped_within_an_epoch_it_goes_on_at_the_next_step(trained, tmp_path, asked_to_stop):
  whole, _ = trained
  steps = []

  def stop(done, total):
    steps.append(done)
    if done == 5:  # the second of three steps in the second of three epochs
      asked_to_stop(signal.SIGTERM)

  with pytest.raises(preemption.Preempted, match="75") as stopped:
    cnn_training.train(SPEC, SPLITS, tmp_path, advance=stop, about={"git_revision": "abc"})
  (path,) = tmp_path.glob("checkpoints/5/_CHECKPOINT_METADATA")
  about = json.loads(path.read_text())["custom_metadata"]
  assert about["cnn"]["learning_rate"] == SPEC.learning_rate
  assert about["git_revision"] == "abc"
  assert stopped.value.where == "in train_cnn, after step 5 of 9"
  assert steps == [1, 2, 3, 4, 5]
  preemption.clear()
  cnn_training.train(SPEC, SPLITS, tmp_path, advance=lambda done, total: steps.append(done))
  assert steps == list(range(1, 10))  # not one step twice
  assert_equal_trainings(tmp_path, whole)


@pytest.mark.slow
def test_extraction_equals_the_network_slice_by_slice(trained, tmp_path):
  directory, _ = trained
  extraction.extract(SPEC, directory, SPLITS, tmp_path, batch_size=4, dtype="float32")
  graph, state = nnx.split(extraction.load(SPEC, directory))

  @jax.jit
  def plain(state, slices):
    model, images = nnx.merge(graph, state), inception.from_uint8(slices[..., None])
    return model.features(images), model(images)

  for name, split in SPLITS.items():
    features = np.load(tmp_path / f"{name}_features.npy")
    probabilities = np.load(tmp_path / f"{name}_probabilities.npy")
    values, logits = plain(state, split.slices)
    layers = 94  # both round after each, in other places
    precision.assert_close(features, np.float64(values), factor=layers)
    # A probability moves by at most what the logits do.
    expected, size = np.float64(jax.nn.softmax(logits)), float(jnp.abs(logits).max())
    precision.assert_close(probabilities, expected, factor=layers, scale=size)


def test_an_extraction_that_was_stopped_goes_on(trained, tmp_path):
  directory, _ = trained
  recipe = {"batch_size": 4, "dtype": "float32"}
  whole, parts = tmp_path / "whole", tmp_path / "parts"
  every, seen = [], []
  for folder in (whole, parts):
    folder.mkdir()
  note = lambda done, total: every.append(done)
  extraction.extract(SPEC, directory, SPLITS, whole, advance=note, **recipe)
  stop_at = len(SPLITS["train"]) + 4  # in the second split

  def stop(done, total):
    if done == stop_at:
      preemption.request()

  with pytest.raises(preemption.Preempted) as stopped:
    extraction.extract(SPEC, directory, SPLITS, parts, advance=stop, **recipe)
  preemption.clear()
  assert f"after {stop_at} of" in stopped.value.where
  note = lambda done, total: seen.append(done)
  extraction.extract(SPEC, directory, SPLITS, parts, advance=note, **recipe)
  assert seen == every[every.index(stop_at) + 1 :]
  names = {path.name for path in whole.iterdir()}
  assert names == {path.name for path in parts.iterdir()}
  for name in names:
    assert (whole / name).read_bytes() == (parts / name).read_bytes(), name


@pytest.mark.slow
def test_seeds_share_one_program_and_learn_differently():
  numbers = np.arange(SPEC.batch_size, dtype=np.int32)
  data = SPLITS["train"]
  batch = data.slices[: SPEC.batch_size, ..., None], data.labels[: SPEC.batch_size].astype(np.int32)
  mesh = devices.device_mesh(1)
  zero, one = (train_step.build(dataclasses.replace(SPEC, seed=n), 2, mesh) for n in (0, 1))
  assert one.train is zero.train
  # From the same parameters, so that order, views and dropout alone can make the difference.
  losses = [
    float(zero.train(zero.start, np.uint32(seed), np.int32(0), numbers, *batch)[1][0])
    for seed in (0, 1, 0)
  ]
  assert losses[0] == losses[2] != losses[1]
  assert zero.train._cache_size() == 1


@pytest.mark.slow
def test_a_loss_that_is_no_number_names_the_stacks(tmp_path):
  spec = dataclasses.replace(SPEC, learning_rate=float("inf"), epochs=1)
  with pytest.raises(UserError, match=r"loss of the CNN is nan at step \d+ \(stacks stack\d"):
    cnn_training.train(spec, SPLITS, tmp_path)


def test_pretrained_layers_are_frozen_first_and_slower_then():
  spec = dataclasses.replace(SPEC, epochs=20, pretrained="a file", frozen_epochs=2)
  params = {"blocks": {"stem": jnp.zeros(3)}, "embed": {"kernel": jnp.zeros(3)}}
  optimizer = cnn_spec.make_optimizer(spec, epoch_steps=4)
  state, ratios = optimizer.init(params), []
  for _ in range(16):
    updates, state = optimizer.update(jax.tree.map(jnp.ones_like, params), state, params)
    ratios.append(updates["blocks"]["stem"][0] / updates["embed"]["kernel"][0])
  np.testing.assert_allclose(ratios[1:9], 0)  # in the first step the rate itself is 0
  expected = np.array([0.025, 0.05, 0.075, 0.1, 0.1, 0.1, 0.1])
  precision.assert_close(np.array(ratios[9:]), expected)


def test_training_from_scratch_has_one_rate():
  params = {"blocks": {"stem": jnp.zeros(3)}, "embed": {"kernel": jnp.zeros(3)}}
  optimizer = cnn_spec.make_optimizer(SPEC, epoch_steps=4)
  state = optimizer.init(params)
  for _ in range(3):
    updates, state = optimizer.update(jax.tree.map(jnp.ones_like, params), state, params)
  np.testing.assert_array_equal(updates["blocks"]["stem"], updates["embed"]["kernel"])
  assert updates["embed"]["kernel"][0] < 0
