"""Features of every slice by a trained CNN, computed once and kept."""

from __future__ import annotations

from collections.abc import Mapping
import pathlib

from flax import nnx
import jax
import jax.numpy as jnp
import numpy as np

from rcm_jax.cnn import folded_inception, inception
from rcm_jax.cnn.spec import Advance, CnnSpec, _compute_dtype
from rcm_jax.data.batches import sequential_batches
from rcm_jax.data.slices import Slices
from rcm_jax.runtime import checkpoints, devices


def load(spec: CnnSpec, directory: pathlib.Path) -> inception.InceptionV3:
  """Returns the network that `train` left in `directory`, in evaluation mode."""
  model = spec.build()
  graph, params, stats, rest = nnx.split(model, nnx.Param, nnx.BatchStat, ...)
  tree = checkpoints.load_tree(directory / "model", {"params": params, "stats": stats})
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
  mesh = devices.local_mesh()
  everyone = len(devices.devices())
  batch_size = -(-batch_size // everyone) * everyone
  own = devices.own_rows(batch_size)
  see = folded_inception.extract_fn(load(spec, model_directory), _compute_dtype())
  total = sum(len(split) for split in splits.values())
  done = 0

  def seen(split):
    """Features and probabilities of each batch, on the devices; computed while the host goes on."""
    for images, rows in sequential_batches(
      split, batch_size=batch_size, context=spec.context, own=own
    ):
      values, logits = see(jax.device_put(images, devices.split_leading(mesh)))
      yield (values, jax.nn.softmax(logits.astype(jnp.float32))), len(rows)

  for name, split in splits.items():
    features, probabilities = [], []
    for shares, count in devices.ahead(seen(split)):
      values, classes = (devices.gather(np.asarray(share))[:count] for share in shares)
      features.append(values.astype(dtype))
      probabilities.append(classes)
      done += count
      advance(done, total)
    if devices.is_first():
      np.save(directory / f"{name}_features.npy", np.concatenate(features))
      np.save(directory / f"{name}_probabilities.npy", np.concatenate(probabilities))
