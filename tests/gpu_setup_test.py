"""What a run decides for GPUs before it computes: which it takes, their flags, their precision, its batches."""

from __future__ import annotations

import cnn_test
import jax
import numpy as np
import pytest

from rcm_jax import main
from rcm_jax.cnn import inception
from rcm_jax.cnn import training as cnn_training
from rcm_jax.configs import base
from rcm_jax.data import batches
from rcm_jax.ops import backend
from rcm_jax.run import pipeline
from rcm_jax.runtime import devices
from tfds_rcm.errors import UserError


@pytest.mark.parametrize(
  ("visible", "found"), [("0,3", ["0", "3"]), ("", []), ("GPU-a1", ["GPU-a1"])]
)
def test_cuda_visible_devices_says_which_gpus_there_are(visible, found, monkeypatch):
  monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
  assert devices.visible_gpus() == found


@pytest.mark.parametrize(
  ("index", "gpus", "own"), [(1, None, [1]), (5, None, [1]), (1, [0, 3], [0, 3])]
)
def test_a_process_takes_one_gpu_by_its_number_or_those_it_is_told(index, gpus, own):
  assert devices._own_gpus(["0", "1", "2", "3"], index, gpus) == own
  assert devices._own_gpus([], index, None) is None


@pytest.mark.parametrize(("visible", "own"), [("0,1,2,3", [2]), ("5", [0]), ("", None)])
def test_a_task_of_slurm_takes_one_gpu_of_those_that_slurm_shows_it(visible, own, monkeypatch):
  asked = []
  monkeypatch.setattr(devices, "_initialize", lambda *args, **more: asked.append(more))
  values = {"SLURM_STEP_NUM_TASKS": "4", "SLURM_LOCALID": "2", "CUDA_VISIBLE_DEVICES": visible}
  for name, value in {**values, "XLA_FLAGS": ""}.items():
    monkeypatch.setenv(name, value)
  devices.start()
  assert asked == [{"local_device_ids": own}]


def test_gpus_that_are_not_there_are_named():
  with pytest.raises(UserError, match="--gpus: there is no GPU 2 among the 2"):
    devices._own_gpus(["0", "1"], 0, [0, 2])
  with pytest.raises(UserError, match="--gpus: 'x' is no number"):
    main._gpus(["0", "x"])


@pytest.mark.parametrize(
  ("before", "after"),
  [
    ("", "--xla_gpu_exclude_nondeterministic_ops=true"),
    ("--a=1", "--a=1 --xla_gpu_exclude_nondeterministic_ops=true"),
    ("--xla_gpu_deterministic_ops=false", "--xla_gpu_deterministic_ops=false"),
  ],
)
def test_results_repeat_unless_somebody_chose(before, after, monkeypatch):
  monkeypatch.setenv("XLA_FLAGS", before)
  devices.repeat_results()
  assert devices.os.environ["XLA_FLAGS"] == after


def test_results_come_in_order_two_behind_what_was_asked_for():
  asked = []

  def results():
    for i in range(4):
      asked.append(i)
      yield i

  seen = [(value, len(asked)) for value in devices.ahead(results())]
  assert seen == [(0, 3), (1, 4), (2, 4), (3, 4)]


def test_programs_are_traced_for_the_devices_that_are_told():
  assert backend.backend() == "cpu"
  with backend.tracing_for("gpu", jax.devices()):
    assert backend.backend() == "gpu"
    assert devices.devices() == jax.devices()
    assert inception.compiler_options() == {}
    assert backend.unroll() > 1
    assert backend.numerics() == f"gpu, {jax.config.jax_default_matmul_precision}"
  assert backend.numerics() == "cpu"


def test_an_unknown_precision_is_named(tmp_path):
  config = base.get_config()
  config.precision = "highes"
  with pytest.raises(UserError, match=r"config.precision: 'highes' is none of .* 'highest'"):
    pipeline.run(config, tmp_path / "run", tmp_path / "cache")


@pytest.mark.parametrize("context", [1, 3])
def test_slices_on_the_device_are_those_of_the_loader(context):
  split, rows = cnn_test.SPLITS["train"], np.array([0, 2, 3, 14])
  held = cnn_training.hold(split, devices.device_mesh())
  shown = held(batches.neighbour_rows(split, rows, context))
  np.testing.assert_array_equal(shown, batches.with_context(split, rows, context))


@pytest.mark.slow
def test_training_from_the_device_is_training_from_the_loader(tmp_path, monkeypatch):
  histories = []
  for name in ("cpu", "gpu"):
    monkeypatch.setattr(cnn_training, "backend", lambda name=name: name)
    cnn_training.train(cnn_test.SPEC, cnn_test.SPLITS, tmp_path / name)
    histories.append(cnn_test.json.loads((tmp_path / name / "history.json").read_text()))
  assert histories[0]["loss"] == histories[1]["loss"]


@pytest.mark.parametrize(
  ("available", "number", "expected"), [(6, 8, 4), (8, 8, 8), (16, 8, 8), (5, 1, 1), (3, 0, 3)]
)
def test_a_process_uses_as_many_devices_as_divide_the_groups(available, number, expected):
  assert devices.most_that_divide(available, number) == expected
