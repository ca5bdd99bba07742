"""What checkpoints cost a training: how long a save holds it up, and what a resume reads."""

from __future__ import annotations

import dataclasses
import pathlib
import tempfile
import time

import jax

from benchmarks import pipeline
from benchmarks.timing import copy_bytes_per_second
from rcm_jax.cnn import train_step
from rcm_jax.configs import base
from rcm_jax.runtime import checkpoints as checkpoints_lib
from rcm_jax.runtime import devices

REPEATS = 5
PAUSE = 4.0  # seconds of training between two saves, so that one is written before the next
EPOCH_STEPS = 40


def rows(peers: bool) -> list[dict]:
  """Times saves and a restore of the CNN's whole training state, by preset."""
  del peers  # they write other states
  found = []
  for preset in ("demo", "paper"):
    config = base.get_config(preset)
    spec = pipeline.spec_of(config)
    programs = train_step.build(spec, EPOCH_STEPS, devices.device_mesh(spec.norm_groups))
    learned = programs.start
    state = {"learned": learned, "best": (learned.params, learned.stats)}
    size = sum(leaf.nbytes for leaf in jax.tree.leaves(state))
    about = {"cnn": dataclasses.asdict(spec)}
    stalls, restores = [], []
    with tempfile.TemporaryDirectory() as folder:
      directory = pathlib.Path(folder)
      with checkpoints_lib.Checkpoints(directory, about=about) as checkpoints:
        for step in range(REPEATS + 1):
          started = time.perf_counter()
          checkpoints.save(step, state)
          stalls.append(time.perf_counter() - started)
          time.sleep(PAUSE)
      for _ in range(REPEATS):
        started = time.perf_counter()
        with checkpoints_lib.Checkpoints(directory) as checkpoints:
          step, tree = checkpoints.restore(state)
          jax.block_until_ready(devices.put(tree, devices.replicated(devices.device_mesh())))
          restores.append(time.perf_counter() - started)
    timed = {"ours/save holds training": stalls[1:], "ours/open and restore": restores}
    for name, seconds in timed.items():
      found.append(
        {
          "benchmark": "checkpoints",
          "case": f"state of the CNN, {preset}: {size / 1e6:.0f} MB",
          "implementation": name,
          "seconds_median": sorted(seconds)[len(seconds) // 2],
          "seconds_min": min(seconds),
          "seconds_max": max(seconds),
          # A save takes a copy; a restore reads once for the checksums and once for the arrays.
          "floor_seconds": 2 * size / copy_bytes_per_second(),
        }
      )
  return found
