"""The programs that train the single-slice classifier: one step, and a count of correct answers."""

from __future__ import annotations

from collections.abc import Callable
import dataclasses
import functools
from typing import Any, NamedTuple

from flax import nnx
import jax
import jax.numpy as jnp
from jax.sharding import Mesh
import optax

from rcm_jax.cnn import inception
from rcm_jax.cnn.augmentation import views
from rcm_jax.cnn.spec import CnnSpec, make_optimizer, start, untrained
from rcm_jax.ops.backend import backend
from rcm_jax.runtime import devices


class Learned(NamedTuple):
  """What a step changes: parameters, running statistics and the optimiser's state."""

  params: Any
  stats: Any
  optimizer: Any


class Programs(NamedTuple):
  """Programs of one training.

  Attributes:
    start: what training begins with.
    train: jitted (learned, seed, step, numbers [B], images [B, H, W, C], labels [B]) → (learned,
      [loss, accuracy]); the seed is that of order and views, numbers 0 to B − 1 tell rows their
      places in the batch. On a GPU it uses up the `learned` that it is given.
    hits: jitted (learned, images, labels) → whether each slice is classified correctly.
  """

  start: Learned
  train: Callable[..., tuple[Learned, jax.Array]]
  hits: Callable[..., jax.Array]


def build(
  spec: CnnSpec, epoch_steps: int, mesh: Mesh, state: tuple[Any, Any] | None = None
) -> Programs:
  """Builds the programs for the devices of a mesh, whose number divides `spec.norm_groups`.

  A batch consists of `spec.norm_groups` groups. Each is normalised by its own statistics and has
  its own dropout, on whichever device it lies, so that the number of devices changes rounding only.

  Args:
    spec: the network and its training.
    epoch_steps: steps an epoch.
    mesh: of the devices.
    state: see `spec.start`.
  """
  _, params, stats, _ = nnx.split(start(spec, state), nnx.Param, nnx.BatchStat, ...)
  optimizer = make_optimizer(spec, epoch_steps)
  functions = _functions(dataclasses.replace(spec, seed=0), epoch_steps, mesh)
  return Programs(Learned(params, stats, optimizer.init(params)), *functions)


@functools.lru_cache(maxsize=1)
def _functions(spec: CnnSpec, epoch_steps: int, mesh: Mesh) -> tuple[Callable, Callable]:
  """The jitted functions of `Programs`: the same for all seeds of one run, compiled once."""
  graph, _, _, rest = nnx.split(untrained(spec), nnx.Param, nnx.BatchStat, ...)
  optimizer = make_optimizer(spec, epoch_steps)
  size = spec.batch_size // spec.norm_groups

  def loss_of_group(params, stats, key, numbers, view_keys, images, labels):
    model = nnx.merge(graph, params, stats, rest, copy=True)
    nnx.reseed(model, dropout=jax.random.fold_in(key, 1 + numbers[0] // size))
    logits = model(inception.from_uint8(views(view_keys, images, spec.augmentation)))
    logits = logits.astype(jnp.float32)
    losses = optax.softmax_cross_entropy_with_integer_labels(logits, labels)
    correct = jnp.mean(jnp.argmax(logits, -1) == labels)
    return losses.mean(), (nnx.state(model, nnx.BatchStat), correct)

  def loss_of_share(params, stats, key, *rows):
    if len(rows[0]) == size:
      return loss_of_group(params, stats, key, *rows)
    groups = jax.tree.map(lambda x: x.reshape(-1, size, *x.shape[1:]), rows)
    found = jax.vmap(loss_of_group, (None, None, None, *[0] * len(rows)))(
      params, stats, key, *groups
    )
    return jax.tree.map(lambda x: x.mean(0), found)

  def gradients(params, stats, seed, step, numbers, images, labels):
    key = jax.random.fold_in(jax.random.key(seed), step)
    view_keys = jax.random.split(key, spec.batch_size)[numbers]
    (loss, (stats, correct)), grads = jax.value_and_grad(loss_of_share, has_aux=True)(
      params, stats, key, numbers, view_keys, images, labels
    )
    return grads, stats, jnp.stack([loss, correct])

  everywhere = devices.mean_over_devices(
    gradients, mesh, (True, True, True, True, False, False, False)
  )

  # On a GPU the state after takes the memory of the state before, which is then gone.
  @functools.partial(jax.jit, donate_argnums=() if backend() == "cpu" else (0,))
  def train(learned, seed, step, *rows):
    grads, stats, metrics = everywhere(learned.params, learned.stats, seed, step, *rows)
    updates, optimizer_state = optimizer.update(grads, learned.optimizer, learned.params)
    return Learned(optax.apply_updates(learned.params, updates), stats, optimizer_state), metrics

  @jax.jit
  def hits(learned, images, labels):
    model = nnx.merge(graph, learned.params, learned.stats, rest, copy=True)
    model.eval()
    return jnp.argmax(model(inception.from_uint8(images)), -1) == labels

  return train, hits
