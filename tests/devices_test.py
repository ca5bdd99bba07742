"""One device, eight simulated ones, two processes: one training, one set of features and heads."""

from __future__ import annotations

import json
import os
from pathlib import Path
import shutil
import socket
import subprocess
import sys

import cnn_test
import devices_worker
import heads_test
import numpy as np
import pytest

from rcm_jax.cnn import extraction
from rcm_jax.cnn import training as cnn_training
from rcm_jax.heads import training as head_training
from tfds_rcm import cores
from tfds_rcm.errors import UserError

pytestmark = pytest.mark.slow  # trainings in three arrangements of devices
FLAGS = os.environ.get("XLA_FLAGS", "")  # such as the instructions that are allowed
ROOT = Path(__file__).resolve().parent.parent
# Sums of gradients are added in another order; Adam's first steps divide by their size.
TOLERANCE = 1e-4
SECONDS = 600  # processes that wait for each other in vain


def start(directory: Path, devices: int, *distributed: str) -> subprocess.Popen:
  environment = {
    **os.environ,
    "PYTHONPATH": f"{ROOT}:{ROOT / 'tests'}",
    "XLA_FLAGS": f"{FLAGS} --xla_force_host_platform_device_count={devices}",
  }
  command = [sys.executable, "tests/devices_worker.py", str(directory), *distributed]
  return subprocess.Popen(
    command, cwd=ROOT, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
  )


def finish(processes: list[subprocess.Popen]) -> None:
  try:
    outputs = [process.communicate(timeout=SECONDS)[0] for process in processes]
  finally:
    for process in processes:
      process.kill()
  assert [process.returncode for process in processes] == [0] * len(processes), outputs


@pytest.fixture(scope="module")
def one(tmp_path_factory):
  directory = tmp_path_factory.mktemp("one")
  devices_worker.work(directory)
  return directory


@pytest.fixture(scope="module")
def eight(tmp_path_factory):
  directory = tmp_path_factory.mktemp("eight")
  finish([start(directory, 8)])
  return directory


@pytest.fixture(scope="module")
def two(eight, tmp_path_factory):
  """Two processes of a device each; their CNN goes on from the checkpoint of eight devices."""
  directory = tmp_path_factory.mktemp("two")
  shutil.copytree(eight / "stopped", directory / "cnn")
  with socket.socket() as free:
    free.bind(("localhost", 0))
    coordinator = f"localhost:{free.getsockname()[1]}"
  finish([start(directory, 1, coordinator, "2", str(i)) for i in range(2)])
  return directory


def history(directory: Path, stage: str) -> dict:
  return json.loads((directory / stage / "history.json").read_text())


@pytest.mark.parametrize("several", ["eight", "two"])
def test_curves_features_and_heads_are_those_of_one_device(one, several, request):
  directory = request.getfixturevalue(several)
  for stage in ("cnn", "heads"):
    expected, actual = history(one, stage), history(directory, stage)
    np.testing.assert_allclose(actual["loss"], expected["loss"], rtol=TOLERANCE)
    assert actual["validation_accuracy"] == expected["validation_accuracy"]
  for name in ("train", "validation", "test"):
    expected, actual = (
      np.load(d / "features" / f"{name}_features.npy", allow_pickle=False) for d in (one, directory)
    )
    scale = np.abs(expected).max()
    np.testing.assert_allclose(actual, expected, atol=10 * TOLERANCE * scale)
  expected, actual = (
    head_training.load(heads_test.SPEC, heads_test.MEMBERS, d / "heads").probabilities(
      heads_test.VALIDATION
    )
    for d in (one, directory)
  )
  np.testing.assert_allclose(actual, expected, atol=TOLERANCE)


def test_a_member_split_by_direction_is_the_member_alone(eight):
  found = json.loads((eight / "split.json").read_text())
  assert found["splits"]
  assert found["difference"] < TOLERANCE


# Which devices a process sees in all, those that work is split over, and whether there is a pair.
SEEN = """
import jax
from rcm_jax.runtime import devices
devices.start()
print(jax.device_count(), len(devices.devices()), devices.local_mesh().size, devices.core_pair() is not None)
"""


@pytest.mark.parametrize(
  ("flags", "seen"),
  [("", "2 1 1 True"), ("--xla_force_host_platform_device_count=3", "3 3 3 False")],
)
@pytest.mark.skipif(cores.num_cores() < 2, reason="one core")
def test_the_second_core_serves_the_pair_alone(flags, seen):
  environment = {**os.environ, "PYTHONPATH": str(ROOT), "XLA_FLAGS": f"{FLAGS} {flags}".strip()}
  done = subprocess.run(
    [sys.executable, "-c", SEEN], env=environment, capture_output=True, text=True, check=True
  )
  assert done.stdout.split() == seen.split()


def test_a_checkpoint_of_eight_devices_goes_on_on_one(one, eight, tmp_path):
  shutil.copytree(eight / "stopped", tmp_path / "cnn")
  steps = []
  cnn_training.train(
    devices_worker.SPEC,
    cnn_test.SPLITS,
    tmp_path / "cnn",
    advance=lambda done, total: steps.append(done),
  )
  assert steps == [2, 3, 4]
  expected, actual = history(one, "cnn"), history(tmp_path, "cnn")
  np.testing.assert_allclose(actual["loss"], expected["loss"], rtol=TOLERANCE)
  assert extraction.load(devices_worker.SPEC, tmp_path / "cnn") is not None


def test_a_checkpoint_of_eight_devices_goes_on_on_two(two):
  for index in range(2):
    assert json.loads((two / f"steps_{index}.json").read_text()) == [2, 3, 4]


def test_a_step_of_the_cnn_has_one_all_reduce_and_heads_have_none(eight):
  found = json.loads((eight / "collectives.json").read_text())
  assert found == {"cnn": ["all-reduce("], "heads": []}


def test_groups_that_do_not_divide_a_batch_are_refused(tmp_path):
  spec = cnn_test.dataclasses.replace(cnn_test.SPEC, norm_groups=4)
  with pytest.raises(UserError, match=r"norm_groups = 4: a batch of .* = 6"):
    cnn_training.train(spec, cnn_test.SPLITS, tmp_path)
