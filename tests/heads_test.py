"""Training of sequence heads: members, snapshots, resumption, and what padding may not change."""

import dataclasses

from flax import nnx
import jax
import jax.numpy as jnp
import numpy as np
import precision
import pytest

from rcm_jax.arrays import Features
from rcm_jax.decoding import monotone_model
from rcm_jax.heads import losses, objective
from rcm_jax.heads import training as head_training
from rcm_jax.heads.attention import AttentionSpec
from rcm_jax.heads.head import HeadSpec, outline
from rcm_jax.heads.objective import TEMPERATURES, Member, recurrent_penalty
from rcm_jax.heads.train_epochs import make_train
from tfds_rcm.errors import UserError

SPEC = HeadSpec(
  num_features=6,
  hidden=5,
  cell="gru",
  bidirectional=True,
  window=None,
  attention=AttentionSpec("toeplitz", 2, units=4),
  max_slices=12,
  decoder="dense",
  feedback="own",
)
MEMBERS = [
  Member(seed, half_width, rate, 0.05, 0.1)
  for seed, half_width, rate in ((0, 0, 3e-2), (1, 2, 3e-2), (0, 1, 2e-2))
]


def stacks(count: int, seed: int, length: int = 12) -> Features:
  rng = np.random.default_rng(seed)
  lengths = rng.integers(4, length + 1, count)
  mask = np.arange(length) < lengths[:, None]
  turns = np.sort(rng.integers(1, length, (count, 2)), axis=1)
  labels = (np.arange(length) >= turns[:, :1]).astype(np.int32)
  labels += np.arange(length) >= turns[:, 1:]
  directions = np.random.default_rng(99).normal(size=(3, SPEC.num_features))
  values = 2 * directions[labels] + rng.normal(size=(count, length, SPEC.num_features))
  depth = 3.0 * np.arange(length) * np.ones((count, 1))
  return Features(
    values=(values * mask[..., None]).astype(np.float32),
    labels=labels * mask,
    depth_um=depth.astype(np.float32),
    mask=mask,
  )


TRAIN, VALIDATION = stacks(10, 0), stacks(5, 1)


def train(directory, members=MEMBERS, train_features=TRAIN, epochs=8, spec=SPEC, **kwargs):
  directory.mkdir(exist_ok=True)
  head_training.train(
    spec, members, train_features, VALIDATION, directory, epochs=epochs, batch_size=4, **kwargs
  )
  return head_training.load(spec, members, directory)


@pytest.fixture(scope="module")
def together(tmp_path_factory):
  return train(tmp_path_factory.mktemp("heads"))


# A training multiplies rounding: by how much is seen where its data are moved by one rounding.
NUDGED = dataclasses.replace(TRAIN, values=TRAIN.values * np.float32(1 + np.finfo(np.float32).eps))


@pytest.fixture(scope="module")
def nudged(tmp_path_factory):
  return train(tmp_path_factory.mktemp("nudged"), train_features=NUDGED)


def assert_same_training(got, expected, rounding):
  """Up to what rounding does to a training, `rounding` being `expected` from data moved by it."""
  exact = jax.tree.map(np.float64, expected)
  precision.assert_close(got, exact, rounding)


def test_members_learn(together):
  accuracy = np.array(together.history["validation_accuracy"])
  assert accuracy.shape == (3, 8)
  assert np.all(accuracy.max(1) > 0.6)  # a third by chance


def test_member_in_company_equals_member_alone(together, nudged, tmp_path):
  member = 1
  alone = train(tmp_path / "alone", [MEMBERS[member]])
  own = lambda trained: jax.tree.map(lambda x: x[member : member + 1], trained.params)
  assert_same_training(alone.params, own(together), own(nudged))


def test_vmapped_members_equal_members_in_turn():
  def once(features):
    training = make_train(SPEC, features, VALIDATION, batch_size=4, epochs=4, epochs_per_call=4)

    def run(member):
      state, curves = training.run(training.init(member), member, 0)
      return state.params, curves

    return run

  stacked = jax.tree.map(lambda *x: jnp.stack(x), *MEMBERS)
  batched = jax.jit(jax.vmap(once(TRAIN)))(stacked)
  single, nudged = jax.jit(once(TRAIN)), jax.jit(once(NUDGED))
  for i, member in enumerate(MEMBERS):
    got = jax.tree.map(lambda a, i=i: a[i], batched)
    assert_same_training(got, single(member), nudged(member))


def test_snapshot_is_the_best_epochs(together):
  history = np.array(together.history["validation_accuracy"])
  probabilities = together.probabilities(VALIDATION)
  correct = (probabilities.argmax(-1) == VALIDATION.labels) & VALIDATION.mask
  accuracy = correct.sum((1, 2)) / VALIDATION.mask.sum()
  np.testing.assert_allclose(accuracy, history.max(1), atol=1e-6)


def test_each_architecture_is_compiled_once(together):
  for compiled, call in (
    (head_training._probabilities, together.probabilities),
    (head_training._attention_weights, together.attention_weights),
  ):
    first = call(VALIDATION)
    count = compiled(SPEC)._cache_size()
    np.testing.assert_array_equal(call(VALIDATION), first)
    call(dataclasses.replace(VALIDATION, values=2 * VALIDATION.values))
    assert compiled(SPEC)._cache_size() == count


def test_a_running_average_of_the_weights_is_judged_and_kept():
  """One step an epoch, so that every step's weights are seen."""
  decay, epochs, member = 0.8, 5, MEMBERS[0]
  make = lambda **recipe: make_train(
    SPEC, TRAIN, VALIDATION, batch_size=len(TRAIN), epochs=epochs, epochs_per_call=1, **recipe
  )
  plain, averaged = make(), make(ema_decay=decay)
  state, other = plain.init(member), averaged.init(member)
  run, run_averaged = jax.jit(plain.run), jax.jit(averaged.run)
  steps, best = [], -1.0
  for epoch in range(epochs):
    state, _ = run(state, member, epoch)
    other, curves = run_averaged(other, member, epoch)
    jax.tree.map(np.testing.assert_array_equal, other.params, state.params)
    steps.append(jax.device_get(state.params))
    weights = decay ** np.arange(epoch + 1)[::-1]
    mean = jax.tree.map(
      lambda *p, w=weights: np.average(np.asarray(p, np.float64), axis=0, weights=w), *steps
    )
    if curves[0, 1] > best:
      best, expected = float(curves[0, 1]), mean
      rounded = jax.tree.map(jnp.float32, mean)
      assert objective.accuracy(SPEC, rounded, member, VALIDATION) == pytest.approx(best)
    # optax averages step by step, and divides by one minus a power: each step rounds.
    precision.assert_close(other.best_params, expected, factor=precision.FACTOR * epochs)


def test_training_hides_features_of_whole_stacks():
  member, key = MEMBERS[0], jax.random.key(1)
  draws = objective.draw(SPEC, member, key, (500, 12), 0.0, 0.4)
  kept = np.asarray(draws.features)
  assert kept.shape == (500, SPEC.num_features)
  precision.assert_close(np.unique(kept), np.array([0, 1 / 0.6]))
  np.testing.assert_allclose(kept.mean(0), 1, atol=0.15)
  plain = objective.draw(SPEC, member, key, (500, 12), 0.0)
  assert plain.features is None
  jax.tree.map(np.testing.assert_array_equal, draws.dropout, plain.dropout)

  params = (
    make_train(SPEC, TRAIN, VALIDATION, batch_size=4, epochs=1, epochs_per_call=1)
    .init(member)
    .params
  )
  truth = losses.targets_of(TRAIN)
  draws = objective.draw(SPEC, member, key, TRAIN.mask.shape, 0.0, 0.4)
  values = jnp.asarray(TRAIN.values)
  found = objective.loss(SPEC, params, member, values, truth, draws)
  expected = objective.loss(
    SPEC, params, member, values * draws.features[:, None], truth, draws._replace(features=None)
  )
  np.testing.assert_allclose(found, expected)
  other = objective.loss(SPEC, params, member, values, truth, draws._replace(features=None))
  assert abs(found[0] - other[0]) > 1e-3


def test_an_ordered_head_keeps_the_epoch_and_temperature_that_make_boundaries_most_probable():
  spec = dataclasses.replace(SPEC, feedback="none", likelihood="boundaries")
  member = Member(0, 1, 3e-2, 0.05, 0.1)
  training = make_train(spec, TRAIN, VALIDATION, batch_size=4, epochs=6, epochs_per_call=1)
  truth = losses.targets_of(VALIDATION)

  @jax.jit
  def likelihood(params, temperature):
    model = nnx.merge(outline(spec)[0], params)
    evidence = jax.vmap(lambda x, m: model.unary_scores(x, m, half_width=1))(
      jnp.asarray(VALIDATION.values), truth.mask
    )
    return jax.vmap(monotone_model.log_likelihood)(
      evidence / temperature, truth.mask, truth.boundaries
    ).mean()

  run, state, tried = jax.jit(training.run), training.init(member), []
  for epoch in range(6):
    state, _ = run(state, member, epoch)
    tried.append([likelihood(state.params, t) for t in TEMPERATURES])
  assert TEMPERATURES[np.argmax(np.max(tried, axis=0))] != 1.0  # or nothing is tested
  np.testing.assert_allclose(likelihood(state.best_params, 1.0), np.max(tried), rtol=1e-4)


def test_resume_equals_uninterrupted(together, tmp_path, monkeypatch):
  monkeypatch.setattr(head_training, "EPOCHS_PER_CALL", 2)
  whole = train(tmp_path / "whole")

  class Killed(Exception):
    pass

  def kill(done, total):
    if done == 4:
      raise Killed

  with pytest.raises(Killed):
    train(tmp_path / "killed", advance=kill)
  began = []
  resumed = train(tmp_path / "killed", resumed=began.append)
  assert began[0] >= 2  # the last finished call may not have been written yet
  jax.tree.map(np.testing.assert_array_equal, resumed.params, whole.params)
  assert resumed.history["loss"] == whole.history["loss"]


def test_padding_and_what_lies_in_it_change_nothing(together, nudged, tmp_path):
  def padded(features: Features) -> Features:
    grow = lambda x, fill: np.pad(
      x, ((0, 0), (0, 3)) + ((0, 0),) * (x.ndim - 2), constant_values=fill
    )
    values = grow(features.values, 0)
    mask = grow(features.mask, False)
    values[~mask] = np.nan
    return dataclasses.replace(
      features,
      values=values,
      labels=grow(features.labels, 0),
      depth_um=grow(features.depth_um, 0),
      mask=mask,
    )

  spec = dataclasses.replace(SPEC, max_slices=15)
  longer = train(tmp_path / "longer", train_features=padded(TRAIN), spec=spec)
  seen = lambda trained, features: (
    np.float32(trained.history["loss"]),
    trained.probabilities(features)[:, :, :12][:, VALIDATION.mask],
  )
  assert_same_training(
    seen(longer, padded(VALIDATION)), seen(together, VALIDATION), seen(nudged, VALIDATION)
  )


@pytest.mark.parametrize("feedback", ["teacher", "scheduled"])
def test_feedback_of_labels_is_for_training_alone(tmp_path, feedback):
  trained = train(tmp_path / feedback, spec=dataclasses.replace(SPEC, feedback=feedback))
  before = trained.probabilities(VALIDATION)
  relabelled = dataclasses.replace(VALIDATION, labels=np.zeros_like(VALIDATION.labels))
  np.testing.assert_array_equal(before, trained.probabilities(relabelled))


def test_diverging_member_is_named(tmp_path):
  broken = dataclasses.replace(TRAIN, values=np.full_like(TRAIN.values, np.inf))
  with pytest.raises(UserError, match=r"seed=0.*not finite in epoch 0.*learning_rate"):
    train(tmp_path / "broken", train_features=broken)


def test_penalty_counts_recurrent_weights_of_both_directions():
  params = {
    "encoder": {"recurrent_kernel": jnp.stack([jnp.full((2, 6), 1.0), jnp.full((2, 6), -3.0)])},
    "kernel": jnp.full((4, 3), 100.0),
  }
  assert recurrent_penalty(params) == pytest.approx(1.0 + 3.0)
  assert recurrent_penalty(params, "sum") == pytest.approx(12 * (1.0 + 3.0))
  one = {"encoder": {"recurrent_kernel": params["encoder"]["recurrent_kernel"][1]}}
  assert recurrent_penalty(one) == pytest.approx(3.0)


def test_the_penalty_of_keras_is_the_sum():
  keras = pytest.importorskip("keras")
  l1 = keras.regularizers.L1(0.05)
  layer = keras.layers.Bidirectional(keras.layers.GRU(5, recurrent_regularizer=l1))
  layer.build((1, 4, 6))
  kernels = [
    half.cell.recurrent_kernel.value for half in (layer.forward_layer, layer.backward_layer)
  ]
  ours = 0.05 * recurrent_penalty({"recurrent_kernel": jnp.stack(kernels)}, "sum")
  assert float(ours) == pytest.approx(float(sum(layer.losses)), rel=1e-5)


@pytest.mark.parametrize("reduction", ["mean", "sum"])
def test_training_adds_the_penalty_that_the_configuration_names(reduction):
  spec, member = SPEC, MEMBERS[0]
  training = make_train(spec, TRAIN, VALIDATION, batch_size=4, epochs=1, epochs_per_call=1)
  params = training.init(member).params
  draws = objective.draw(spec, member, jax.random.key(0), TRAIN.mask.shape, 0.0)
  truth = losses.targets_of(TRAIN)
  whole, of_data = objective.loss(
    spec, params, member, jnp.asarray(TRAIN.values), truth, draws, reduction
  )
  penalty = float(member.l1 * recurrent_penalty(params, reduction))
  assert penalty > 1e-3
  assert float(whole - of_data) == pytest.approx(penalty, rel=1e-3)


@pytest.mark.parametrize("place", [(0.0, 0.0), (0.0, 1.0), (0.4, 0.5), (0.9, 0.3), (1.0, 0.7)])
def test_a_crop_is_what_its_slices_would_be_as_a_stack_of_their_own(place):
  some = stacks(40, 7)
  truth = losses.targets_of(some)
  cut = jax.jit(losses.crop, static_argnums=3)
  with_dej = [row for row in range(len(some)) if 1 in some.labels[row]]
  assert len(with_dej) > 5
  for row in with_dej:
    one = jax.tree.map(lambda x, row=row: x[row], truth)
    values, found = cut(jnp.asarray(some.values[row]), one, jnp.array(place), 0.5)
    count, length = int(one.mask.sum()), int(found.mask.sum())
    assert np.ceil(0.5 * count) <= length <= count
    start = round((count - length) * place[1])
    kept = slice(start, start + length)
    alone = Features(
      *(getattr(some, name)[row : row + 1, kept] for name in ("values", "labels", "depth_um")),
      np.ones((1, length), bool),
    )
    expected = jax.tree.map(lambda x: x[0], losses.targets_of(alone))
    np.testing.assert_array_equal(values[:length], alone.values[0])
    assert not np.any(values[length:])
    np.testing.assert_array_equal(found.labels[:length], expected.labels)
    np.testing.assert_array_equal(found.depth_um[:length], expected.depth_um)
    np.testing.assert_array_equal(found.shown, expected.shown)
    np.testing.assert_array_equal(found.boundaries, expected.boundaries)


def test_training_on_crops_of_whole_stacks_is_training_on_stacks():
  member, key = MEMBERS[1], jax.random.key(3)
  params = jax.tree.map(lambda x: x[0], training_params())
  rows = jax.tree.map(lambda x: x[:4], (TRAIN.values, losses.targets_of(TRAIN)))

  def at(shortest):
    draws = objective.draw(SPEC, member, key, TRAIN.mask[:4].shape, 0.0, 0.0, shortest)
    if shortest < 1:
      draws = draws._replace(crop=draws.crop.at[:, 0].set(1.0))  # the longest crop is the stack
    return objective.loss(SPEC, params, member, *rows, draws, shortest_crop=shortest)[0]

  np.testing.assert_array_equal(at(0.5), at(1.0))
  shorter = objective.draw(SPEC, member, key, TRAIN.mask[:4].shape, 0.0, 0.0, 0.5)
  cropped = objective.loss(SPEC, params, member, *rows, shorter, shortest_crop=0.5)[0]
  assert cropped != at(1.0)


def training_params():
  training = make_train(SPEC, TRAIN, VALIDATION, batch_size=4, epochs=1, epochs_per_call=1)
  return jax.tree.map(lambda x: x[None], training.init(MEMBERS[1]).params)


def test_no_epoch_sees_the_same_crops(tmp_path):
  whole, cropped = (
    train(tmp_path / str(share), members=MEMBERS[:1], epochs=2, shortest_crop=share)
    for share in (1.0, 0.5)
  )
  assert whole.history["loss"] != cropped.history["loss"]
  assert np.isfinite(cropped.history["loss"]).all()
