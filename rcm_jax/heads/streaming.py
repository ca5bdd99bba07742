"""Trains sequence heads on more stacks than fit in memory, which are read while they are trained on.

Members, random numbers, steps and snapshots are those of `rcm_jax.heads.training`, and so is the result but for
rounding. Where that has all data on the device, this hands over some steps' batches at a time.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
import dataclasses
import pathlib
import time
from typing import Any, NamedTuple

import grain
import jax
import jax.numpy as jnp
import numpy as np

from rcm_jax.arrays import Features
from rcm_jax.data.stored import BLOCK, StoredStacks
from rcm_jax.heads import losses
from rcm_jax.heads.epoch import Epoch, Recipe, State, make_epoch
from rcm_jax.heads.head import HeadSpec
from rcm_jax.heads.member_parallel import (
  first_states,
  over_members,
  over_members_of,
  spread_members,
)
from rcm_jax.heads.objective import Member, correct, fit_temperature, unary_scores
from rcm_jax.heads.training import Progress, finish, report
from rcm_jax.runtime import devices, resumable
from tfds_rcm.cores import num_cores

_CHUNK_BYTES = 32e6  # of the batches that are handed over at once
_AHEAD = 4  # chunks read before they are needed


class _Walk(NamedTuple):
  """Where a training stands within its epochs: what `Progress` has, and the losses of this epoch."""

  progress: Progress
  losses: np.ndarray  # summed over the steps of this epoch, [M]


def train(
  spec: HeadSpec,
  members: Sequence[Member],
  train_stacks: StoredStacks,
  validation_stacks: StoredStacks,
  directory: pathlib.Path,
  *,
  advance: Callable[[int, int], None] = lambda done, total: None,
  scalars: Callable[[int, Mapping[str, float]], None] = lambda step, values: None,
  resumed: Callable[[int], None] = lambda step: None,
  about: Mapping[str, Any] | None = None,
  start: Any = None,
  **recipe: Any,
) -> None:
  """Trains all members and keeps each one's best snapshot.

  Args:
    spec: the architecture.
    members: what to train; they share nothing but the data.
    train_stacks: to train on.
    validation_stacks: to choose each member's snapshot on.
    directory: see `training.train`; an interrupted training goes on within its epoch.
    advance: called with the steps done and the steps in all.
    scalars: called with each epoch's metrics, mean over members.
    resumed: called with the first epoch whose metrics will be told.
    about: what checkpoints carry besides `spec`.
    start: parameters that members start from, leading axis M; None for those of their seeds.
    recipe: fields of `epoch.Recipe`.

  Raises:
    UserError: a member's loss is no longer finite; the state that was saved is kept.
    preemption.Preempted: the process was asked to stop, and the state is saved.
  """
  if resumable.finished(directory):
    return
  wanted = Recipe(**recipe)
  parts = make_epoch(spec, wanted, len(train_stacks), train_stacks.length)
  steps = parts.steps
  spread, whole = spread_members(len(members))
  stacked = spread(jax.tree.map(lambda *x: np.stack(x), *members))
  on_members = lambda function, *copied: jax.jit(
    devices.split_work(function, devices.local_mesh(), copied or None)
  )
  initial = first_states(parts, stacked, None if start is None else spread(start))
  order = on_members(over_members(parts.order))
  walk = on_members(_walk(spec, parts), *[False] * 5, True)
  judge = _judge(spec, parts, validation_stacks, on_members)
  # Members of one seed see stacks in one order: these are read once.
  seeds, first_of, which = np.unique(
    [member.seed for member in members], return_index=True, return_inverse=True
  )
  own = spread(which.astype(np.int32))
  everyone = lambda number: spread(np.full(len(members), number, np.int32))
  size = train_stacks.length * train_stacks.num_features * 4 * wanted.batch_size * len(seeds)
  chunk = int(np.clip(_CHUNK_BYTES // size, 1, steps))
  reading: dict[int, Iterator[Features]] = {}  # by epoch, the one that is under way

  def batches(epoch: int, first: int) -> Iterator[Features]:
    if epoch not in reading:
      reading.clear()
      rows = np.asarray(whole(order(stacked, everyone(epoch))))[first_of]
      reading[epoch] = _read(train_stacks, rows[:, first:], chunk)
    return reading[epoch]

  def leg(done: int, state: _Walk, session: resumable.Session) -> tuple[int, _Walk]:
    started = time.perf_counter()
    epoch, first = divmod(done, steps)
    batch = next(batches(epoch, first))
    progress = state.progress
    walked, found = walk(progress.state, stacked, everyone(epoch), everyone(first), own, batch)
    after = first + batch.mask.shape[1]
    so_far, curves = state.losses + np.asarray(whole(found), np.float64), progress.curves
    if after == steps:
      walked, accuracy = judge(walked, stacked)
      curves = np.array(curves)
      curves[:, epoch, 0] = so_far / steps
      curves[:, epoch, 1] = whole(accuracy)
      report(curves, [epoch], members, session, scalars)
      so_far = np.zeros_like(so_far)
    advance(epoch * steps + after, total)
    seconds = np.asarray(progress.seconds + time.perf_counter() - started, np.float32)
    return epoch * steps + after, _Walk(Progress(walked, curves, seconds), so_far)

  total = wanted.epochs * steps
  curves = np.full((len(members), wanted.epochs, 2), np.nan, np.float32)
  rows = lambda leaf: np.zeros((len(members), *leaf.shape[1:]), leaf.dtype)
  begin = _Walk(Progress(initial, curves, np.zeros((), np.float32)), np.zeros(len(members)))
  with_state = lambda walk, state: walk._replace(progress=walk.progress._replace(state=state))
  last = resumable.run(
    leg,
    directory,
    with_state(begin, jax.tree.map(rows, initial)),
    lambda: begin,
    name="train_heads",
    unit="step",
    total=total,
    about={"head": dataclasses.asdict(spec), **(about or {})},
    resumed=lambda done: resumed(done // steps),
    to_tree=lambda walk: with_state(walk, whole(walk.progress.state)),
    from_tree=lambda tree: with_state(tree, spread(tree.progress.state)),
  )
  finish(directory, members, last.progress, whole)


def _read(stacks: StoredStacks, order: np.ndarray, chunk: int) -> Iterator[Features]:
  """Yields batches, [orders, ≤ chunk, B, T, …], of the stacks in `order`, [orders, steps, B]."""

  def read(first: int) -> Features:
    rows = order[:, first : first + chunk]
    found = dataclasses.replace(stacks.take(rows.ravel()), stack_id=(), patient_id=())
    return jax.tree.map(lambda leaf: leaf.reshape(*rows.shape, *leaf.shape[1:]), found)

  threads = max(1, min(num_cores() - 1, _AHEAD))
  options = grain.ReadOptions(num_threads=threads, prefetch_buffer_size=_AHEAD)
  firsts = grain.MapDataset.range(0, order.shape[1], chunk)
  return iter(firsts.map(read).to_iter_dataset(options))


def _walk(spec: HeadSpec, parts: Epoch) -> Callable:
  """Returns (state, member, epoch, first step, which order, batches) → (state, sum of the losses)."""

  def one(state: State, member: Member, number: Any, first: Any, own: Any, batches: Features):
    steps = batches.mask.shape[1]

    def step(carry, inputs):
      batch, draws = inputs
      truth = losses.targets_of(batch, spec.num_strata)
      return parts.step(carry, member, batch.values, truth, draws)

    walked, found = jax.lax.scan(
      step,
      (state.params, state.optimizer, state.average),
      (jax.tree.map(lambda x: x[own], batches), parts.draws(member, number, first, steps)),
    )
    return State(*walked, state.best_params, state.best_score), found.sum()

  return over_members_of(one)


def _judge(
  spec: HeadSpec, parts: Epoch, validation: StoredStacks, on_members: Callable
) -> Callable[[Any, Any], tuple[Any, Any]]:
  """Returns (states, members) → (states that keep the better snapshots, validation accuracy)."""
  size = min(BLOCK, len(validation))
  with_shared = lambda function: on_members(
    over_members_of(lambda *args: function(spec, *args)), False, False, True
  )
  scores_of, correct_of, fit = map(with_shared, (unary_scores, correct, fit_temperature))
  kept_of = on_members(over_members(lambda state: parts.kept(state)))
  choose = on_members(over_members(lambda *args: parts.choose(*args)))

  def blocks() -> Iterator[Features]:
    for block in validation.blocks(size):
      yield dataclasses.replace(block, stack_id=(), patient_id=())

  def truth() -> losses.Targets:
    without = lambda block: dataclasses.replace(block, values=block.values[..., :0])
    parts = [without(block) for block in blocks()]
    all_of_them = jax.tree.map(lambda *x: np.concatenate(x)[: len(validation)], *parts)
    return losses.targets_of(all_of_them, spec.num_strata)

  judged = truth() if spec.ordered else None

  def judge(states: Any, members: Any) -> tuple[Any, Any]:
    params, likelihood = kept_of(states), None
    if spec.ordered:
      found = [np.asarray(scores_of(params, members, block)) for block in blocks()]
      params, likelihood = fit(params, np.concatenate(found, 1)[:, : len(validation)], judged)
    counts = [jnp.stack(correct_of(params, members, block)) for block in blocks()]
    right, real = np.sum([np.asarray(count, np.int64) for count in counts], axis=0)
    accuracy = (right / real).astype(np.float32)
    return choose(states, params, likelihood if spec.ordered else accuracy), accuracy

  return judge
