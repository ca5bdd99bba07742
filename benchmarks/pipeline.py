"""Whether the loader keeps ahead of the CNN, from slices decoded on disk.

The batches are those of training: `rcm_jax.data.slices.training_batches` over files in the layout of
`rcm_jax.data.slices.decode`, the presets' networks, views and optimizer. "cold" reads files that the
system does not hold in memory. The last row of a case trains on what the loader hands over,
both on the same cores.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
import gc
import os
import pathlib
import tempfile
import tracemalloc
from typing import Any

from flax import nnx
import jax
import jax.numpy as jnp
import numpy as np
import optax

from benchmarks import timing
from rcm_jax.cnn import inception
from rcm_jax.cnn import spec as cnn_spec
from rcm_jax.cnn.augmentation import augment, augmentation_of
from rcm_jax.configs import base
from rcm_jax.data import batches as batches_lib
from rcm_jax.data import slices as slices_lib

LOADED = 16  # batches a call
SLICES = 2048  # on disk; memory is measured with a quarter of them, too
# case: preset, side in px, slices seen at once, steps of training a call
CASES = {
  "demo, 112 px": ("demo", 112, 1, 4),
  "demo, 112 px, 3 slices at once": ("demo", 112, 3, 4),
  "paper, 299 px": ("paper", 299, 1, 1),
}


def rows(peers: bool) -> list[dict]:
  """Seconds a batch, through the loader, through a step of training, and through both."""
  del peers  # nothing of the kind exists for this data
  return [row for case, values in CASES.items() for row in _case(case, *values)]


def _case(case: str, preset: str, size: int, context: int, steps: int) -> list[dict]:
  config = base.get_config(preset)
  batch = config.cnn.batch_size
  with tempfile.TemporaryDirectory() as directory:
    few, many = (_write(pathlib.Path(directory), size, n) for n in (SLICES // 4, SLICES))

    def batches(path: pathlib.Path, count: int) -> Iterator[tuple[np.ndarray, np.ndarray]]:
      return batches_lib.training_batches(
        _open(path, size), batch_size=batch, context=context, seed=0, start=0, stop=count
      )

    def load(*, cold: bool) -> None:
      if cold:
        _forget(many)
      for _ in batches(many, LOADED):
        pass

    step = _training_step(config, context)
    ready = jax.device_put(next(batches(many, 1)))

    def train(given: Iterable) -> jax.Array:
      for images, labels in given:
        loss = step(images, labels)
      return loss

    held = [_most_mib(batches(path, LOADED)) for path in (few, many)]
    calls = {
      "ours/loader": lambda: load(cold=False),
      "ours/loader, cold": lambda: load(cold=True),
      "ours/train step": lambda: train([ready] * steps),
      "ours/train step, fed": lambda: train(batches(many, steps)),
    }
    timed = timing.alternate(calls, repeats=3, warmup=1, min_seconds=0)
  # Each slice is read and written once.
  floor = 2 * batch * size * size * context / timing.copy_bytes_per_second()
  title = (
    f"batch of {batch}, {case}; the loader allocates {held[0]:.0f} MiB with {SLICES // 4} slices "
    f"on disk, {held[1]:.0f} MiB with {SLICES}"
  )
  found = []
  for name, seconds in timed.items():
    loader = "loader" in name
    by_batch = {k: v / (LOADED if loader else steps) for k, v in seconds.items()}
    found.append(timing.row("pipeline", title, name, by_batch, floor if loader else None))
  return found


def spec_of(config: Any, **more: Any) -> cnn_spec.CnnSpec:
  """Returns a preset's CNN, without ImageNet weights, with some fields changed."""
  fields = {**config.cnn, "count_include_pad": False}
  augmentation = augmentation_of(config.augmentation.to_dict())
  return cnn_spec.CnnSpec(**{**fields, **more}, augmentation=augmentation)


def _write(directory: pathlib.Path, size: int, count: int) -> pathlib.Path:
  rng = np.random.default_rng(0)
  path = directory / f"{count}.u8"
  with path.open("wb") as file:
    for _ in range(count):
      file.write(rng.integers(0, 256, (size, size), dtype=np.uint8).tobytes())
    os.fsync(file.fileno())
  return path


def _open(path: pathlib.Path, size: int) -> slices_lib.Slices:
  slices = np.memmap(path, np.uint8, "r").reshape(-1, size, size)
  stack = np.arange(len(slices)) // 42
  names = tuple(map(str, range(stack[-1] + 1)))
  return slices_lib.Slices(
    slices=slices,
    labels=(np.arange(len(slices)) % 3).astype(np.int8),
    depth_um=np.zeros(len(slices), np.float32),
    stack=stack,
    stack_id=names,
    patient_id=names,
  )


def _forget(path: pathlib.Path) -> None:
  """Has the system drop what it holds of a file in memory; nobody may have it mapped."""
  gc.collect()
  with path.open("rb") as file:
    os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def _most_mib(batches: Iterator) -> float:
  """Most memory that a pass takes, without the system's own copies of files."""
  tracemalloc.start()
  for _ in batches:
    pass
  most = tracemalloc.get_traced_memory()[1]
  tracemalloc.stop()
  return most / 2**20


def _training_step(config, context: int) -> Callable[[jax.Array, jax.Array], jax.Array]:
  """A step of `rcm_jax.cnn.training.train`, which keeps its state from call to call."""
  spec = spec_of(config, context=context)
  graph, params, stats, rest = nnx.split(cnn_spec.start(spec), nnx.Param, nnx.BatchStat, ...)
  optimizer = cnn_spec.make_optimizer(spec, epoch_steps=100)
  state = [params, stats, optimizer.init(params), 0]
  key = jax.random.key(0)

  @jax.jit
  def step(params, stats, opt_state, number, images, labels):
    now = jax.random.fold_in(key, number)

    def loss(params):
      network = nnx.merge(graph, params, stats, rest, copy=True)
      nnx.reseed(network, dropout=now)
      logits = network(inception.from_uint8(augment(now, images, spec.augmentation)))
      losses = optax.softmax_cross_entropy_with_integer_labels(logits.astype(jnp.float32), labels)
      return losses.mean(), nnx.state(network, nnx.BatchStat)

    (value, stats), grads = jax.value_and_grad(loss, has_aux=True)(params)
    updates, opt_state = optimizer.update(grads, opt_state, params)
    return optax.apply_updates(params, updates), stats, opt_state, value

  def call(images: jax.Array, labels: jax.Array) -> jax.Array:
    *state[:3], value = step(*state, images, labels)
    state[3] += 1
    return value

  return call
