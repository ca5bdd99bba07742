"""Makes a phantom's dataset: rendered stacks wait on disk until TFDS has them all."""

from __future__ import annotations

from collections.abc import Iterator
import contextlib
import io
import os
import pathlib
import shutil

import tensorflow_datasets as tfds

from tfds_rcm import disk, locks
from tfds_rcm.rcm_phantom import rcm_phantom_dataset_builder as builder_lib
from tfds_rcm.rcm_phantom import spec, stacks


def prepare(
  preset: str,
  data_dir: str | os.PathLike[str] | None = None,
  *,
  seed: int = 0,
  progress: stacks.Progress | None = None,
) -> pathlib.Path:
  """See `tfds_rcm.prepare.prepare_phantom`."""
  name = spec.with_seed(preset, seed)
  if data_dir is not None:
    data_dir = pathlib.Path(data_dir).expanduser()
  builder = builder_lib.Builder(config=name, data_dir=data_dir, progress=progress)
  folder = pathlib.Path(builder.data_path)
  if folder.exists():  # TFDS renames it into place when all is written
    return folder
  spec.named(name)  # an older version cannot be made here
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
