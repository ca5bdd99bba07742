"""Makes a phantom's dataset: rendered stacks wait on disk until TFDS has them all."""

from __future__ import annotations

from collections.abc import Iterator
import contextlib
import errno
import fcntl
import io
import os
import pathlib
import shutil

import tensorflow_datasets as tfds

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
  with _alone(folder.parent / "preparing.lock"):
    # Another run may have made it while this one waited.
    builder = builder_lib.Builder(config=name, data_dir=data_dir, progress=progress)
    if not folder.exists():
      for leftover in folder.parent.glob("*.incomplete*"):  # of a killed run
        shutil.rmtree(leftover)
      with _quiet_tfds(), _disk_errors(folder):
        builder.download_and_prepare()
      shutil.rmtree(builder.staging_dir, ignore_errors=True)
  return folder


@contextlib.contextmanager
def _alone(path: pathlib.Path) -> Iterator[None]:
  """Lets one process at a time into the block; a killed one leaves it too."""
  with path.open("w") as file:
    fcntl.flock(file, fcntl.LOCK_EX)
    yield


@contextlib.contextmanager
def _quiet_tfds() -> Iterator[None]:
  """Keeps TFDS from drawing bars and lines of its own."""
  tfds.disable_progress_bar()
  with contextlib.redirect_stdout(io.StringIO()):
    yield


@contextlib.contextmanager
def _disk_errors(folder: pathlib.Path) -> Iterator[None]:
  """Makes an OSError of what ArrayRecord raises when the disk is full."""
  try:
    yield
  except OSError:
    raise
  except Exception as error:
    if "No space left" in str(error) or shutil.disk_usage(folder.parent).free == 0:
      raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(folder)) from error
    raise
