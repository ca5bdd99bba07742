"""Metrics on disk, and what a resumed run does to them."""

import io
import json
import re
import threading
import time

from rich.console import Console
from tensorboardX.proto import event_pb2

from rcm_jax.runtime.metric_writer import Writer
from tfds_rcm import progress


def lines(path):
  return [json.loads(line) for line in path.read_text().splitlines()]


def test_a_resumed_stage_writes_each_step_once(tmp_path):
  path = tmp_path / "metrics.jsonl"
  writer = Writer(tmp_path)
  for step in range(4):
    writer.scalars("cnn", step, {"loss": 1.0 - step})
  writer.scalars("heads", 3, {"loss": 9.0})
  writer.close()
  with path.open("a") as file:
    file.write('{"stage": "cnn", "st')  # a kill in the middle of a line
  writer = Writer(tmp_path)
  writer.resume("cnn", 2)
  writer.scalars("cnn", 2, {"loss": 5.0})
  writer.close()
  assert lines(path) == [
    {"stage": "cnn", "step": 0, "loss": 1.0},
    {"stage": "cnn", "step": 1, "loss": 0.0},
    {"stage": "heads", "step": 3, "loss": 9.0},
    {"stage": "cnn", "step": 2, "loss": 5.0},
  ]
  assert list((tmp_path / "tensorboard").glob("events*"))


def test_tensorboard_has_every_value_though_the_clock_is_set(tmp_path, jumping_clock):
  writer = Writer(tmp_path)
  for step in range(30):
    writer.scalars("cnn", step, {"loss": step / 2})
  writer.close()
  (file,) = (tmp_path / "tensorboard").glob("events*")
  content, values = file.read_bytes(), []
  while content:  # length, its checksum, event, its checksum
    size = int.from_bytes(content[:8], "little")
    event = event_pb2.Event.FromString(content[12 : 12 + size])
    values += [(event.step, value.tag, value.simple_value) for value in event.summary.value]
    content = content[16 + size :]
  assert values == [(step, "cnn/loss", step / 2) for step in range(30)]


def test_progress_says_how_long_a_stage_took(tmp_path, capsys):
  writer = Writer(tmp_path)
  with writer.progress("extract [/x]") as advance:
    advance(1, 2)
  writer.close()
  assert "extract [/x]: 0.0 s" in capsys.readouterr().err


def test_a_log_hears_of_a_stage_again_and_again(tmp_path, monkeypatch):
  """Also of one that says nothing itself, as while it compiles."""
  monkeypatch.setattr(progress, "SECONDS_BETWEEN_LINES", 0.01)
  log = io.StringIO()
  writer = Writer(tmp_path, Console(file=log, highlight=False, markup=False))
  with writer.progress("train_cnn") as advance:
    _wait_for(log, r"train_cnn …\ntrain_cnn: 0 s so far\n")
    advance(50, 100)  # an earlier run's
    _wait_for(log, r"train_cnn: \d s so far, 50 of 100\n")
    advance(75, 100)
    _wait_for(log, r"train_cnn: \d+ s so far, 75 of 100, about \d+ s to go\n")
  writer.close()
  said = log.getvalue()
  assert re.search(r"train_cnn: \d+\.\d s\n$", said)
  time.sleep(0.05)
  assert log.getvalue() == said
  assert not [thread for thread in threading.enumerate() if thread.name == "progress"]


def test_spans_of_time_are_read_at_a_glance():
  assert [progress._span(s) for s in (7.4, 119.0, 150.0, 7300.0)] == [
    "7 s",
    "119 s",
    "2 min",
    "2.0 h",
  ]


def _wait_for(log, pattern):
  deadline = time.monotonic() + 60
  while not re.search(pattern, log.getvalue()):
    assert time.monotonic() < deadline, log.getvalue()
    time.sleep(0.005)
