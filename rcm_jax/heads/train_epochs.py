"""One member's training: epochs of steps, shuffles and choice of the snapshot, as one program."""

from __future__ import annotations

from collections.abc import Callable
import dataclasses
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from rcm_jax.arrays import Features
from rcm_jax.heads import losses
from rcm_jax.heads.epoch import Recipe, State, make_epoch
from rcm_jax.heads.head import HeadSpec
from rcm_jax.heads.objective import Member, accuracy, fit_temperature, unary_scores


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
  spec: HeadSpec, train: Features, validation: Features, *, epochs_per_call: int, **recipe: Any
) -> Training:
  """Builds the training of one member (Methods, "Experiments"), all data in memory.

  Args:
    spec: the architecture.
    train: padded training stacks.
    validation: padded validation stacks; the snapshot that classifies most of their
      slices correctly is kept; of an ordered head, the one under which their boundaries are most
      probable, with the temperature that `fit_temperature` finds.
    epochs_per_call: that `run` trains.
    recipe: fields of `epoch.Recipe`.
  """
  # One all-masked stack stands in where an epoch's last batch has no more stacks.
  values, targets = jax.tree.map(
    lambda x: jnp.concatenate([x, jnp.zeros((1, *x.shape[1:]), x.dtype)]),
    (train.values, losses.targets_of(train, spec.num_strata)),
  )
  validation = dataclasses.replace(validation, stack_id=(), patient_id=())
  all_data = _Data(values, targets, validation, losses.targets_of(validation, spec.num_strata))
  parts = make_epoch(spec, Recipe(**recipe), len(train), values.shape[1])

  def program(state: State, member: Member, first_epoch: Any, data: _Data) -> tuple[State, Any]:
    def epoch(state, number):
      def step(carry, inputs):
        rows, draws = inputs
        truth = jax.tree.map(lambda known: known[rows], data.targets)
        return parts.step(carry, member, data.values[rows], truth, draws)

      # All steps' draws at once, so that the loop draws no random numbers.
      walked, step_losses = jax.lax.scan(
        step,
        (state.params, state.optimizer, state.average),
        (parts.order(member, number), parts.draws(member, number, 0, parts.steps)),
      )
      state = State(*walked, state.best_params, state.best_score)
      kept, likelihood = parts.kept(state), None
      if spec.ordered:
        scores = unary_scores(spec, kept, member, data.validation)
        kept, likelihood = fit_temperature(spec, kept, scores, data.judged)
      now = accuracy(spec, kept, member, data.validation)
      state = parts.choose(state, kept, likelihood if spec.ordered else now)
      return state, jnp.stack([step_losses.mean(), now])

    return jax.lax.scan(epoch, state, first_epoch + jnp.arange(epochs_per_call))

  return Training(parts.init, parts.begin, program, _splits(spec), all_data)


def _splits(spec: HeadSpec) -> bool:
  # Measured: other cells and decoders exchange too much.
  plain = spec.bidirectional and spec.cell == "gru" and spec.decoder == "dense"
  return plain and spec.attention.kind in ("none", "toeplitz")
