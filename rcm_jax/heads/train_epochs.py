"""One member's training: epochs of steps, shuffles and choice of the snapshot, as one program."""

from __future__ import annotations

from collections.abc import Callable
import dataclasses
from typing import Any, NamedTuple

from flax import nnx
import jax
import jax.numpy as jnp
import optax

from rcm_jax.arrays import Features
from rcm_jax.heads import losses
from rcm_jax.heads.head import Head, HeadSpec
from rcm_jax.heads.objective import (
  L1Reduction,
  Member,
  accuracy,
  draw,
  fit_and_fold_temperature,
  loss,
)


class _State(NamedTuple):
  params: Any
  optimizer: Any
  average: Any  # of optax.ema; nothing where none is taken
  best_params: Any
  best_score: Any


class _Data(NamedTuple):
  """What all members are trained and judged on: an argument of the program, however large it is."""

  values: Any
  targets: losses.Targets
  validation: Features
  judged: losses.Targets


class Training(NamedTuple):
  """Functions of one member, to be jitted and mapped by the caller.

  Attributes:
    init: member → state.
    begin: parameters → state.
    program: (state, member, first epoch, data) → (state, curves [epochs a call, 2]: training
      loss and validation accuracy).
    splits: whether two devices train one member faster than one does, see `member_parallel.compile_split`.
    data: all members'.
  """

  init: Callable[[Member], Any]
  begin: Callable[[Any], Any]
  program: Callable[[Any, Member, Any, Any], tuple[Any, Any]]
  splits: bool
  data: Any

  def run(self, state: Any, member: Member, first_epoch: Any) -> tuple[Any, Any]:
    """The program with its data."""
    return self.program(state, member, first_epoch, self.data)


def make_train(
  spec: HeadSpec,
  train: Features,
  validation: Features,
  *,
  batch_size: int,
  epochs: int,
  epochs_per_call: int,
  input_dropout: float = 0.0,
  ema_decay: float = 0.0,
  l1_reduction: L1Reduction = "mean",
  shortest_crop: float = 1.0,
) -> Training:
  """Builds the training of one member (Methods, "Experiments").

  Args:
    spec: the architecture.
    train: padded training stacks.
    validation: padded validation stacks; the snapshot that classifies most of their
      slices correctly is kept; of an ordered head, the one under which their boundaries are most
      probable, with the temperature that `fit_and_fold_temperature` finds.
    batch_size: stacks a step; the last step of an epoch may have fewer.
    epochs: in all, which scheduled sampling needs to know.
    epochs_per_call: that `run` trains.
    input_dropout: share of the features that training hides from a stack's slices, the same ones
      from all of them.
    ema_decay: decay a step of the running average of the weights, which is judged and kept; 0
      takes the weights themselves.
    l1_reduction: see `objective.recurrent_penalty`.
    shortest_crop: share of a training stack's slices that the shortest of its crops in depth has,
      which are drawn anew each epoch; 1 leaves stacks whole.
  """
  count = len(train)
  steps = -(-count // batch_size)
  adam = optax.scale_by_adam()
  averaging = optax.ema(ema_decay) if ema_decay else optax.identity()
  # One all-masked stack stands in where an epoch's last batch has no more stacks.
  values, targets = jax.tree.map(
    lambda x: jnp.concatenate([x, jnp.zeros((1, *x.shape[1:]), x.dtype)]),
    (train.values, losses.targets_of(train, spec.num_strata)),
  )

  validation = dataclasses.replace(validation, stack_id=(), patient_id=())
  all_data = _Data(values, targets, validation, losses.targets_of(validation, spec.num_strata))
  mask_shape = (batch_size, values.shape[1])

  def loss_fn(params, member, data, rows, draws):
    truth = jax.tree.map(lambda known: known[rows], data.targets)
    return loss(spec, params, member, data.values[rows], truth, draws, l1_reduction, shortest_crop)

  def init(member: Member) -> _State:
    return begin(nnx.state(Head(spec, nnx.Rngs(params=jax.random.key(member.seed))), nnx.Param))

  def begin(params: Any) -> _State:
    average = averaging.init(params)
    return _State(params, adam.init(params), average, params, jnp.float32(-jnp.inf))

  def program(state: _State, member: Member, first_epoch: Any, data: _Data) -> tuple[_State, Any]:
    base = jax.random.key(member.seed)

    def epoch(state, number):
      order_key, step_key = jax.random.split(jax.random.fold_in(base, number + 1))
      order = jnp.concatenate(
        [jax.random.permutation(order_key, count), jnp.full(steps * batch_size - count, count)]
      )
      forcing = 1.0 if spec.feedback == "teacher" else 1 - number / max(epochs - 1, 1)
      # All steps' at once, so that the loop draws no random numbers.
      draws = jax.vmap(
        lambda key: draw(spec, member, key, mask_shape, forcing, input_dropout, shortest_crop)
      )(jax.random.split(step_key, steps))

      def step(carry, inputs):
        params, opt_state, average = carry
        (_, of_data), grads = jax.value_and_grad(loss_fn, has_aux=True)(
          params, member, data, *inputs
        )
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
      if ema_decay:
        kept = optax.tree.bias_correction(average.ema, ema_decay, average.count)
      if spec.ordered:
        kept, likelihood = fit_and_fold_temperature(
          spec, kept, member, data.validation, data.judged
        )
      now = accuracy(spec, kept, member, data.validation)
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
  splits = splits and spec.attention.kind in ("none", "toeplitz")
  return Training(init, begin, program, splits, all_data)
