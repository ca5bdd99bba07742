"""CNN and sequence heads together: both fine-tuned from the two-stage solution.

The paper trains them one after the other, since a stack's activations do not fit into memory. Here
the CNN sees a step's slices in micro-batches and, with rematerialisation, keeps of each only its
features: the backward pass computes the rest again. Batch normalisation keeps the statistics of
the first stage, so that a slice's features do not depend on what it is batched with, and the
gradient is exactly that of the whole. All seeds' heads share the network, as they do before.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
import dataclasses
import pathlib
import time
from typing import Any, NamedTuple

from flax import nnx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, Key, UInt8
import numpy as np
import optax

from rcm_jax.arrays import ArrayLike
from rcm_jax.cnn import inception
from rcm_jax.cnn.augmentation import Augmentation, augment
from rcm_jax.data import batches as batches_lib
from rcm_jax.data import slices as slices_lib
from rcm_jax.heads import losses, objective
from rcm_jax.heads.head import HeadSpec
from rcm_jax.runtime import resumable
from tfds_rcm.errors import UserError


@dataclasses.dataclass(frozen=True)
class Tuning:
  """How both are trained together.

  Attributes:
    epochs: passes over the training stacks.
    batch_size: stacks a step.
    cnn_rate: Adam's peak rate for the CNN; it rises over the first epoch and falls as a cosine.
    head_rate: the same for the heads.
    micro_batch: slices that the CNN sees at once.
    remat: whether the backward pass computes the CNN's activations again instead of keeping them.
    input_dropout: see `heads.epoch.Recipe`.
    augmentation: ranges of the random views; None shows the slices as they are.
    seed: of order, views and dropout.
  """

  epochs: int
  batch_size: int
  cnn_rate: float
  head_rate: float
  micro_batch: int
  remat: bool
  input_dropout: float
  augmentation: Augmentation | None
  seed: int


class Batch(NamedTuple):
  """Some stacks' slices in one row, without padding between stacks.

  Attributes:
    slices: the real ones first, whole micro-batches in all.
    count: real slices.
    place: where each stack's slices lie; anything on padding.
    truth: about the stacks.
  """

  slices: UInt8[ArrayLike, "n height width context"]
  count: Int[ArrayLike, ""] | int
  place: Int[ArrayLike, "B T"]
  truth: losses.Targets


class _State(NamedTuple):
  params: Any  # {"cnn", "heads"}
  optimizer: Any
  best_params: Any
  best_accuracy: Any  # mean over members
  curves: Any  # [2, epochs, M]: training loss, validation accuracy
  seconds: Any


def features_fn(
  network: inception.InceptionV3, tuning: Tuning
) -> Callable[[Any, Any, Any, Key[Array, ""] | None], Float[Array, "n F"]]:
  """Returns (parameters of the CNN, slices, count, key) → features, in micro-batches.

  Args:
    network: in evaluation mode; gives all but the parameters.
    tuning: sizes; views are drawn if there is a key.
  """
  graph, _, rest = nnx.split(network, nnx.Param, ...)

  def see(params, images, key):
    shown = images
    if key is not None and tuning.augmentation is not None:
      shown = augment(key, images, tuning.augmentation)
    return nnx.merge(graph, params, rest, copy=True).features(inception.from_uint8(shown))

  def part(params, images, key, real):
    nothing = lambda: jnp.zeros((tuning.micro_batch, inception.NUM_FEATURES))
    return jax.lax.cond(real, lambda: see(params, images, key), nothing)

  if tuning.remat:
    part = jax.checkpoint(part)

  def features(params, slices, count, key=None):
    if len(slices) == tuning.micro_batch:
      # XLA:CPU takes seven times as long over convolutions inside of a loop or a branch.
      return see(params, slices, None if key is None else jax.random.fold_in(key, 0))
    batches = slices.reshape(-1, tuning.micro_batch, *slices.shape[1:])
    number = jnp.arange(len(batches))
    keys = None if key is None else jax.vmap(jax.random.fold_in, (None, 0))(key, number)

    def one(_, inputs):
      images, key, real = inputs
      return None, part(params, images, key, real)

    real = number * tuning.micro_batch < count
    return jax.lax.scan(one, None, (batches, keys, real))[1].reshape(len(slices), -1)

  return features


def loss_fn(
  network: inception.InceptionV3,
  spec: HeadSpec,
  trained: Sequence[objective.Member],
  tuning: Tuning,
) -> Callable[[Any, Batch, Key[Array, ""]], tuple[Float[Array, ""], Float[Array, " M"]]]:
  """Returns ({"cnn", "heads"}, batch, key) → (mean loss of the members, each one's without penalty)."""
  features = features_fn(network, tuning)
  forcing = float(spec.feedback == "teacher")  # what is scheduled has come to its end

  def loss(params, batch, key):
    view_key, head_key = jax.random.split(key)
    values = features(params["cnn"], batch.slices, batch.count, view_key)[batch.place]

    found = []
    for place, member in enumerate(trained):
      own = jax.tree.map(lambda leaf, place=place: leaf[place], params["heads"])
      own_key = jax.random.fold_in(head_key, member.seed)
      draws = objective.draw(spec, member, own_key, values.shape[:2], forcing, tuning.input_dropout)
      found.append(objective.loss(spec, own, member, values, batch.truth, draws))
    whole, of_data = map(jnp.stack, zip(*found, strict=True))
    return whole.mean(), of_data

  return loss


def optimizer(tuning: Tuning, epoch_steps: int) -> optax.GradientTransformation:
  """Returns Adam with the schedules of `Tuning`."""
  steps = epoch_steps * tuning.epochs

  def adam(rate):
    return optax.adam(
      optax.warmup_cosine_decay_schedule(0.0, rate, min(epoch_steps, steps // 2), steps)
    )

  rates = {"cnn": adam(tuning.cnn_rate), "heads": adam(tuning.head_rate)}
  return optax.partition(rates, lambda params: {name: name for name in params})


def batches(
  split: slices_lib.Slices, spec: HeadSpec, tuning: Tuning, *, context: int, epoch: int
) -> Iterator[Batch]:
  """Yields one epoch's steps, each stack once; the last step may have stacks without slices.

  Args:
    split: slices of the training stacks.
    spec: tells where stacks are cut.
    tuning: sizes and seed.
    context: slices that the CNN sees at once.
    epoch: from 0; names the order.
  """
  longest = min(spec.max_slices, int(split.lengths.max()))
  stacks = slices_lib.features_of(split, np.zeros((len(split), 1)), longest)
  truth = losses.targets_of(stacks, spec.num_strata)
  truth = jax.tree.map(lambda x: np.pad(x, [(0, 1)] + [(0, 0)] * (x.ndim - 1)), truth)
  room = -(-tuning.batch_size * longest // tuning.micro_batch) * tuning.micro_batch
  count = len(split.stack_id)
  order = np.random.default_rng((tuning.seed, epoch)).permutation(count)
  steps = -(-count // tuning.batch_size)
  nobody = np.full(steps * tuning.batch_size - count, count)
  for stacks in np.concatenate([order, nobody]).reshape(steps, tuning.batch_size):
    rows = [np.flatnonzero(split.stack == stack)[:longest] for stack in stacks]
    starts = np.cumsum([0, *map(len, rows[:-1])])
    place = np.minimum(starts[:, None] + np.arange(longest), room - 1)
    rows = np.concatenate(rows)
    slices = batches_lib.with_context(
      split, np.pad(rows, (0, room - len(rows)), mode="edge"), context
    )
    yield Batch(slices, len(rows), place, jax.tree.map(lambda x, s=stacks: x[s], truth))


def train(
  network: inception.InceptionV3,
  spec: HeadSpec,
  trained: Sequence[objective.Member],
  heads: Any,
  splits: Mapping[str, slices_lib.Slices],
  directory: pathlib.Path,
  tuning: Tuning,
  *,
  advance: Callable[[int, int], None] = lambda done, total: None,
  scalars: Callable[[int, Mapping[str, float]], None] = lambda step, values: None,
  resumed: Callable[[int], None] = lambda step: None,
  about: Mapping[str, Any] | None = None,
) -> None:
  """Fine-tunes both on "train" and keeps the epoch that is best on "validation", or the start.

  Args:
    network: the CNN of the two-stage solution, in evaluation mode.
    spec: architecture of the heads.
    trained: the heads' members.
    heads: their parameters, leading axis M.
    splits: slices by split.
    directory: gets `model` and `heads`, the best parameters, as the stages before write them, and
      `history.json`. A training that was interrupted here goes on after the last epoch that was saved.
    tuning: how they are trained.
    advance: called with the steps done and the steps in all.
    scalars: called with each epoch's metrics.
    resumed: called with the first epoch that will be trained.
    about: what checkpoints carry besides `spec` and `tuning`.

  Raises:
    UserError: the loss is no longer finite.
    preemption.Preempted: the process was asked to stop; stops after the epoch, which is saved.
  """
  if resumable.finished(directory):
    return
  split = splits["train"]
  epoch_steps = -(-len(split.stack_id) // tuning.batch_size)
  optimize = optimizer(tuning, epoch_steps)
  loss = loss_fn(network, spec, trained, tuning)
  keys = jax.random.key(tuning.seed)

  @jax.jit
  def train_step(params, opt_state, step, batch):
    key = jax.random.fold_in(keys, step)
    (_, of_data), grads = jax.value_and_grad(loss, has_aux=True)(params, batch, key)
    updates, opt_state = optimize.update(grads, opt_state, params)
    return optax.apply_updates(params, updates), opt_state, of_data

  accuracy = accuracy_fn(network, spec, trained, splits["validation"], tuning)

  def leg(epoch, state, session):
    started = time.perf_counter()
    params, opt_state = state.params, state.optimizer
    seen = []
    stacks = batches(split, spec, tuning, context=network.in_channels, epoch=epoch)
    for step, batch in enumerate(stacks, epoch * epoch_steps):
      params, opt_state, of_data = train_step(params, opt_state, step, batch)
      seen.append(of_data)
      advance(step + 1, epoch_steps * tuning.epochs)
    row = np.stack([np.mean(seen, axis=0), accuracy(params)])
    if not np.isfinite(row).all():
      raise UserError(
        f"training loss of CNN and heads together is not finite in epoch {epoch}; "
        f"{session.kept()}; lower config.end_to_end.cnn_rate or head_rate"
      )
    best = state.best_params, state.best_accuracy
    if _mean(row[1]) > state.best_accuracy:
      best = params, _mean(row[1])
    curves = np.array(state.curves)
    curves[:, epoch] = row
    seconds = state.seconds + time.perf_counter() - started
    scalars(epoch, {"loss": float(row[0].mean()), "validation_accuracy": float(row[1].mean())})
    return epoch + 1, _State(params, opt_state, *best, curves, np.asarray(seconds))

  params = {"cnn": nnx.state(network, nnx.Param), "heads": heads}
  curves = np.full((2, tuning.epochs, len(trained)), np.nan, np.float32)
  initial = _State(
    params, optimize.init(params), params, np.zeros((), np.float32), curves, np.zeros(())
  )
  state = resumable.run(
    leg,
    directory,
    initial,
    lambda: initial._replace(best_accuracy=_mean(accuracy(params))),
    name="end_to_end",
    unit="epoch",
    total=tuning.epochs,
    about={
      "head": dataclasses.asdict(spec),
      "tuning": dataclasses.asdict(tuning),
      **(about or {}),
    },
    resumed=resumed,
  )
  best, (of_training, accuracies) = state.best_params, np.asarray(state.curves)
  stats = nnx.state(network, nnx.BatchStat)
  resumable.finish(
    directory,
    {"model": {"params": best["cnn"], "stats": stats}, "heads": best["heads"]},
    lambda: {
      "loss": of_training.T.tolist(),
      "validation_accuracy": accuracies.T.tolist(),
      "seconds": float(state.seconds) / len(trained),
    },
  )


def accuracy_fn(
  network: inception.InceptionV3,
  spec: HeadSpec,
  trained: Sequence[objective.Member],
  split: slices_lib.Slices,
  tuning: Tuning,
) -> Callable[[Any], Float[np.ndarray, " M"]]:
  """Returns {"cnn", "heads"} → each member's share of the split's slices classified right."""
  see = features_fn(network, tuning)
  features = jax.jit(lambda params, images: see(params, images, tuning.micro_batch))
  stacked = jax.tree.map(lambda *values: jnp.array(values), *trained)

  @jax.jit
  def shares(heads, padded):
    return jax.lax.map(lambda one: objective.accuracy(spec, *one, padded), (heads, stacked))

  def accuracy(params):
    pairs = batches_lib.sequential_batches(
      split, batch_size=tuning.micro_batch, context=network.in_channels
    )
    values = [features(params["cnn"], images)[: len(rows)] for images, rows in pairs]
    padded = slices_lib.features_of(split, np.concatenate(values)).cut(spec.max_slices)
    return np.asarray(shares(params["heads"], padded))

  return accuracy


def _mean(values: Any) -> np.ndarray:
  return np.asarray(np.mean(values), np.float32)  # one type, as a checkpoint is read back
