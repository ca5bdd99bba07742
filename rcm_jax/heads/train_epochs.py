"""Members of a sweep: one training each, built from plain arrays, mapped over a member axis."""

from __future__ import annotations

from collections.abc import Callable
from concurrent import futures
import functools
from typing import Any, NamedTuple

from flax import nnx
import jax
import jax.numpy as jnp
from jax.sharding import Mesh, NamedSharding
from jaxtyping import Array, Bool, Float, Key
import numpy as np
import optax

from rcm_jax.arrays import ArrayLike, Features
from rcm_jax.decoding import monotone_model
from rcm_jax.decoding import strata as strata_lib
from rcm_jax.heads import losses
from rcm_jax.heads.head import DropoutMasks, Head, HeadSpec, dropout_masks
from rcm_jax.runtime import devices
from tfds_rcm.staging import num_cores


class Member(NamedTuple):
  """One training; each field a number, or an array with one entry a member.

  Attributes:
    seed: of initialisation, order and dropout.
    half_width: D of Toeplitz attention.
    learning_rate: Adam's, constant.
    l1: weight of the mean absolute recurrent weight in the loss.
    dropout: rate on the recurrent connections.
    mae_weight: of the expected boundary error in the loss, per µm; with the likelihood of the
      boundaries only.
  """

  seed: Any
  half_width: Any
  learning_rate: Any
  l1: Any
  dropout: Any
  mae_weight: Any = 0.0


# What an ordered head's evidence is tried to be divided by.
TEMPERATURES = (0.8, 1.0, 1.25, 1.6, 2.0, 2.5, 3.2, 4.0, 5.0, 6.4)


class _State(NamedTuple):
  params: Any
  optimizer: Any
  average: Any  # of optax.ema; nothing where none is taken
  best_params: Any
  best_score: Any


class Training(NamedTuple):
  """Functions of one member, to be jitted and mapped by the caller.

  Attributes:
    init: member → state.
    run: (state, member, first epoch) → (state, curves [epochs a call, 2]: training
      loss and validation accuracy).
    splits: whether two devices train one member faster than one does, see `compile_split`.
  """

  init: Callable[[Member], Any]
  run: Callable[[Any, Member, Any], tuple[Any, Any]]
  splits: bool


def graph_of(spec: HeadSpec) -> nnx.GraphDef:
  """Returns the static half of the head's `nnx.split`."""
  return nnx.split(nnx.eval_shape(lambda: Head(spec, nnx.Rngs(0))))[0]


def recurrent_penalty(params: Any, reduction: str = "mean") -> Float[Array, ""]:
  """Absolute recurrent weights, summed over the recurrent matrices, one a direction.

  The paper gives the coefficient, 0.05, but not the reduction. The mean is our reading. Keras'
  regulariser adds up all weights of a matrix, 12,288 at the paper's size, and so weighs that many
  times more: at the paper's scale it shrinks the recurrent weights of the kept snapshots to 0.0001
  and leaves accuracy about as it is (88.2 against 88.4 %, two seeds).

  Args:
    params: of a head.
    reduction: of a matrix: "mean" or "sum".
  """
  reduce = {"mean": jnp.mean, "sum": jnp.sum}[reduction]
  leaves = jax.tree_util.tree_leaves_with_path(params)
  return sum(
    reduce(jnp.abs(leaf), axis=(-2, -1)).sum()
    for path, leaf in leaves
    if "recurrent_kernel" in jax.tree_util.keystr(path)
  )


class Draws(NamedTuple):
  """What is random in one step.

  Attributes:
    dropout: a mask of each stack's recurrent connections.
    use_label: slices whose decoder is told the previous label; None where none ever is.
    features: by stack, 0 for a hidden feature, else 1 / keep probability; None where none is hidden.
  """

  dropout: DropoutMasks
  use_label: Bool[Array, "*dims"] | None
  features: Float[Array, "*dims"] | None


def draw(
  spec: HeadSpec,
  member: Member,
  key: Key[Array, ""],
  mask_shape: tuple[int, int],
  told: Float[ArrayLike, ""] | float,
) -> Draws:
  """Draws one step's dropout and told labels.

  Args:
    spec: the architecture.
    member: whose dropout rate it is.
    key: of this step.
    mask_shape: stacks and slices of the batch.
    told: share of slices that are told the previous label, in the modes that tell any.
  """
  dropout_key, told_key = jax.random.split(key)
  keys = jax.random.split(dropout_key, mask_shape[0])
  dropout = jax.vmap(lambda key: dropout_masks(spec, key, member.dropout))(keys)
  tells_labels = spec.feedback in ("teacher", "scheduled")
  use_label = jax.random.bernoulli(told_key, told, mask_shape) if tells_labels else None
  features = None
  if spec.input_dropout:
    keep, shape = 1 - spec.input_dropout, (mask_shape[0], spec.num_features)
    features = jax.random.bernoulli(jax.random.fold_in(key, 2), keep, shape) / keep
  return Draws(dropout, use_label, features)


def loss(
  spec: HeadSpec,
  params: Any,
  member: Member,
  values: Float[ArrayLike, "B T F"],
  truth: losses.Targets,
  draws: Draws,
) -> tuple[Float[Array, ""], Float[Array, ""]]:
  """What one member's training minimises on a batch of stacks.

  Args:
    spec: the architecture.
    params: the member's.
    member: its hyperparameters.
    values: features of the stacks' slices.
    truth: about the same stacks.
    draws: of this step.

  Returns:
    The loss with its penalty on weights, and without.
  """
  model = nnx.merge(graph_of(spec), params)
  if draws.features is not None:
    values = values * draws.features[:, None]

  def one(x, real, y, draws):
    return model.evidence(
      x,
      real,
      half_width=member.half_width,
      dropout=draws.dropout,
      labels=None if draws.use_label is None else y,
      use_label=draws.use_label,
    )

  evidence = jax.vmap(one)(values, truth.mask, truth.labels, draws)
  if spec.ordered:
    of_data = losses.of_boundaries(evidence, truth, member.mae_weight)
  else:
    of_data = losses.of_slices(evidence, truth)
  return of_data + member.l1 * recurrent_penalty(params, spec.l1_reduction), of_data


def accuracy(spec: HeadSpec, params: Any, member: Member, features: Features) -> Float[Array, ""]:
  """Returns the share of slices that one member classifies right."""
  model = nnx.merge(graph_of(spec), params)
  logits = jax.vmap(lambda x, m: model(x, m, half_width=member.half_width))(
    jnp.asarray(features.values), jnp.asarray(features.mask)
  )
  strata = strata_lib.strata_of(jax.nn.softmax(logits), ordered=spec.ordered)
  correct = (strata == features.labels) & features.mask
  return correct.sum() / features.mask.sum()


def soften(
  spec: HeadSpec, params: Any, member: Member, features: Features, truth: losses.Targets
) -> tuple[Any, Float[Array, ""]]:
  """Divides an ordered head's evidence by what makes the boundaries of these stacks most probable.

  Trained on boundaries that readers misplace, a head grows too sure: its medians become its most
  probable boundaries, which err more. The decoder's last layer takes the temperature up, so
  that the head's probabilities are calibrated as they leave it.

  Args:
    spec: an ordered head's; with class feedback, its evidence is left as it is.
    params: the member's.
    member: its hyperparameters.
    features: of stacks that were not trained on.
    truth: about the same stacks.

  Returns:
    Parameters, and the boundaries' mean log-likelihood with them, by stack.
  """
  model = nnx.merge(graph_of(spec), params)
  evidence = jax.vmap(lambda x, m: model.evidence(x, m, half_width=member.half_width))(
    jnp.asarray(features.values), truth.mask
  )
  temperatures = jnp.array(TEMPERATURES if spec.feedback == "none" else (1.0,))
  of_stacks = jax.vmap(monotone_model.log_likelihood)
  tried = jax.vmap(lambda t: of_stacks(evidence / t, truth.mask, truth.boundaries).mean())(
    temperatures
  )
  best = tried.argmax()
  scaled = lambda path, leaf: (
    leaf / temperatures[best] if jax.tree_util.keystr(path).startswith("['decoder']") else leaf
  )
  return jax.tree_util.tree_map_with_path(scaled, params), tried[best]


def make_train(
  spec: HeadSpec,
  train: Features,
  validation: Features,
  *,
  batch_size: int,
  epochs: int,
  epochs_per_call: int,
) -> Training:
  """Builds the training of one member (Methods, "Experiments").

  Args:
    spec: the architecture.
    train: padded training stacks.
    validation: padded validation stacks; the snapshot that classifies most of their
      slices correctly is kept; of an ordered head, the one under which their boundaries are most
      probable, softened by `soften`.
    batch_size: stacks a step; the last step of an epoch may have fewer.
    epochs: in all, which scheduled sampling needs to know.
    epochs_per_call: that `run` trains.
  """
  count = len(train)
  steps = -(-count // batch_size)
  adam = optax.scale_by_adam()
  averaging = optax.ema(spec.average) if spec.average else optax.identity()
  judged = losses.targets_of(validation)
  # One all-masked stack stands in where an epoch's last batch has no more stacks.
  values, targets = jax.tree.map(
    lambda x: jnp.concatenate([x, jnp.zeros((1, *x.shape[1:]), x.dtype)]),
    (train.values, losses.targets_of(train)),
  )

  def loss_fn(params, member, rows, draws):
    truth = jax.tree.map(lambda known: known[rows], targets)
    return loss(spec, params, member, values[rows], truth, draws)

  def init(member: Member) -> _State:
    params = nnx.state(Head(spec, nnx.Rngs(params=jax.random.key(member.seed))), nnx.Param)
    average = averaging.init(params)
    return _State(params, adam.init(params), average, params, jnp.float32(-jnp.inf))

  def run(state: _State, member: Member, first_epoch: Any) -> tuple[_State, Any]:
    base = jax.random.key(member.seed)

    def epoch(state, number):
      order_key, step_key = jax.random.split(jax.random.fold_in(base, number + 1))
      order = jnp.concatenate(
        [jax.random.permutation(order_key, count), jnp.full(steps * batch_size - count, count)]
      )
      told = 1.0 if spec.feedback == "teacher" else 1 - number / max(epochs - 1, 1)
      # All steps' at once, so that the loop draws no random numbers.
      draws = jax.vmap(lambda key: draw(spec, member, key, (batch_size, values.shape[1]), told))(
        jax.random.split(step_key, steps)
      )

      def step(carry, inputs):
        params, opt_state, average = carry
        (_, of_data), grads = jax.value_and_grad(loss_fn, has_aux=True)(params, member, *inputs)
        updates, opt_state = adam.update(grads, opt_state)
        params = jax.tree.map(lambda p, u: p - member.learning_rate * u, params, updates)
        _, average = averaging.update(params, average)
        return (params, opt_state, average), of_data

      (params, opt_state, average), step_losses = jax.lax.scan(
        step,
        (state.params, state.optimizer, state.average),
        (order.reshape(steps, batch_size), draws),
      )
      kept, likelihood = params, None
      if spec.average:
        kept = optax.tree.bias_correction(average.ema, spec.average, average.count)
      if spec.ordered:
        kept, likelihood = soften(spec, kept, member, validation, judged)
      now = accuracy(spec, kept, member, validation)
      score = likelihood if spec.ordered else now
      best = jax.tree.map(
        lambda new, old: jnp.where(score > state.best_score, new, old),
        (kept, score),
        (state.best_params, state.best_score),
      )
      return _State(params, opt_state, average, *best), jnp.stack([step_losses.mean(), now])

    return jax.lax.scan(epoch, state, first_epoch + jnp.arange(epochs_per_call))

  # Measured: other cells and decoders exchange too much.
  splits = spec.bidirectional and spec.cell == "gru" and spec.decoder == "dense"
  return Training(init, run, splits and spec.attention in ("none", "toeplitz"))


def over_members(function: Callable) -> Callable:
  """Maps a function of (member's arguments) over a leading member axis.

  On a CPU members run one after the other: XLA turns a product batched over members
  into many small ones, which is slower than as many single programs in a row.
  """
  if jax.default_backend() == "cpu":
    return lambda *args: jax.lax.map(lambda one: function(*one), args)
  return jax.vmap(function)


def compile_run(training: Training, *args: Any) -> Callable[[Any, Any, Any], tuple[Any, Any]]:
  """Compiles `training.run` over members, for arguments like `args`, each with a member axis.

  Members are split over this process' devices, which have nothing to tell each other.

  A step of one member gives a second core of a CPU little to do. There, every member runs by
  itself, as many at a time as there are cores, and the program is compiled for one; if there is
  one member only, each direction of its encoder has a core.
  """
  mesh = devices.local_mesh()
  if jax.default_backend() != "cpu" or mesh.size > 1:
    run = devices.split_work(over_members(training.run), mesh)
    return jax.jit(run).lower(*args).compile()
  count = len(jax.tree.leaves(args)[0])
  one = lambda args, i: jax.tree.map(lambda leaf: leaf[i], args)
  first, pair = one(jax.device_get(args), 0), devices.core_pair()
  if count == 1 and training.splits and pair is not None:
    program = compile_split(training, pair, *first)
  else:
    program = jax.jit(training.run).lower(*first).compile()

  def run(*args):
    args = jax.device_get(args)
    alone = lambda i: jax.device_get(program(*one(args, i)))
    with futures.ThreadPoolExecutor(num_cores()) as pool:
      found = list(pool.map(alone, range(count)))
    return jax.tree.map(lambda *leaves: np.stack(leaves), *found)

  return run


def compile_split(
  training: Training, pair: Mesh, state: Any, member: Member, first_epoch: Any
) -> Callable[[Any, Member, Any], tuple[Any, Any]]:
  """Compiles `training.run` for one member, with the two directions of its encoder on two devices.

  The compiler splits the program (GSPMD): what is computed from variables whose leading axis is the
  directions lies on one device each, all else on both. With a dense decoder a step needs one
  exchange, of the halves of the logits.

  Returns:
    A function of host arrays.
  """
  half, whole = devices.split_leading(pair), devices.replicated(pair)

  def place(path: Any, leaf: Any) -> NamedSharding:
    of_encoder = "['encoder']" in jax.tree_util.keystr(path)
    return half if of_encoder and np.ndim(leaf) > 2 else whole

  placed = jax.tree_util.tree_map_with_path(place, state)
  run = jax.jit(training.run, in_shardings=(placed, whole, whole), out_shardings=(placed, whole))
  program = run.lower(state, member, first_epoch).compile()
  on_both = functools.partial(jax.device_put, device=whole)
  return lambda state, member, epoch: program(
    jax.device_put(state, placed), on_both(member), on_both(epoch)
  )
