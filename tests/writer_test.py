"""Metrics on disk, and what a resumed run does to them."""

import json

from tensorboardX.proto import event_pb2

from rcm_jax.runtime.metric_writer import Writer


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
