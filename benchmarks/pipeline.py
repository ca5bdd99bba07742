"""How fast stages feed each other: decoding, batches for the CNN, and the CNN itself.

The loader must be well ahead of the CNN; the memory that it takes must not grow with the
data. Slices are made here, in the layout that `rcm_jax.data.decode` writes.
"""

from __future__ import annotations

import pathlib
import resource
import tempfile

from flax import nnx
import jax
import jax.numpy as jnp
import numpy as np
import optax

from benchmarks.timing import alternate, copy_bytes_per_second
from rcm_jax import data
from rcm_jax.augment import Augmentation, augment
from rcm_jax.models import inception

BATCHES = 16
BATCH = 32
# name: side in px, width of the CNN, slices on disk
CASES = {
  "demo: 112 px, width 0.25": (112, 0.25, 2048),
  "paper: 299 px, width 1": (299, 1.0, 2048),
}


def rows(peers: bool) -> list[dict]:
  """Times a batch of 32 through the loader and through a training step of the CNN."""
  del peers  # nothing of the kind exists for this data
  found = []
  for case, (size, width, count) in CASES.items():
    with tempfile.TemporaryDirectory() as directory:
      split = _write(pathlib.Path(directory), size, count)

      def load(split=split) -> np.ndarray:
        batches = data.training_batches(
          split, batch_size=BATCH, context=1, seed=0, start=0, stop=BATCHES
        )
        return [images for images, _ in batches][-1]

      before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
      calls = {"ours/loader": load, "ours/train step": _training_step(split, width)}
      timed = alternate(calls, repeats=3, warmup=1, min_seconds=0)
      grown = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
    per_batch = {"ours/loader": BATCHES, "ours/train step": 1}
    # A batch is read from the page cache and written once.
    floors = {
      "ours/loader": 2 * BATCH * size * size / copy_bytes_per_second(),
      "ours/train step": None,
    }
    for name, seconds in timed.items():
      found.append(
        {
          "benchmark": "pipeline",
          "case": f"batch of {BATCH}, {case} (peak memory +{grown // 1024} MiB)",
          "implementation": name,
          **{f"seconds_{k}": v / per_batch[name] for k, v in seconds.items()},
          "floor_seconds": floors[name],
        }
      )
  return found


def _write(directory: pathlib.Path, size: int, count: int) -> data.Slices:
  rng = np.random.default_rng(0)
  path = directory / "train.u8"
  with path.open("wb") as file:
    for _ in range(count):
      file.write(rng.integers(0, 256, (size, size), dtype=np.uint8).tobytes())
  stack = np.arange(count) // 42
  names = tuple(map(str, range(stack[-1] + 1)))
  return data.Slices(
    slices=np.memmap(path, np.uint8, "r").reshape(count, size, size),
    labels=(np.arange(count) % 3).astype(np.int8),
    depth_um=np.zeros(count, np.float32),
    stack=stack,
    stack_id=names,
    patient_id=names,
  )


def _training_step(split: data.Slices, width: float):
  dtype = jnp.float32 if jax.default_backend() == "cpu" else jnp.bfloat16
  model = inception.InceptionV3(3, width=width, dtype=dtype, rngs=nnx.Rngs(0))
  graph, params, rest = nnx.split(model, nnx.Param, ...)
  optimizer = optax.adam(1e-3)
  state = optimizer.init(params)

  @jax.jit
  def step(params, state, images, labels):
    def loss(params):
      network = nnx.merge(graph, params, rest, copy=True)
      seen = augment(jax.random.key(0), images, Augmentation())
      logits = network(inception.from_uint8(seen))
      return optax.softmax_cross_entropy_with_integer_labels(logits, labels).mean()

    updates, state = optimizer.update(jax.grad(loss)(params), state, params)
    return optax.apply_updates(params, updates), state

  images = jnp.asarray(split.slices[:BATCH, ..., None])
  labels = jnp.asarray(split.labels[:BATCH], jnp.int32)
  return lambda: step(params, state, images, labels)
