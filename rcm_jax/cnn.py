"""The single-slice classifier: trained on augmented slices, then read for features."""

from __future__ import annotations

from collections.abc import Callable, Mapping
import dataclasses
import json
import pathlib
import shutil
import time
from typing import Any, NamedTuple

from flax import nnx
import jax
import jax.numpy as jnp
import numpy as np
import optax

from rcm_jax import cache, checkpoint, sharding
from rcm_jax.arrays import NUM_STRATA
from rcm_jax.augment import Augmentation, augment
from rcm_jax.data import Slices, sequential_batches, training_batches, training_rows
from rcm_jax.models import inception, inception_inference, inception_weights
from tfds_rcm.errors import UserError

Scalars = Callable[[int, Mapping[str, float]], None]  # (step, values)
Advance = Callable[[int, int], None]  # (done, total)


@dataclasses.dataclass(frozen=True)
class CnnSpec:
  """All that determines a trained CNN but its data.

  Attributes:
    context: slices seen at once; 3 is the paper's IV3-Context.
    width: factor on the channel counts of Inception-V3.
    epochs: passes over the training slices.
    batch_size: slices a step.
    learning_rate: Adam's peak rate; it rises over the first epoch and falls as a cosine.
    dropout: share of the 256 units dropped before the classifier.
    bn_momentum: share of the running statistics that survives a step.
    pretrained: file of ImageNet weights to start from, or None. Its convolutions keep its
      batch statistics, as is usual in fine-tuning: a new network's head would spoil them at
      first, and torchvision's scales are folded into the kernels with them.
    pretrained_input: what its images were like, see `inception_weights.load`.
    frozen_epochs: epochs in which only the new layers learn, if pretrained.
    body_rate: the convolutions' share of the learning rate afterwards, if pretrained; it rises
      over one epoch.
    augmentation: ranges of the random views.
    seed: of initialisation, order and views.
  """

  context: int
  width: float
  epochs: int
  batch_size: int
  learning_rate: float
  dropout: float
  bn_momentum: float
  pretrained: str | None
  pretrained_input: str
  frozen_epochs: int
  body_rate: float
  augmentation: Augmentation
  seed: int

  def build(self) -> inception.InceptionV3:
    """Returns the network, freshly initialised; bfloat16 on an accelerator, float32 on a CPU."""
    return inception.InceptionV3(
      NUM_STRATA,
      in_channels=self.context,
      width=self.width,
      dropout=self.dropout,
      bn_momentum=self.bn_momentum,
      dtype=_compute_dtype(),
      rngs=nnx.Rngs(self.seed),
    )


_CURVES = ("loss", "accuracy", "validation_accuracy", "seconds")


def _compute_dtype() -> jnp.dtype:
  return jnp.dtype(jnp.float32 if jax.default_backend() == "cpu" else jnp.bfloat16)


def start(spec: CnnSpec) -> inception.InceptionV3:
  """Returns the network that training begins with.

  Raises:
    UserError: the file of weights cannot be read or does not fit.
  """
  model = spec.build()
  if spec.pretrained:
    inception_weights.load(model, spec.pretrained, rgb_input=spec.pretrained_input)
    for block in model.named_blocks().values():
      block.eval()
  return model


def make_optimizer(spec: CnnSpec, epoch_steps: int) -> optax.GradientTransformation:
  """Returns Adam with the schedules of `CnnSpec`, for the parameters of `start`."""
  steps = epoch_steps * spec.epochs
  adam = optax.adam(
    optax.warmup_cosine_decay_schedule(0.0, spec.learning_rate, min(epoch_steps, steps // 2), steps)
  )
  if not spec.pretrained:
    return adam
  share = optax.linear_schedule(0.0, spec.body_rate, epoch_steps, spec.frozen_epochs * epoch_steps)

  def update(updates, state, params=None):
    del params
    updates = jax.tree_util.tree_map_with_path(
      lambda path, leaf: leaf * share(state.count) if path[0].key == "blocks" else leaf, updates
    )
    return updates, optax.ScaleByScheduleState(state.count + 1)

  slower = optax.GradientTransformation(
    lambda params: optax.ScaleByScheduleState(jnp.zeros((), jnp.int32)), update
  )
  return optax.chain(adam, slower)


class _State(NamedTuple):
  params: Any
  stats: Any  # running statistics of batch normalisation
  optimizer: Any
  best_params: Any
  best_stats: Any
  best_accuracy: jax.Array
  history: jax.Array  # [epochs, 4]: training loss and accuracy, validation accuracy, seconds


def train(
  spec: CnnSpec,
  splits: Mapping[str, Slices],
  directory: pathlib.Path,
  *,
  advance: Advance = lambda done, total: None,
  scalars: Scalars = lambda step, values: None,
  resumed: Callable[[int], None] = lambda step: None,
) -> None:
  """Trains on "train" and keeps the snapshot that is best on "validation".

  Args:
    spec: the network and its training.
    splits: slices by split.
    directory: gets `model`, the best parameters and statistics, and `history.json`.
      A training that was interrupted here goes on after its last whole epoch.
    advance: called with the steps done and the steps in all.
    scalars: called with each epoch's metrics.
    resumed: called with the first epoch that will be trained.

  Raises:
    UserError: the loss is no longer finite.
  """
  data, validation = splits["train"], splits["validation"]
  epoch_steps = -(-len(data) // spec.batch_size)
  steps = epoch_steps * spec.epochs
  graph, params, stats, rest = nnx.split(start(spec), nnx.Param, nnx.BatchStat, ...)
  optimizer = make_optimizer(spec, epoch_steps)
  mesh = sharding.device_mesh()
  state = jax.device_put(
    _State(
      params,
      stats,
      optimizer.init(params),
      params,
      stats,
      jnp.float32(-1.0),
      jnp.full((spec.epochs, len(_CURVES)), jnp.nan),
    ),
    sharding.replicated(mesh),
  )
  by_batch = sharding.split_leading(mesh)
  keys = jax.random.key(spec.seed)

  def loss_fn(params, stats, key, images, labels):
    model = nnx.merge(graph, params, stats, rest, copy=True)
    nnx.reseed(model, dropout=jax.random.fold_in(key, 1))
    logits = model(inception.from_uint8(augment(key, images, spec.augmentation)))
    logits = logits.astype(jnp.float32)
    losses = optax.softmax_cross_entropy_with_integer_labels(logits, labels)
    correct = jnp.mean(jnp.argmax(logits, -1) == labels)
    return losses.mean(), (nnx.state(model, nnx.BatchStat), correct)

  @jax.jit
  def train_step(params, stats, opt_state, step, images, labels):
    key = jax.random.fold_in(keys, step)
    (loss, (stats, correct)), grads = jax.value_and_grad(loss_fn, has_aux=True)(
      params, stats, key, images, labels
    )
    updates, opt_state = optimizer.update(grads, opt_state, params)
    return optax.apply_updates(params, updates), stats, opt_state, jnp.stack([loss, correct])

  @jax.jit
  def hits(params, stats, images, labels):
    model = nnx.merge(graph, params, stats, rest, copy=True)
    model.eval()
    return jnp.argmax(model(inception.from_uint8(images)), -1) == labels

  def validation_accuracy(params, stats):
    correct = [
      hits(
        params,
        stats,
        jax.device_put(images, by_batch),
        validation.labels[np.resize(rows, spec.batch_size)],
      )[: len(rows)]
      for images, rows in sequential_batches(
        validation, batch_size=spec.batch_size, context=spec.context
      )
    ]
    return jnp.concatenate(correct).mean()

  with checkpoint.Checkpoints(directory / "checkpoints") as checkpoints:
    found = checkpoints.restore(state)
    first_epoch, state = (0, state) if found is None else found
    resumed(first_epoch)
    for epoch in range(first_epoch, spec.epochs):
      started = time.perf_counter()
      params, stats, opt_state = state.params, state.stats, state.optimizer
      metrics = []
      batches = training_batches(
        data,
        batch_size=spec.batch_size,
        context=spec.context,
        seed=spec.seed,
        start=epoch * epoch_steps,
        stop=(epoch + 1) * epoch_steps,
      )
      for step, (images, labels) in enumerate(batches, epoch * epoch_steps):
        params, stats, opt_state, now = train_step(
          params, stats, opt_state, step, *jax.device_put((images, labels), by_batch)
        )
        metrics.append(now)
        advance(step + 1, steps)
      metrics = np.stack(metrics)
      _check_finite(metrics[:, 0], epoch * epoch_steps, data, spec, directory)
      accuracy = validation_accuracy(params, stats)
      row = np.array([*metrics.mean(0), accuracy, time.perf_counter() - started])
      better = accuracy > state.best_accuracy
      state = _State(
        params,
        stats,
        opt_state,
        *jax.tree.map(
          lambda new, old: jnp.where(better, new, old),
          (params, stats, accuracy),
          (state.best_params, state.best_stats, state.best_accuracy),
        ),
        state.history.at[epoch].set(row),
      )
      scalars(epoch, dict(zip(_CURVES, row.tolist(), strict=True)))
      checkpoints.save(epoch + 1, state)
  checkpoint.save_tree(
    directory / "model", {"params": state.best_params, "stats": state.best_stats}
  )
  curves = np.asarray(state.history).T.tolist()
  cache.write_text(directory / "history.json", json.dumps(dict(zip(_CURVES, curves, strict=True))))
  shutil.rmtree(directory / "checkpoints")


def _check_finite(losses, first_step, data, spec, directory):
  bad = np.flatnonzero(~np.isfinite(losses))
  if bad.size:
    rows = training_rows(data, batch_size=spec.batch_size, seed=spec.seed)[first_step + int(bad[0])]
    stacks = sorted({data.stack_id[i] for i in data.stack[rows]})
    raise UserError(
      f"training loss of the CNN is {losses[bad[0]]} at step {first_step + bad[0]} (stacks "
      f"{', '.join(stacks)}); the last good epoch is kept in {directory}; lower "
      "config.cnn.learning_rate or look at these stacks"
    )


def load(spec: CnnSpec, directory: pathlib.Path) -> inception.InceptionV3:
  """Returns the network that `train` left in `directory`, in evaluation mode."""
  model = spec.build()
  graph, params, stats, rest = nnx.split(model, nnx.Param, nnx.BatchStat, ...)
  tree = checkpoint.load_tree(directory / "model", {"params": params, "stats": stats})
  model = nnx.merge(graph, tree["params"], tree["stats"], rest)
  model.eval()
  return model


def extract(
  spec: CnnSpec,
  model_directory: pathlib.Path,
  splits: Mapping[str, Slices],
  directory: pathlib.Path,
  *,
  batch_size: int,
  dtype: str,
  advance: Advance = lambda done, total: None,
) -> None:
  """Writes each slice's 256 features and class probabilities, split by split.

  Args:
    spec: the network.
    model_directory: where `train` left it.
    splits: slices by split.
    directory: gets `SPLIT_features.npy` [n, 256] and `SPLIT_probabilities.npy` [n, 3].
    batch_size: slices at once.
    dtype: "float32" or "float16", of the stored features.
    advance: called with the slices done and the slices in all.
  """
  mesh = sharding.device_mesh()
  see = inception_inference.extract_fn(load(spec, model_directory), _compute_dtype())
  total = sum(len(split) for split in splits.values())
  done = 0
  for name, split in splits.items():
    features, probabilities = [], []
    for images, rows in sequential_batches(split, batch_size=batch_size, context=spec.context):
      values, logits = see(jax.device_put(images, sharding.split_leading(mesh)))
      features.append(np.asarray(values[: len(rows)]).astype(dtype))
      probabilities.append(np.asarray(jax.nn.softmax(logits.astype(jnp.float32)))[: len(rows)])
      done += len(rows)
      advance(done, total)
    np.save(directory / f"{name}_features.npy", np.concatenate(features))
    np.save(directory / f"{name}_probabilities.npy", np.concatenate(probabilities))
