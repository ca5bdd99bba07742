"""The first day's command, tiny and on a CPU: its file, its going on, its failing rows; the wheels' names."""

from __future__ import annotations

import json

import jax
import numpy as np
import pytest

from benchmarks.gpu import __main__ as command
from benchmarks.gpu import parity, parts, wheels


def lines(path):
  return [json.loads(line) for line in path.read_text().splitlines()]


def test_the_file_has_the_values_of_every_case():
  with np.load(parity.FILE, allow_pickle=False) as known:
    assert sorted(known) == sorted(parity.cases())


@pytest.mark.parametrize(
  "name", ["GRU", "class feedback", "Toeplitz", "decoding", "head training, feedback"]
)
def test_a_cpu_agrees_with_the_values_carried_along(name):
  found = parity.difference(name, "highest")
  assert found["agrees"], found


@pytest.mark.slow
@pytest.mark.parametrize("part", parts.PARTS)
def test_every_row_of_a_part_runs_dry(part, tmp_path, monkeypatch):
  monkeypatch.setattr(
    parts, "_peer", lambda *args: lambda: None
  )  # other libraries, other processes
  monkeypatch.setattr(parts.heads, "STACKS", 4)
  monkeypatch.setattr(parts.heads, "MAX_SLICES", 6)
  monkeypatch.setattr(parts.gru, "LENGTH", 6)
  one = {
    "batch normalisation": parity.cases()["batch normalisation"]
  }  # the others have tests above
  monkeypatch.setattr(parity, "cases", lambda: one)
  out = tmp_path / "day.jsonl"
  command.main([f"--json={out}", f"--part={part}", "--dry"])
  machine, *rows = lines(out)
  assert machine == {"machine": {"device": "dry"}}
  assert [row["name"] for row in rows] == [name for name, _ in parts.rows(part, dry=True)]
  assert not any("error" in row for row in rows)
  monkeypatch.setattr(parts, "rows", lambda *args, **more: [(row["name"], None) for row in rows])
  command.main([f"--json={out}", f"--part={part}", "--dry"])  # nothing is left to do
  assert len(lines(out)) == 1 + len(rows)


def test_a_row_that_disagrees_with_the_cpu_is_told_and_tried_again(tmp_path, monkeypatch):
  row = lambda: {"largest_error": 1.0, "agrees": False}
  monkeypatch.setitem(parts.PARTS, "parity", lambda sizes: [("GRU, highest", row)])
  arguments = [f"--json={tmp_path / 'day.jsonl'}", "--part=parity", "--dry"]
  for count in (2, 3):
    with pytest.raises(SystemExit, match="1 rows failed: GRU, highest \\(disagrees"):
      command.main(arguments)
    assert len(lines(tmp_path / "day.jsonl")) == count


def test_rows_that_are_there_are_skipped_and_failed_ones_tried_again(tmp_path, monkeypatch, capsys):
  calls = []

  def fails():
    calls.append("fails")
    if calls.count("fails") == 1:
      raise RuntimeError("no such\nthing")
    return {"seconds": 2}

  monkeypatch.setitem(
    parts.PARTS,
    "cnn",
    lambda sizes: [("fails", fails), ("works", lambda: calls.append("works") or {"seconds": 1})],
  )
  out = tmp_path / "day.jsonl"
  arguments = [f"--json={out}", "--part=cnn", "--dry"]
  with pytest.raises(SystemExit, match="1 rows failed: fails"):
    command.main(arguments)
  assert lines(out)[1]["error"] == "RuntimeError: no such thing"
  with out.open("a") as file:
    file.write('{"part": "cnn", "na')  # killed while writing
  command.main(arguments)
  assert calls == ["fails", "works", "fails"]
  assert [row.get("seconds") for row in lines(out)[1:]] == [None, 1, 2]


def test_no_row_begins_when_time_is_up(tmp_path, monkeypatch, capsys):
  monkeypatch.setitem(parts.PARTS, "cnn", lambda sizes: [("row", dict)])
  with pytest.raises(SystemExit) as stopped:
    command.main([f"--json={tmp_path / 'day.jsonl'}", "--part=cnn", "--dry", "--minutes=0"])
  assert stopped.value.code == 75
  assert "the same command goes on" in capsys.readouterr().out


@pytest.mark.skipif(jax.default_backend() != "cpu", reason="there is a GPU")
def test_without_a_gpu_it_says_so(tmp_path):
  with pytest.raises(SystemExit, match="JAX sees no GPU"):
    command.main([f"--json={tmp_path / 'day.jsonl'}"])


def test_wheels_are_what_the_machine_lacks():
  have = wheels.frozen("jax==0.11.2\nNumPy @ file:///x\n# comment\n")
  assert have == {"jax", "numpy"}
  assert wheels.needed(["importlib-resources"], {"zipp"}) == {"importlib-resources"}
  assert "pyarrow" not in wheels.needed(["tensorflow-datasets"], set())
  first, everything = wheels.roots(everything=False), wheels.roots(everything=True)
  assert everything - first == wheels.LATER
  assert {"h5py", "tensorflow-datasets"} <= first
  text = (
    'jax==0.10.2; python_version < "3.12"\njax==0.11.2; python_version >= "3.12"\n# x\nabsl_py==1\n'
  )
  assert wheels.pins(text, "3.12") == {"jax": "0.11.2", "absl-py": "1"}
  assert wheels.pins(text, "3.11")["jax"] == "0.10.2"
