"""Makes a phantom's records: rendered stacks wait on disk until TFDS has them all."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from concurrent import futures
import contextlib
import dataclasses
import io
import os
import pathlib
import shutil
from typing import Any

import jax
import tensorflow_datasets as tfds

from tfds_rcm import cores, disk, locks, staging
from tfds_rcm.formats.png import encode_png
from tfds_rcm.rcm_phantom import anatomy as anatomy_lib
from tfds_rcm.rcm_phantom import readers, render, spec

Progress = Callable[[int, int], None]


def stack_fields(phantom: spec.Phantom, anatomy: anatomy_lib.Anatomy) -> dict[str, Any]:
  """Renders one stack; returns the arguments of `features.stack_record`."""
  plan = readers.plan_stack(phantom, anatomy)
  with futures.ThreadPoolExecutor(cores.num_cores()) as pool:
    # Encodes slices while the next ones are rendered.
    slices = list(pool.map(encode_png, render.render_stack(phantom, anatomy, plan)))
  return {
    "stack_id": anatomy.stack_id,
    "patient_id": anatomy.patient_id,
    "site": anatomy.site,
    "slices": slices,
    "labels": plan.labels.tolist(),
    "depth_um": plan.depth_um.tolist(),
    "pixel_um": phantom.pixel_um,
  }


def staged_fields(
  folder: pathlib.Path, phantom: spec.Phantom, anatomy: anatomy_lib.Anatomy
) -> dict[str, Any]:
  """Returns a stack's fields from `folder`, rendering and keeping them there if need be."""
  # Another device or release of JAX rounds differently: its stacks are not mixed with ours.
  renderer = (spec.VERSION, jax.__version__, jax.default_backend())
  key = staging.fingerprint(dataclasses.asdict(phantom), anatomy.stack_id, renderer)
  path = folder / f"{key}.zip"
  fields = staging.load(path)
  if fields is None:
    fields = stack_fields(phantom, anatomy)
    staging.save(path, fields)
  return fields


def prepare(
  preset: str,
  data_dir: str | os.PathLike[str] | None = None,
  *,
  seed: int = 0,
  progress: Progress | None = None,
) -> pathlib.Path:
  """See `tfds_rcm.prepare.prepare_phantom`."""
  # Here, because the builder imports this module.
  from tfds_rcm.rcm_phantom import rcm_phantom_dataset_builder as builder_lib

  name = spec.with_seed(preset, seed)
  if data_dir is not None:
    data_dir = pathlib.Path(data_dir).expanduser()
  builder = builder_lib.Builder(config=name, data_dir=data_dir, progress=progress)
  folder = pathlib.Path(builder.data_path)
  if folder.exists():  # TFDS renames it into place when all is written
    return folder
  folder.parent.mkdir(parents=True, exist_ok=True)
  with locks.held(folder.parent / "preparing.lock"):
    # Another run may have made it while this one waited.
    builder = builder_lib.Builder(config=name, data_dir=data_dir, progress=progress)
    if not folder.exists():
      for leftover in folder.parent.glob("*.incomplete*"):  # of a killed run
        shutil.rmtree(leftover)
      with _quiet_tfds(), disk.failures_told(folder):
        builder.download_and_prepare()
      shutil.rmtree(builder.staging_dir, ignore_errors=True)
  return folder


@contextlib.contextmanager
def _quiet_tfds() -> Iterator[None]:
  """Keeps TFDS from drawing bars and lines of its own."""
  tfds.disable_progress_bar()
  with contextlib.redirect_stdout(io.StringIO()):
    yield
