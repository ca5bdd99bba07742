"""Trains the single-slice classifier on augmented slices, step by step, and can stop at any step."""

from __future__ import annotations

from collections.abc import Callable, Mapping
import dataclasses
import functools
import json
import pathlib
import shutil
import time
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.sharding import Mesh
import numpy as np

from rcm_jax import cache, checkpoint, cnn_step, preemption, sharding
from rcm_jax.cnn import CnnSpec
from rcm_jax.cnn_step import Learned
from rcm_jax.data import (
  Slices,
  neighbour_rows,
  sequential_batches,
  training_batches,
  training_rows,
  with_context,
)
from rcm_jax.ops.backend import backend
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


def train(
  spec: CnnSpec,
  splits: Mapping[str, Slices],
  directory: pathlib.Path,
  *,
  advance: Advance = lambda done, total: None,
  scalars: Scalars = lambda step, values: None,
  resumed: Callable[[int], None] = lambda step: None,
  about: Mapping[str, Any] | None = None,
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

  Raises:
    UserError: the loss is no longer finite; the state before that step is kept.
    preemption.Preempted: the process was asked to stop, and the state is saved.
  """
  if (directory / "history.json").exists():  # killed between its end and its seal
    shutil.rmtree(directory / "checkpoints", ignore_errors=True)
    return
  data, validation = splits["train"], splits["validation"]
  epoch_steps = -(-len(data) // spec.batch_size)
  steps = epoch_steps * spec.epochs
  _check_groups(spec)
  mesh = sharding.device_mesh(spec.norm_groups)
  programs = cnn_step.build(spec, epoch_steps, mesh)
  own = sharding.own_rows(spec.batch_size)
  held = hold(data, mesh) if _is_worth_holding(data) else None
  seed = np.uint32(spec.seed)
  numbers = sharding.put_rows(np.arange(spec.batch_size, dtype=np.int32)[own], mesh)
  learned = sharding.put(programs.start, sharding.replicated(mesh))
  state = _State(
    learned,
    _kept(learned),
    np.full((), -1, np.float32),
    np.full((spec.epochs, len(_CURVES)), np.nan, np.float32),
    np.zeros((epoch_steps, 2), np.float32),
    np.zeros((), np.float32),
  )

  def validation_accuracy(learned):
    learned = sharding.local(learned)
    batches = sequential_batches(
      validation, batch_size=spec.batch_size, context=spec.context, own=own
    )
    correct = []
    for images, rows in batches:
      labels = validation.labels[np.resize(rows, spec.batch_size)][own]
      if jax.process_count() == 1:
        images = sharding.put_rows(images, mesh)
      correct.append((programs.hits(learned, images, labels), len(rows)))
    correct = [sharding.gather(np.asarray(hits))[:count] for hits, count in correct]
    return np.asarray(np.concatenate(correct).mean(), np.float32)

  def train_epoch(first, state, save):
    """Trains from step `first` to the end of its epoch; `save` may be called in between."""
    epoch = first // epoch_steps
    learned, metrics = state.learned, np.array(state.metrics)
    started = saved = time.perf_counter()

    def check(step, values):
      metrics[step % epoch_steps] = sharding.local(values)
      if not np.isfinite(metrics[step % epoch_steps, 0]):
        raise _not_finite(metrics[step % epoch_steps, 0], step, data, spec, checkpoints)

    def so_far():
      return state._replace(
        learned=learned,
        metrics=metrics,
        seconds=np.asarray(float(state.seconds) + time.perf_counter() - started, np.float32),
      )

    batches = training_batches(
      data,
      batch_size=spec.batch_size,
      context=spec.context,
      seed=spec.seed,
      start=first,
      stop=(epoch + 1) * epoch_steps,
      own=own,
      pick=with_context if held is None else neighbour_rows,
    )
    before = None
    visit = 1 if jax.process_count() == 1 else STEPS_BETWEEN_VISITS
    for step, batch in enumerate(batches, first):
      images, labels = sharding.put_rows(batch, mesh)
      images = images if held is None else held(images)
      learned, now = programs.train(learned, seed, np.int32(step), numbers, images, labels)
      if before is not None:
        check(step - 1, before)  # waits for it: the device has the next step to do meanwhile
      before = now
      advance(step + 1, steps)
      if step % visit == 0 and sharding.any_process(
        preemption.asked() or time.perf_counter() - saved > SECONDS_BETWEEN_SAVES
      ):
        check(step, now)
        saved = time.perf_counter()
        if (step + 1) % epoch_steps:
          save(step + 1, so_far())
    check(step, now)
    accuracy = validation_accuracy(learned)
    state = so_far()
    row = np.array([*metrics.mean(0), accuracy, state.seconds])
    history = np.array(state.history)
    history[epoch] = row
    state = state._replace(
      history=history, metrics=np.zeros_like(metrics), seconds=np.zeros((), np.float32)
    )
    if accuracy > state.best_accuracy:
      state = state._replace(best=_kept(learned), best_accuracy=accuracy)
    scalars(epoch, dict(zip(_CURVES, row.tolist(), strict=True)))
    return state

  about = {"cnn": dataclasses.asdict(spec), **(about or {})}
  with (
    preemption.at_safe_points(),
    checkpoint.Checkpoints(directory / "checkpoints", about=about) as checkpoints,
  ):

    def save(step, state):
      checkpoints.save(step, state)
      if sharding.any_process(preemption.asked()):
        checkpoints.wait()
        raise preemption.Preempted(f"in train_cnn, after step {step} of {steps}")

    found = checkpoints.restore(state)
    done, state = (0, state) if found is None else found
    resumed(done // epoch_steps)
    while done < steps:
      state = train_epoch(done, state, save)
      done = (done // epoch_steps + 1) * epoch_steps
      if sharding.any_process(preemption.asked() or checkpoints.affordable):
        save(done, state)
  params, stats = sharding.local(state.best)
  curves = np.asarray(state.history).T.tolist()
  checkpoint.save_tree(directory / "model", {"params": params, "stats": stats})
  if sharding.is_first():
    history = json.dumps(dict(zip(_CURVES, curves, strict=True)))
    cache.write_text(directory / "history.json", history)
    shutil.rmtree(directory / "checkpoints")


def _is_worth_holding(split: Slices) -> bool:
  """Whether slices go to the device once, and not with every step: a GPU waits for what it is sent."""
  return backend() != "cpu" and jax.process_count() == 1 and split.slices.nbytes <= HELD_BYTES


def hold(split: Slices, mesh: Mesh) -> Callable[[jax.Array], jax.Array]:
  """Puts a split's slices onto every device of a mesh.

  Returns:
    `data.neighbour_rows` [B, context], divided over the devices → what `data.with_context` shows.
  """
  slices = jax.device_put(np.asarray(split.slices), sharding.replicated(mesh))
  take = lambda slices, rows: jnp.moveaxis(slices[rows], 1, -1)
  return functools.partial(jax.jit(take, out_shardings=sharding.split_leading(mesh)), slices)


def _kept(learned: Learned) -> tuple[Any, Any]:
  """Copies parameters and statistics, which the next step may overwrite where they lie."""
  return jax.tree.map(jnp.copy, (learned.params, learned.stats))


def _check_groups(spec: CnnSpec) -> None:
  if spec.norm_groups < 1 or spec.batch_size % spec.norm_groups:
    raise UserError(
      f"config.cnn.norm_groups = {spec.norm_groups}: a batch of config.cnn.batch_size = "
      f"{spec.batch_size} cannot be divided into as many equal groups; give a divisor"
    )


def _not_finite(loss, step, data, spec, checkpoints) -> UserError:
  rows = training_rows(data, batch_size=spec.batch_size, seed=spec.seed)[step]
  stacks = sorted({data.stack_id[i] for i in data.stack[rows]})
  return UserError(
    f"training loss of the CNN is {loss} at step {step} (stacks {', '.join(stacks)}); "
    f"{checkpoints.kept('step')}; lower config.cnn.learning_rate or look at these stacks"
  )
