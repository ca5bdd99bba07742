"""One member's training: epochs of steps, shuffles and choice of the snapshot, as one program."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

from flax import nnx
import jax
import jax.numpy as jnp
import optax

from rcm_jax.arrays import Features
from rcm_jax.heads import losses
from rcm_jax.heads.head import Head, HeadSpec
from rcm_jax.heads.objective import Member, accuracy, draw, fit_and_fold_temperature, loss


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
    splits: whether two devices train one member faster than one does, see `member_parallel.compile_split`.
  """

  init: Callable[[Member], Any]
  run: Callable[[Any, Member, Any], tuple[Any, Any]]
  splits: bool


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
  """
  count = len(train)
  steps = -(-count // batch_size)
  adam = optax.scale_by_adam()
  averaging = optax.ema(ema_decay) if ema_decay else optax.identity()
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
      forcing = 1.0 if spec.feedback == "teacher" else 1 - number / max(epochs - 1, 1)
      # All steps' at once, so that the loop draws no random numbers.
      draws = jax.vmap(
        lambda key: draw(spec, member, key, (batch_size, values.shape[1]), forcing, input_dropout)
      )(jax.random.split(step_key, steps))

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
      if ema_decay:
        kept = optax.tree.bias_correction(average.ema, ema_decay, average.count)
      if spec.ordered:
        kept, likelihood = fit_and_fold_temperature(spec, kept, member, validation, judged)
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
  return Training(init, run, splits and spec.attention.kind in ("none", "toeplitz"))
