"""The benchmark command at a small size: its rows, its table, its file."""

from __future__ import annotations

import json

import jax
import jax.numpy as jnp
import pytest

from benchmarks import gru, loader, peer, pipeline, prepare, run, scale, studies, timing, toeplitz


@pytest.fixture
def small(monkeypatch):
  monkeypatch.setattr(toeplitz, "CASES", [(2, 12, 4, 1)])
  monkeypatch.setattr(gru, "CASES", [(2, 1)])
  monkeypatch.setattr(gru, "LENGTH", 6)
  monkeypatch.setattr(pipeline, "CASES", {"tiny": ("demo", 16, 3, 2)})
  monkeypatch.setattr(pipeline, "SLICES", 80)
  monkeypatch.setattr(pipeline, "_training_step", lambda config, context: lambda x, y: x.sum())
  for name, value in {"SIDE": 16, "SLICES": 80, "BATCHES": (4,), "LOADED": 40}.items():
    monkeypatch.setattr(loader, name, value)
  monkeypatch.setattr(prepare, "STACKS", {"DICOM": 3})
  monkeypatch.setattr(prepare, "_prepare", lambda source, manifest: None)
  monkeypatch.setenv("COLUMNS", "200")  # no broken names
  monkeypatch.setattr(studies, "SIDE", 20)
  monkeypatch.setattr(timing, "matmul_flops_per_second", lambda: 1e9)
  monkeypatch.setattr(timing, "copy_bytes_per_second", lambda: 1e9)


@pytest.mark.parametrize("name", ["toeplitz", "gru", "pipeline", "loader", "prepare"])
def test_command_writes_what_it_shows(small, name, tmp_path, capsys):
  file = tmp_path / "rows.json"
  run.main([name, f"--json={file}"])
  written = json.loads(file.read_text())
  assert set(written) == {"machine", "rows"}
  assert written["rows"]
  keys = [
    "benchmark",
    "case",
    "implementation",
    "seconds_median",
    "seconds_min",
    "seconds_max",
    "floor_seconds",
  ]
  shown = capsys.readouterr().out
  for row in written["rows"]:
    assert list(row) == keys
    assert row["benchmark"] == name
    assert 0 < row["seconds_min"] <= row["seconds_median"] <= row["seconds_max"]
    assert row["implementation"] in shown


def test_a_killed_preparation_goes_on_to_the_same_records(small, capsys):
  scale.main(["--stacks=16"])
  shown = capsys.readouterr().out
  assert "16 stacks: " in shown
  assert "of 16 stacks finished" in shown
  assert "the records are the same: True" in shown


def test_absent_peer_is_said_to_be_absent(capsys):
  assert not timing.peer("no_such_library")
  assert "no_such_library: not installed" in capsys.readouterr().out


def test_implementations_are_timed_strictly_in_turn():
  order = []
  calls = {name: (lambda name=name: order.append(name)) for name in "ab"}
  timing.alternate(calls, repeats=3, warmup=1, min_seconds=0)
  assert "".join(order) == "ab" + "ab" * 3


def test_products_are_counted_through_calls():
  image, kernel = jnp.zeros((2, 8, 8, 3)), jnp.zeros((3, 3, 3, 5))

  @jax.jit
  def inner(x):
    return jax.lax.conv_general_dilated(
      x, kernel, (1, 1), "VALID", dimension_numbers=("NHWC", "HWIO", "NHWC")
    )

  function = lambda x: inner(x).reshape(2, -1) @ jnp.zeros((180, 7))
  assert timing.product_flops(function, image) == 2 * (2 * 36 * 5 * 27 + 2 * 7 * 180)


def test_a_peer_that_does_not_answer_is_ended():
  asleep = peer.call("time", "sleep", 600, patience=0.1)
  with pytest.raises(RuntimeError, match=r"benchmarks.peer time sleep .* took more than 0.1 s"):
    asleep()
