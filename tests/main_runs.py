"""Whole runs of `rcm_jax.main` on a very small phantom, as processes, for tests to disturb."""

from __future__ import annotations

from collections.abc import Callable, Sequence
import json
import os
from pathlib import Path
import signal
import subprocess
import sys
import time
import types

import ml_collections
import pytest

from launch import sweep
from rcm_jax.cnn import training as cnn_training
from rcm_jax.heads import training as head_training

ROOT = Path(__file__).resolve().parent.parent
SMALL = {
  "data.sources": ("rcm_phantom/demo+stacks=4,2,3+size_px=80+pixel_um=2.0",),
  "cnn.width": 0.0625,
  "cnn.epochs": 2,
  "cnn.batch_size": 16,
  "head.epochs": 4,
  "head.hidden": 8,
  "seeds": (0, 1),
}
PREEMPTED = 75
_TIMES = ("train_seconds",)


def small(method: types.ModuleType | str) -> ml_collections.ConfigDict:
  """Returns the configuration of a method, or of a shipped name, for a small run."""
  config = sweep.load(method) if isinstance(method, str) else method.get_config()
  config.update_from_flattened_dict(SMALL)
  return config


def two_views(home: Path) -> ml_collections.ConfigDict:
  """Returns the configuration of a small run on the home's CNN and on textures."""
  config = small("ordered_textures")
  config.data.data_dir = str(home / "data")
  few = {"textures.words": 20, "textures.components": 5, "textures.views": ((2,),)}
  few["augmentation.photometry.share"] = 0.0  # the home's CNN
  config.update_from_flattened_dict(few)
  return config


def no_training(monkeypatch: pytest.MonkeyPatch) -> None:
  """Has a test fail where anything is trained."""

  def fail(*args, **kwargs):
    raise AssertionError("trained again")

  monkeypatch.setattr(cnn_training, "train", fail)
  monkeypatch.setattr(head_training, "train", fail)


def command(workdir: Path, cache: Path, data: Path, *extra: str) -> list[str]:
  """Returns the command line of a small run."""
  return [
    sys.executable,
    "-m",
    "rcm_jax.main",
    "--config=configs/toeplitz_d1.py",
    f"--workdir={workdir}",
    f"--cache_dir={cache}",
    f"--config.data.data_dir={data}",
    *(f"--config.{key}={value}" for key, value in SMALL.items()),
    *extra,
  ]


class Runs:
  """Runs in one home: its work directory, its cache and its data.

  Attributes:
    home: holds `run`, `cache` and `data`.
  """

  def __init__(self, home: Path, data: Path | None = None):
    self.home = home
    self.workdir, self.cache = home / "run", home / "cache"
    self.data = data or home / "data"

  def command(self, *extra: str) -> list[str]:
    """Returns the command line of this home's run."""
    return command(self.workdir, self.cache, self.data, *extra)

  def start(self, *extra: str, command: Sequence[str] | None = None) -> subprocess.Popen:
    """Starts a run."""
    return subprocess.Popen(
      command or self.command(*extra),
      cwd=ROOT,
      stdout=subprocess.PIPE,
      stderr=subprocess.PIPE,
      text=True,
    )

  def finish(self, *extra: str, command: Sequence[str] | None = None) -> str:
    """Runs to the end, which must be a good one; returns what it wrote to standard error."""
    process = self.start(*extra, command=command)
    _, errors = process.communicate()
    assert process.returncode == 0, errors
    return errors

  def fail(self, *extra: str, command: Sequence[str] | None = None) -> str:
    """Runs to a bad end; returns the one line of it."""
    process = self.start(*extra, command=command)
    _, errors = process.communicate()
    assert process.returncode == 1, errors
    assert "Traceback" not in errors, errors
    (line,) = [line for line in errors.splitlines() if line.startswith("rcm_jax: ")]
    return line

  def stop_when(self, happened: Callable[[], bool], number: int = signal.SIGTERM) -> str:
    """Starts a run and sends it a signal when something has happened; returns its errors."""
    process = self.start()
    deadline = time.monotonic() + 1200  # others may hold the processor
    while not happened():
      assert process.poll() is None, process.communicate()
      assert time.monotonic() < deadline
      time.sleep(0.01)
    process.send_signal(number)
    _, errors = process.communicate()
    assert process.returncode == (PREEMPTED if number == signal.SIGTERM else -number), errors
    return errors

  def saved(self, stage: str) -> list[int]:
    """Returns the steps of a stage's checkpoints that are whole."""
    steps = self.cache.glob(f"{stage}-*/checkpoints/*/sealed.json")
    return sorted(int(path.parent.name) for path in steps)

  def began(self, stage: str) -> bool:
    """Whether a training of the stage has begun."""
    return any(self.cache.glob(f"{stage}-*/checkpoints"))

  def results(self) -> dict:
    """Returns results.json without times."""
    return results(self.workdir)


def results(workdir: Path) -> dict:
  """Returns a run's results.json without times."""
  read = json.loads((workdir / "results.json").read_text())
  for row in read["rows"]:
    for name in _TIMES:
      row.pop(name)
  return read


def flip_a_bit(path: Path) -> None:
  """Changes one bit in the middle of a file, and leaves its size and times."""
  before = path.stat()
  content = bytearray(path.read_bytes())
  content[len(content) // 2] ^= 1
  path.write_bytes(content)
  os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))


def largest(folder: Path, pattern: str = "*") -> Path:
  """Returns the largest file below a folder."""
  return max((p for p in folder.rglob(pattern) if p.is_file()), key=lambda p: p.stat().st_size)
