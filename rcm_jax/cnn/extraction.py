"""Features of every slice by a trained CNN, computed once and kept."""

from __future__ import annotations

from collections.abc import Callable, Mapping
import json
import pathlib

from flax import nnx
import jax
import jax.numpy as jnp
import numpy as np

from rcm_jax.cnn import folded_inception, inception
from rcm_jax.cnn.spec import Advance, CnnSpec
from rcm_jax.data.batches import sequential_batches
from rcm_jax.data.slices import Slices
from rcm_jax.runtime import checkpoints, devices, files, preemption

_WRITTEN = "_written.json"
_KEEP_EVERY = 20_000  # slices, between two notes of how far the arrays are filled


def load(spec: CnnSpec, directory: pathlib.Path) -> inception.InceptionV3:
  """Returns the network that `train` left in `directory`, in evaluation mode."""
  model = spec.without_values()
  params, stats = nnx.state(model, nnx.Param, nnx.BatchStat)
  tree = checkpoints.load_tree(directory / "model", {"params": params, "stats": stats})
  nnx.update(model, tree["params"], tree["stats"])
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
  on_cpu: Callable[[inception.InceptionV3], folded_inception.Extractor] | None = None,
) -> None:
  """Writes each slice's 256 features and class probabilities, split by split.

  What an interrupted extraction has written is not computed again.

  Args:
    spec: the network.
    model_directory: where `train` left it.
    splits: slices by split.
    directory: gets `SPLIT_features.npy` [n, 256] and `SPLIT_probabilities.npy` [n, 3].
    batch_size: slices at once.
    dtype: "float32" or "float16", of the stored features.
    advance: called with the slices done and the slices in all.
    on_cpu: makes of a network what computes a batch on the host; None takes JAX and its devices.

  Raises:
    preemption.Preempted: the process was asked to stop, and what was computed is on disk.
  """
  mesh = devices.local_mesh()
  everyone = len(devices.devices())
  batch_size = -(-batch_size // everyone) * everyone
  own = devices.own_rows(batch_size)
  network = load(spec, model_directory)
  see = (
    on_cpu(network) if on_cpu else folded_inception.extract_fn(network, inception.compute_dtype())
  )
  total = sum(len(split) for split in splits.values())
  done = 0

  def seen(split, start):
    """Features and probabilities of each batch, on the devices; computed while the host goes on."""
    for images, rows in sequential_batches(
      split, batch_size=batch_size, context=spec.context, own=own, start=start
    ):
      given = images if on_cpu else jax.device_put(images, devices.split_leading(mesh))
      values, logits = see(given)
      yield (values, jax.nn.softmax(logits.astype(jnp.float32))), len(rows)

  with preemption.at_safe_points():
    for name, split in splits.items():
      rows = _Rows(directory, name, len(split), spec, dtype)
      done += rows.written
      for shares, count in devices.ahead(seen(split, rows.written)):
        rows.add(*(devices.gather(np.asarray(share))[:count] for share in shares))
        done += count
        advance(done, total)
        if devices.any_process(preemption.asked()):
          rows.keep()
          raise preemption.Preempted(f"in extract, after {done} of {total} slices")
      rows.keep()
  if devices.is_first():  # only now: what is left of a split that was done must be found again, too
    for name in splits:
      (directory / f"{name}{_WRITTEN}").unlink()


class _Rows:
  """A split's arrays on disk, filled from the first row on, and how far."""

  def __init__(self, directory: pathlib.Path, split: str, count: int, spec: CnnSpec, dtype: str):
    self._note = directory / f"{split}{_WRITTEN}"
    known = self._note.exists()
    self.written = json.loads(self._note.read_text()) if known else 0
    self.written = int(devices.told_by_first(np.array(self.written)))
    self._kept, self._arrays = self.written, []
    if not devices.is_first():
      return
    for kind, width, of in (
      ("features", inception.NUM_FEATURES, dtype),
      ("probabilities", spec.num_strata, "float32"),
    ):
      path, shape = directory / f"{split}_{kind}.npy", (count, width)
      mode = "r+" if known else "w+"
      self._arrays.append(np.lib.format.open_memmap(path, mode, np.dtype(of), shape))

  def add(self, *values: np.ndarray) -> None:
    """Writes the next rows of each array."""
    after = self.written + len(values[0])
    for array, rows in zip(self._arrays, values):
      array[self.written : after] = rows
    self.written = after
    if after - self._kept >= _KEEP_EVERY:
      self.keep()

  def keep(self) -> None:
    """Sees to it that what was written will be found again."""
    for array in self._arrays:
      array.flush()
    if self._arrays:
      files.write_text(self._note, json.dumps(self.written))
    self._kept = self.written
