"""Training on stacks that stay on disk: the same as in memory, resumed within an epoch, memory flat."""

import dataclasses
import itertools
import shutil

from flax import nnx
import jax
import main_runs
import numpy as np
import precision
import pytest

from rcm_jax.arrays import Features
from rcm_jax.data import pca, stored
from rcm_jax.data.slices import Slices, pad
from rcm_jax.evaluation import predictions
from rcm_jax.heads import losses, objective, streaming
from rcm_jax.heads import training as head_training
from rcm_jax.heads.attention import AttentionSpec
from rcm_jax.heads.head import Head, HeadSpec
from rcm_jax.heads.objective import Member
from rcm_jax.run import pipeline
from rcm_jax.runtime import preemption

WIDTH, LENGTH = 6, 9
SPEC = HeadSpec(
  num_features=WIDTH,
  hidden=4,
  cell="gru",
  bidirectional=True,
  window=None,
  attention=AttentionSpec("toeplitz", 1, units=4),
  max_slices=LENGTH,
  decoder="dense",
  feedback="none",
)
ORDERED = dataclasses.replace(SPEC, likelihood="boundaries")
MEMBERS = [
  Member(0, 0, 3e-2, 0.05, 0.1),
  Member(1, 1, 3e-2, 0.05, 0.1),
  Member(0, 1, 2e-2, 0.0, 0.0),
]
RECIPE = {"epochs": 3, "batch_size": 4}


def split_of(count, seed, longest=LENGTH + 3):
  """A split's slices, some stacks longer than heads see, and the features on disk."""
  rng = np.random.default_rng(seed)
  lengths = rng.integers(3, longest + 1, count)
  labels = [np.sort(rng.integers(0, 3, n)).astype(np.int8) for n in lengths]
  names = tuple(f"s{seed}_{i}" for i in range(count))
  split = Slices(
    slices=np.empty((lengths.sum(), 0, 0), np.uint8),
    labels=np.concatenate(labels),
    depth_um=np.concatenate([3 * np.arange(n, dtype=np.float32) for n in lengths]),
    stack=np.repeat(np.arange(count), lengths),
    stack_id=names,
    patient_id=names,
  )
  directions = np.random.default_rng(99).normal(size=(3, WIDTH))
  return split, (2 * directions[split.labels] + rng.normal(size=(len(split), WIDTH)))


@pytest.fixture(scope="module")
def on_disk(tmp_path_factory):
  folder, found = tmp_path_factory.mktemp("features"), {}
  for name, count, seed in (("train", 10, 0), ("validation", 5, 1)):
    split, rows = split_of(count, seed)
    np.save(folder / f"{name}.npy", rows.astype(np.float16))
    mapped = np.load(folder / f"{name}.npy", mmap_mode="r")
    found[name] = stored.StoredStacks(split, mapped, LENGTH)
  return found


def in_memory(stacks: stored.StoredStacks) -> Features:
  """By the functions that lay out splits in memory."""
  split, values = stacks.split, stacks.rows.astype(np.float32)
  put = lambda rows: pad(split, rows, stacks.length)
  return Features(
    put(values if stacks.components is None else stacks.components(values)),
    put(split.labels.astype(np.int32)),
    put(split.depth_um),
    put(np.ones(len(split), bool)),
    split.stack_id,
    split.patient_id,
  )


def streamed(spec, stacks, directory, **more):
  directory.mkdir(exist_ok=True)
  streaming.train(
    spec, MEMBERS, stacks["train"], stacks["validation"], directory, **{**RECIPE, **more}
  )
  return head_training.load(spec, MEMBERS, directory)


def test_stacks_are_those_in_memory(on_disk):
  for stacks in on_disk.values():
    expected = in_memory(stacks)
    every = stacks.take(np.arange(len(stacks)))
    assert every.stack_id == expected.stack_id
    jax.tree.map(np.testing.assert_array_equal, every, expected)
    blocks = list(stacks.blocks(3))
    joined = jax.tree.map(
      lambda *x: np.concatenate(x)[: len(stacks)],
      *(dataclasses.replace(b, stack_id=(), patient_id=()) for b in blocks),
    )
    jax.tree.map(np.testing.assert_array_equal, joined.values, expected.values)
    assert tuple(itertools.chain(*(b.stack_id for b in blocks))) == expected.stack_id
    np.testing.assert_array_equal(stacks.mask, expected.mask)
    np.testing.assert_array_equal(stacks.cut(4).first(2).values, expected.cut(4).first(2).values)
    assert not stacks.take(np.array([len(stacks)])).mask.any()


@pytest.mark.slow
@pytest.mark.parametrize(
  ("spec", "recipe"),
  [
    (SPEC, {}),
    (ORDERED, {"input_dropout": 0.3, "ema_decay": 0.8, "shortest_crop": 0.6}),
  ],
)
def test_streamed_training_is_the_training_in_memory(spec, recipe, on_disk, tmp_path, monkeypatch):
  monkeypatch.setattr(streaming, "_CHUNK_BYTES", 1.0)  # one step at a time
  monkeypatch.setattr(streaming, "BLOCK", 2)
  train, validation = (in_memory(on_disk[name]) for name in ("train", "validation"))
  kept = []
  for nudge in (1, 1 + np.finfo(np.float32).eps):
    directory = tmp_path / f"memory_{nudge}"
    directory.mkdir()
    moved = dataclasses.replace(train, values=train.values * np.float32(nudge))
    head_training.train(spec, MEMBERS, moved, validation, directory, **RECIPE, **recipe)
    kept.append(head_training.load(spec, MEMBERS, directory))
  found = streamed(spec, on_disk, tmp_path / "streamed", **recipe)
  exact = jax.tree.map(np.float64, kept[0].params)
  precision.assert_close(found.params, exact, kept[1].params)
  for name in ("loss", "validation_accuracy"):
    np.testing.assert_allclose(found.history[name], kept[0].history[name], rtol=1e-3)
  seen = found.probabilities(on_disk["validation"])
  np.testing.assert_allclose(seen, found.probabilities(validation), atol=1e-6)


@pytest.mark.slow
def test_goes_on_within_an_epoch(on_disk, tmp_path, monkeypatch):
  monkeypatch.setattr(streaming, "_CHUNK_BYTES", 1.0)
  whole = streamed(SPEC, on_disk, tmp_path / "whole")
  asked_at, directory, told = (
    4,
    tmp_path / "stopped",
    [],
  )  # the first step of three of an epoch is 3

  def stop(done, total):
    assert total == 9
    if done == asked_at:
      preemption.request()

  with pytest.raises(preemption.Preempted) as stopped:
    streamed(SPEC, on_disk, directory, advance=stop)
  assert "step 4 of 9" in stopped.value.where
  preemption.clear()
  again = streamed(SPEC, on_disk, directory, resumed=told.append)
  assert told == [1]
  jax.tree.map(np.testing.assert_array_equal, again.params, whole.params)
  assert again.history["loss"] == whole.history["loss"]


def test_components_learned_in_blocks_are_those_of_all_rows():
  rng = np.random.default_rng(3)
  rows = (rng.normal(size=(500, 5)) @ rng.normal(size=(5, 5)) + 1e3).astype(np.float32)
  rows = np.concatenate([rows, rows[:, :1]], axis=1)  # a direction that does not vary
  whole = pca.learn(rows, 6)
  blocks = pca.learn_in_blocks(np.array_split(rows, 7), 6)
  np.testing.assert_allclose(blocks.mean, whole.mean, rtol=1e-6)
  signs = np.sign((whole.matrix * blocks.matrix).sum(0))
  np.testing.assert_allclose(blocks.matrix * signs, whole.matrix, rtol=1e-4, atol=1e-5)


def test_stacks_that_are_none_weigh_nothing(on_disk):
  """The last step of an epoch is filled up with them."""
  two = np.array([0, 1, len(on_disk["train"]), len(on_disk["train"])])
  for spec in (SPEC, ORDERED):
    params = nnx.state(Head(spec, nnx.Rngs(params=jax.random.key(0))), nnx.Param)
    values = []
    for rows in (two[:2], two):
      batch = dataclasses.replace(on_disk["train"].take(rows), stack_id=(), patient_id=())
      draws = objective.draw(spec, MEMBERS[2], jax.random.key(0), batch.mask.shape, 0.0)
      truth = losses.targets_of(batch, 3)
      loss = jax.jit(lambda *args, spec=spec: objective.loss(spec, *args)[1])
      values.append(loss(params, MEMBERS[2], batch.values, truth, draws))
    np.testing.assert_allclose(values[0], values[1], rtol=1e-6)


@pytest.mark.slow
@pytest.mark.parametrize("method", ["toeplitz_d1", "ordered"])
def test_a_run_whose_features_stay_on_disk(method, home, tmp_path, capsys):
  cache = tmp_path / "cache"
  shutil.copytree(home / "cache", cache)
  found = []
  for memory_gb in (8.0, 0.0):
    for heads in cache.glob("train_heads-*"):  # made again
      shutil.rmtree(heads)
    config = main_runs.small(method)
    config.data.data_dir = str(home / "data")
    config.features.memory_gb = memory_gb
    pipeline.run(config, tmp_path / f"run_{memory_gb}", cache)
    path = tmp_path / f"run_{memory_gb}" / "predictions.csv"
    found.append(
      [
        p
        for p in predictions.read_csv(path, ordered=("ordered",))
        if p.method.startswith(("toeplitz", "ordered"))
      ]
    )
  assert "heads read them from disk" in " ".join(capsys.readouterr().err.split())
  assert found[0]
  for kept, streamed in zip(*found, strict=True):
    np.testing.assert_allclose(streamed.probabilities, kept.probabilities, atol=1e-3)
