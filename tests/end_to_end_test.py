"""CNN and heads together: the gradient is exact, statistics stay, a resumed training is the same."""

import dataclasses
import functools
import json

from flax import nnx
import jax
import jax.numpy as jnp
import numpy as np
import precision
import pytest

from rcm_jax.cnn import inception
from rcm_jax.cnn.augmentation import Augmentation
from rcm_jax.data import slices as slices_lib
from rcm_jax.heads import losses, objective
from rcm_jax.heads.attention import AttentionSpec
from rcm_jax.heads.head import Head, HeadSpec
from rcm_jax.run import end_to_end
from rcm_jax.runtime import checkpoints
from tfds_rcm.errors import UserError

SPEC = HeadSpec(
  num_features=inception.NUM_FEATURES,
  hidden=3,
  cell="gru",
  bidirectional=True,
  window=None,
  attention=AttentionSpec("toeplitz", 1, units=4),
  max_slices=5,
  decoder="dense",
  feedback="own",
)
MEMBERS = [objective.Member(seed, 1, 1e-3, 0.05, 0.1) for seed in (0, 1)]
TUNING = end_to_end.Tuning(
  epochs=2,
  batch_size=2,
  cnn_rate=1e-3,
  head_rate=1e-2,
  micro_batch=3,
  remat=True,
  input_dropout=0.0,
  augmentation=Augmentation(),
  seed=0,
)


def slices(lengths, seed):
  rng = np.random.default_rng(seed)
  stack = np.repeat(np.arange(len(lengths)), lengths)
  labels = np.concatenate([np.minimum(3 * np.arange(n) // n, 2) for n in lengths]).astype(np.int8)
  contrast = np.array([5, 25, 60])[labels][:, None, None]
  images = 128 + contrast * rng.normal(size=(len(labels), 75, 75))
  names = tuple(f"stack{i}" for i in range(len(lengths)))
  depth = np.arange(len(labels), dtype=np.float32)
  return slices_lib.Slices(images.clip(0, 255).astype(np.uint8), labels, depth, stack, names, names)


SPLITS = {"train": slices((4, 6, 3), 0), "validation": slices((5, 3), 1)}


def heads_of(spec):
  heads = [nnx.state(Head(spec, nnx.Rngs(m.seed)), nnx.Param) for m in MEMBERS]
  return jax.tree.map(lambda *leaves: jnp.stack(leaves), *heads)


class Small(inception.InceptionV3):
  """What the stage needs of the network, compiled in a second."""

  def __init__(self, rngs):
    self.in_channels = 1
    self.conv = nnx.Conv(1, 4, (5, 5), strides=4, rngs=rngs)
    self.bn = nnx.BatchNorm(4, rngs=rngs)
    self.embed = nnx.Linear(8, inception.NUM_FEATURES, rngs=rngs)

  def features(self, x):
    y = self.bn(self.conv(x))
    return self.embed(jnp.concatenate([jnp.abs(y).mean((1, 2)), nnx.relu(y).mean((1, 2))], -1))


@pytest.fixture(scope="module")
def start():
  network = Small(nnx.Rngs(0))
  network.bn.mean[...] += 0.1  # unlike those of any batch
  network.eval()
  return network, heads_of(SPEC)


def gradient(start, spec, **changes):
  """Of the first step's loss, which has a stack of 4 slices and another one."""
  network, heads = start
  tuning = dataclasses.replace(TUNING, augmentation=None, **changes)
  [batch, *_] = end_to_end.batches(SPLITS["train"], SPEC, tuning, context=1, epoch=0)
  loss = end_to_end.loss_fn(network, spec, MEMBERS, tuning)
  params = {"cnn": nnx.state(network, nnx.Param), "heads": heads}
  return jax.jit(jax.value_and_grad(loss, has_aux=True))(params, batch, jax.random.key(7)), batch


def plain_gradient(start, spec):
  """The same with all slices of padded stacks at once, in float64 and as it is."""
  network, heads = start
  graph, params, rest = nnx.split(network, nnx.Param, ...)
  order = np.random.default_rng((0, 0)).permutation(3)[:2]
  split = SPLITS["train"]
  padded = slices_lib.pad(split, split.slices, 5)[order]
  truth = losses.targets_of(slices_lib.features_of(split, np.zeros((len(split), 1)), 5))
  truth = jax.tree.map(lambda x: x[order], truth)
  head_key = jax.random.split(jax.random.key(7))[1]
  keys = [jax.random.fold_in(head_key, member.seed) for member in MEMBERS]
  draws = [
    objective.draw(spec, member, key, (2, 5), 0.0)
    for member, key in zip(MEMBERS, keys, strict=True)
  ]

  def loss(params, draws):
    images = inception.from_uint8(jnp.asarray(padded).reshape(-1, 75, 75, 1))
    values = nnx.merge(graph, params["cnn"], rest, copy=True).features(images).reshape(2, 5, -1)
    each = [
      objective.loss(
        spec,
        jax.tree.map(lambda leaf: leaf[i], params["heads"]),
        member,
        values,
        truth,
        draws[i],
      )[0]
      for i, member in enumerate(MEMBERS)
    ]
    return sum(each) / len(each)

  both = jax.jit(jax.value_and_grad(loss))
  params = {"cnn": params, "heads": heads}
  return precision.references(both, params, draws)


@pytest.fixture(scope="module")
def whole(start):
  """`plain_gradient` by architecture, computed once."""
  return functools.cache(lambda spec: plain_gradient((start[0], heads_of(spec)), spec))


@pytest.mark.parametrize("micro_batch", [3, 10])  # in a loop; all at once
@pytest.mark.parametrize(
  "likelihood", ["slices", pytest.param("boundaries", marks=pytest.mark.slow)]
)
def test_the_gradient_is_that_of_the_whole(start, whole, likelihood, micro_batch):
  feedback = "own" if likelihood == "slices" else "none"
  spec = dataclasses.replace(SPEC, likelihood=likelihood, feedback=feedback)
  start = start[0], heads_of(spec)
  ((loss, _), found), batch = gradient(start, spec, micro_batch=micro_batch)
  exact, plain = whole(spec)
  assert int(batch.count) < len(batch.slices)  # of 3, one is partly and another all padding
  precision.assert_close((loss, found), exact, plain)
  largest = max(np.abs(leaf).max() for leaf in jax.tree.leaves(found["cnn"]))
  assert largest > 1e-4


def test_rematerialisation_changes_nothing_but_memory(start, whole):
  ((loss, _), found), _ = gradient(start, SPEC)
  ((kept_loss, _), kept), _ = gradient(start, SPEC, remat=False, micro_batch=6)
  exact, plain = whole(SPEC)
  precision.assert_close((loss, found), exact, plain)
  precision.assert_close((kept_loss, kept), exact, plain)


def train(start, directory, tuning=TUNING, **hooks):
  directory.mkdir(exist_ok=True)
  network, heads = start
  end_to_end.train(network, SPEC, MEMBERS, heads, SPLITS, directory, tuning, **hooks)
  _, params, stats, _ = nnx.split(network, nnx.Param, nnx.BatchStat, ...)
  like = {"params": params, "stats": stats}
  return checkpoints.load_tree(directory / "model", like), checkpoints.load_tree(
    directory / "heads", heads
  )


@pytest.fixture(scope="module")
def tuned(start, tmp_path_factory):
  directory = tmp_path_factory.mktemp("tuned")
  reported = {}
  return directory, reported, *train(start, directory, scalars=reported.__setitem__)


def test_statistics_stay_and_the_history_is_what_was_reported(start, tuned):
  directory, reported, model, _ = tuned
  stats = nnx.state(start[0], nnx.BatchStat)
  jax.tree.map(np.testing.assert_array_equal, model["stats"], stats)
  history = json.loads((directory / "history.json").read_text())
  assert np.shape(history["loss"]) == (len(MEMBERS), TUNING.epochs)
  for name in ("loss", "validation_accuracy"):
    mean = np.mean(history[name], axis=0)
    assert mean == pytest.approx([reported[epoch][name] for epoch in range(TUNING.epochs)])
  assert sorted(path.name for path in directory.iterdir()) == ["heads", "history.json", "model"]


@pytest.mark.slow
def test_resume_equals_uninterrupted(start, tuned, tmp_path):
  class Killed(Exception):
    pass

  def kill(step, values):
    if step == 1:
      raise Killed

  with pytest.raises(Killed):
    train(start, tmp_path / "run", scalars=kill)
  begun = []
  found = train(start, tmp_path / "run", resumed=begun.append)
  assert begun == [1]
  jax.tree.map(np.testing.assert_array_equal, found, tuned[2:])


@pytest.mark.slow
def test_the_start_is_kept_where_nothing_is_better(start, tmp_path):
  reported = []
  network, heads = start
  still = dataclasses.replace(TUNING, epochs=1, cnn_rate=0.0, head_rate=0.0)
  model, kept = train(start, tmp_path / "still", still, scalars=lambda _, row: reported.append(row))
  jax.tree.map(np.testing.assert_array_equal, model["params"], nnx.state(network, nnx.Param))
  jax.tree.map(np.testing.assert_array_equal, kept, heads)
  wild = dataclasses.replace(still, cnn_rate=1.0, head_rate=1.0)
  model, kept = train(start, tmp_path / "wild", wild, scalars=lambda _, row: reported.append(row))
  accuracy = end_to_end.accuracy_fn(network, SPEC, MEMBERS, SPLITS["validation"], TUNING)
  found = accuracy({"cnn": model["params"], "heads": kept}).mean()
  assert found == pytest.approx(max(row["validation_accuracy"] for row in reported))


def test_a_loss_that_is_not_finite_ends_in_one_line(start, tmp_path):
  network, heads = start
  broken = jax.tree.map(lambda leaf: leaf * jnp.nan, heads)
  with pytest.raises(UserError, match="not finite in epoch 0"):
    train((network, broken), tmp_path)


def test_every_stack_is_seen_once_an_epoch():
  seen = {}
  for epoch in (0, 1):
    found = list(end_to_end.batches(SPLITS["train"], SPEC, TUNING, context=1, epoch=epoch))
    assert len({batch.slices.shape for batch in found}) == 1
    seen[epoch] = [batch.slices[: batch.count].sum(axis=(1, 2, 3)) for batch in found]
    assert sum(batch.count for batch in found) == 4 + 5 + 3  # one is cut
    assert [int(batch.truth.mask.sum()) for batch in found] == [b.count for b in found]
  whole = [np.sort(np.concatenate(seen[epoch])) for epoch in (0, 1)]
  np.testing.assert_array_equal(*whole)
