"""Trains, extracts and sweeps on the devices of one process or of several; `devices_test` runs it.

python tests/devices_worker.py DIRECTORY [COORDINATOR PROCESSES INDEX]
"""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
import shutil
import sys
from typing import Any

import cnn_test
import heads_test
import jax
import numpy as np

from rcm_jax.cnn import extraction, train_step
from rcm_jax.cnn import training as cnn_training
from rcm_jax.heads import training as head_training_lib
from rcm_jax.heads.member_parallel import compile_split, lower_run, over_members
from rcm_jax.heads.train_epochs import Training, make_train
from rcm_jax.runtime import devices, preemption

SPEC = dataclasses.replace(cnn_test.SPEC, batch_size=8, norm_groups=8, epochs=2)


def collectives(text: str) -> list[str]:
  """Returns the operations of a compiled program that talk to other devices."""
  names = ("all-reduce(", "all-gather(", "reduce-scatter(", "all-to-all(", "collective-permute(")
  started = ("all-reduce-start(", "all-gather-start(", "collective-permute-start(")
  lines = [line for line in text.splitlines() if "=" in line]
  return [name for line in lines for name in names + started if f" {name}" in line]


def head_training(epochs: int) -> Training:
  """Builds a training of heads that one call completes."""
  return make_train(
    heads_test.SPEC,
    heads_test.TRAIN,
    heads_test.VALIDATION,
    batch_size=4,
    epochs=epochs,
    epochs_per_call=epochs,
  )


def count_collectives() -> dict[str, list[str]]:
  """Compiles one step of the CNN and a training of heads, and looks at the programs."""
  mesh = devices.device_mesh(SPEC.norm_groups)
  programs = train_step.build(SPEC, 2, mesh)
  images = np.zeros((8, 75, 75, 1), np.uint8)
  numbers = np.arange(8, dtype=np.int32)
  rows = devices.put_rows((numbers, images, numbers % 3), mesh)
  learned = devices.put(programs.start, devices.replicated(mesh))
  step = programs.train.lower(learned, np.uint32(0), np.int32(0), *rows).compile().as_text()
  training = head_training(epochs=2)
  mesh = devices.local_mesh()
  split = devices.split_leading(mesh)
  members = [heads_test.MEMBERS[i % 3] for i in range(8)]
  members = jax.device_put(jax.tree.map(lambda *x: np.stack(x), *members), split)
  state = jax.jit(devices.split_work(over_members(training.init), mesh))(members)
  epoch = jax.device_put(np.zeros(8, np.int32), split)
  data = jax.device_put(training.data, devices.replicated(mesh))
  run = lower_run(training, mesh, state, members, epoch, data).compile().as_text()
  return {"cnn": collectives(step), "heads": collectives(run)}


def split_directions() -> dict[str, Any]:
  """Trains a member by itself and split over two devices, and compares."""
  mesh = devices.device_mesh(2)
  training = head_training(epochs=8)
  member = jax.tree.map(np.asarray, heads_test.MEMBERS[1])
  state = jax.device_get(jax.jit(training.init)(member))
  alone = jax.device_get(jax.jit(training.run)(state, member, 0))
  program = compile_split(training, mesh, state, member, 0)
  split = jax.device_get(program(state, member, 0))
  differences = jax.tree.map(lambda a, b: float(np.abs(a - b).max()), alone, split)
  return {"splits": training.splits, "difference": max(jax.tree.leaves(differences))}


def work(directory: Path, stop_after: int | None = None) -> None:
  """Trains the CNN, extracts, trains heads; or leaves a checkpoint of the CNN after a step."""
  for name in ("cnn", "features", "heads"):
    (directory / name).mkdir(parents=True, exist_ok=True)
  steps = []

  def advance(done, total):
    steps.append(done)
    if done == stop_after:
      preemption.request()

  cnn_training.train(SPEC, cnn_test.SPLITS, directory / "cnn", advance=advance)
  (directory / f"steps_{jax.process_index()}.json").write_text(json.dumps(steps))
  devices.wait_for_all("cnn")
  extraction.extract(
    SPEC,
    directory / "cnn",
    cnn_test.SPLITS,
    directory / "features",
    batch_size=8,
    dtype="float32",
  )
  head_training_lib.train(
    heads_test.SPEC,
    heads_test.MEMBERS,
    heads_test.TRAIN,
    heads_test.VALIDATION,
    directory / "heads",
    epochs=8,
    batch_size=4,
  )
  devices.wait_for_all("heads")


def main() -> None:
  directory, *distributed = sys.argv[1:]
  directory = Path(directory)
  if distributed:
    coordinator, processes, index = distributed
    devices.start(coordinator, int(processes), int(index))
  else:
    try:
      work(directory, stop_after=1)
    except preemption.Preempted:
      preemption.clear()
    shutil.copytree(directory / "cnn", directory / "stopped")
  work(directory)
  if not distributed:
    (directory / "collectives.json").write_text(json.dumps(count_collectives()))
    (directory / "split.json").write_text(json.dumps(split_directions()))


if __name__ == "__main__":
  main()
