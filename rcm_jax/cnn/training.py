"""Trains the single-slice classifier on augmented slices, step by step, and can stop at any step."""

from __future__ import annotations

from collections.abc import Callable, Mapping
import dataclasses
import functools
import pathlib
import time
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.sharding import Mesh
import numpy as np

from rcm_jax.cnn import train_step
from rcm_jax.cnn.spec import CnnSpec
from rcm_jax.cnn.train_step import Learned
from rcm_jax.data.batches import (
  neighbour_rows,
  sequential_batches,
  training_batches,
  training_rows,
  with_context,
)
from rcm_jax.data.slices import Slices
from rcm_jax.ops.backend import backend
from rcm_jax.runtime import devices, preemption, resumable
from tfds_rcm.errors import UserError

Scalars = Callable[[int, Mapping[str, float]], None]  # (step, values)
Advance = Callable[[int, int], None]  # (done, total)

SECONDS_BETWEEN_SAVES = 600.0  # within an epoch; what a killed training has to do again at most
HELD_BYTES = (
  8 << 30
)  # a split of at most so many stays on the device; the paper's has 1.9 GB in all
STEPS_BETWEEN_VISITS = 16  # at which several processes agree on whether to save or to stop
_CURVES = ("loss", "accuracy", "validation_accuracy", "seconds")


class _State(NamedTuple):
  """What a training needs to go on after any step: with the step, its data position and its keys.

  Attributes:
    learned: parameters, running statistics and the optimiser's state.
    best: parameters and statistics of the epoch that was best on validation.
    best_accuracy: that epoch's.
    history: curves [epochs, 4] of `_CURVES`, NaN in epochs to come.
    metrics: loss and accuracy of this epoch's steps, [steps an epoch, 2].
    seconds: spent on this epoch so far.
  """

  learned: Learned
  best: tuple[Any, Any]
  best_accuracy: np.ndarray
  history: np.ndarray
  metrics: np.ndarray
  seconds: np.ndarray


class _Task(NamedTuple):
  """What stays the same during a training.

  Attributes:
    spec: the network and its training.
    data: training slices.
    validation: validation slices.
    programs: compiled for `mesh`.
    mesh: devices that share a step's work.
    held: `hold` of the training slices, or None where each batch is loaded.
    own: rows of a batch that this process loads.
    epoch_steps: steps an epoch.
  """

  spec: CnnSpec
  data: Slices
  validation: Slices
  programs: train_step.Programs
  mesh: Mesh
  held: Callable[[jax.Array], jax.Array] | None
  own: slice
  epoch_steps: int


def train(
  spec: CnnSpec,
  splits: Mapping[str, Slices],
  directory: pathlib.Path,
  *,
  advance: Advance = lambda done, total: None,
  scalars: Scalars = lambda step, values: None,
  resumed: Callable[[int], None] = lambda step: None,
  about: Mapping[str, Any] | None = None,
  state: tuple[Any, Any] | None = None,
) -> None:
  """Trains on "train" and keeps the snapshot that is best on "validation".

  Args:
    spec: the network and its training.
    splits: slices by split.
    directory: gets `model`, the best parameters and statistics, and `history.json`.
      A training that was interrupted here goes on after the last step that was saved: at an
      epoch's end, if that costs less than 1 % of the time, every ten minutes within an epoch,
      and on request to stop.
    advance: called with the steps done and the steps in all.
    scalars: called with each epoch's metrics.
    resumed: called with the first epoch of which something will be trained.
    about: what checkpoints carry besides `spec`.
    state: parameters and running statistics to start from, if `spec.init` names a model.

  Raises:
    UserError: the loss is no longer finite; the state before that step is kept.
    preemption.Preempted: the process was asked to stop, and the state is saved.
  """
  if resumable.finished(directory):
    return
  _check_groups(spec)
  data = splits["train"]
  mesh = devices.device_mesh(spec.norm_groups)
  own = devices.own_rows(spec.batch_size)
  epoch_steps = -(-len(data) // spec.batch_size)
  programs = train_step.build(spec, epoch_steps, mesh, state)
  held = hold(data, mesh) if _is_worth_holding(data) else None
  task = _Task(spec, data, splits["validation"], programs, mesh, held, own, epoch_steps)
  learned = devices.put(programs.start, devices.replicated(mesh))
  initial = _State(
    learned,
    _kept(learned),
    np.full((), -1, np.float32),
    np.full((spec.epochs, len(_CURVES)), np.nan, np.float32),
    np.zeros((epoch_steps, 2), np.float32),
    np.zeros((), np.float32),
  )

  def leg(first, state, session):
    state = _train_epoch(task, first, state, session, advance)
    epoch = first // epoch_steps
    row = np.array([*state.metrics.mean(0), _accuracy(task, state.learned), state.seconds])
    scalars(epoch, dict(zip(_CURVES, row.tolist(), strict=True)))
    return (epoch + 1) * epoch_steps, _end_epoch(state, epoch, row)

  state = resumable.run(
    leg,
    directory,
    initial,
    lambda: initial,
    name="train_cnn",
    unit="step",
    total=epoch_steps * spec.epochs,
    about={"cnn": dataclasses.asdict(spec), **(about or {})},
    resumed=lambda step: resumed(step // epoch_steps),
  )
  params, stats = devices.local(state.best)
  curves = np.asarray(state.history).T.tolist()
  resumable.finish(
    directory,
    {"model": {"params": params, "stats": stats}},
    lambda: dict(zip(_CURVES, curves, strict=True)),
  )


def _train_epoch(
  task: _Task, first: int, state: _State, session: resumable.Session, advance: Advance
) -> _State:
  """Trains from step `first` to the end of its epoch, and saves in between where it must."""
  spec = task.spec
  stop = (first // task.epoch_steps + 1) * task.epoch_steps
  learned, metrics = state.learned, np.array(state.metrics)
  numbers = devices.put_rows(np.arange(spec.batch_size, dtype=np.int32)[task.own], task.mesh)
  started = saved = time.perf_counter()

  def check(step, values):
    row = metrics[step % task.epoch_steps] = devices.local(values)
    if not np.isfinite(row[0]):
      raise _not_finite(float(row[0]), step, task, session)

  def so_far():
    seconds = float(state.seconds) + time.perf_counter() - started
    return state._replace(learned=learned, metrics=metrics, seconds=np.asarray(seconds, np.float32))

  batches = training_batches(
    task.data,
    batch_size=spec.batch_size,
    context=spec.context,
    seed=spec.seed,
    start=first,
    stop=stop,
    own=task.own,
    pick=with_context if task.held is None else neighbour_rows,
  )
  before = None
  visit = 1 if jax.process_count() == 1 else STEPS_BETWEEN_VISITS
  for step, batch in enumerate(batches, first):
    images, labels = devices.put_rows(batch, task.mesh)
    images = images if task.held is None else task.held(images)
    learned, now = task.programs.train(
      learned, np.uint32(spec.seed), np.int32(step), numbers, images, labels
    )
    if before is not None:
      check(step - 1, before)  # waits for it: the device has the next step to do meanwhile
    before = now
    advance(step + 1, task.epoch_steps * spec.epochs)
    if step % visit == 0 and devices.any_process(
      preemption.asked() or time.perf_counter() - saved > SECONDS_BETWEEN_SAVES
    ):
      check(step, now)
      saved = time.perf_counter()
      if step + 1 < stop:
        session.save(step + 1, so_far())
  check(step, now)
  return so_far()


def _end_epoch(state: _State, epoch: int, row: np.ndarray) -> _State:
  """Puts an epoch's curves in their place, and keeps its parameters if they are the best."""
  history = np.array(state.history)
  history[epoch] = row
  state = state._replace(
    history=history, metrics=np.zeros_like(state.metrics), seconds=np.zeros((), np.float32)
  )
  accuracy = history[epoch, _CURVES.index("validation_accuracy")]
  if accuracy > state.best_accuracy:
    state = state._replace(best=_kept(state.learned), best_accuracy=np.asarray(accuracy))
  return state


def _accuracy(task: _Task, learned: Learned) -> np.ndarray:
  """Share of the validation slices that are classified correctly."""
  spec, split = task.spec, task.validation
  learned = devices.local(learned)
  correct = []
  for images, rows in sequential_batches(
    split, batch_size=spec.batch_size, context=spec.context, own=task.own
  ):
    labels = split.labels[np.resize(rows, spec.batch_size)][task.own]
    if jax.process_count() == 1:
      images = devices.put_rows(images, task.mesh)
    correct.append((task.programs.hits(learned, images, labels), len(rows)))
  correct = [devices.gather(np.asarray(hits))[:count] for hits, count in correct]
  return np.asarray(np.concatenate(correct).mean(), np.float32)


def _is_worth_holding(split: Slices) -> bool:
  """Whether slices go to the device once, and not with every step: a GPU waits for what it is sent."""
  return backend() != "cpu" and jax.process_count() == 1 and split.slices.nbytes <= HELD_BYTES


def hold(split: Slices, mesh: Mesh) -> Callable[[jax.Array], jax.Array]:
  """Puts a split's slices onto every device of a mesh.

  Returns:
    `batches.neighbour_rows` [B, context], divided over the devices → what `batches.with_context` shows.
  """
  slices = jax.device_put(np.asarray(split.slices), devices.replicated(mesh))
  take = lambda slices, rows: jnp.moveaxis(slices[rows], 1, -1)
  return functools.partial(jax.jit(take, out_shardings=devices.split_leading(mesh)), slices)


def _kept(learned: Learned) -> tuple[Any, Any]:
  """Copies parameters and statistics, which the next step may overwrite where they lie."""
  return jax.tree.map(jnp.copy, (learned.params, learned.stats))


def _check_groups(spec: CnnSpec) -> None:
  if spec.norm_groups < 1 or spec.batch_size % spec.norm_groups:
    raise UserError(
      f"config.cnn.norm_groups = {spec.norm_groups}: a batch of config.cnn.batch_size = "
      f"{spec.batch_size} cannot be divided into as many equal groups; give a divisor"
    )


def _not_finite(loss: float, step: int, task: _Task, session: resumable.Session) -> UserError:
  data, spec = task.data, task.spec
  rows = training_rows(data, batch_size=spec.batch_size, seed=spec.seed)[step]
  stacks = sorted({data.stack_id[i] for i in data.stack[rows]})
  return UserError(
    f"training loss of the CNN is {loss} at step {step} (stacks {', '.join(stacks)}); "
    f"{session.kept()}; lower config.cnn.learning_rate or look at these stacks"
  )
