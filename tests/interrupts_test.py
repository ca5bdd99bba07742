"""Requests to stop: at once outside of safe points, noted inside, and a second one ends it there too."""

from __future__ import annotations

import ast
import os
import pathlib
import signal
import subprocess
import sys
import time

import interrupted
import pytest

from tfds_rcm import interrupts, staging

ROOT = pathlib.Path(__file__).resolve().parent.parent
COMMANDS = sorted(
  path.relative_to(ROOT)
  for package in ("rcm_jax", "tfds_rcm", "launch")
  for path in (ROOT / package).rglob("*.py")
  if '__name__ == "__main__"' in path.read_text()
)
CODES = {number: 130 if number == signal.SIGINT else 75 for number in interrupts.SIGNALS}


@pytest.fixture
def ends():
  with interrupted.handled() as ends:
    yield ends


@pytest.mark.parametrize("number", CODES)
def test_a_signal_ends_the_process_with_its_code_and_a_line(ends, number):
  interrupted.send(number)
  line = "test: stopped on request; run the same command again to go on"
  assert ends == [(CODES[number], line)]


@pytest.mark.parametrize("number", CODES)
def test_at_safe_points_it_is_noted_and_a_second_one_ends_the_process(ends, number, monkeypatch):
  monkeypatch.setattr(interrupts, "SECONDS_OF_ONE_REQUEST", 0.0)

  def work():
    with interrupts.at_safe_points():
      assert not interrupts.asked()
      interrupted.send(number)
      assert interrupts.asked()
      assert not ends
      interrupted.send(signal.SIGTERM)
      line = "test: ended at once; the same command goes on from what was saved before"
      assert ends == [(75, line)]
      interrupted.send(number)
      raise interrupts.Preempted("in a test")

  with pytest.raises(interrupts.Preempted) as stopped:
    work()
  assert stopped.value.code == CODES[number]


def test_signals_in_quick_succession_are_one_request(ends, monkeypatch):
  monkeypatch.setattr(interrupts, "SECONDS_OF_ONE_REQUEST", 3600.0)

  def work():
    with interrupts.at_safe_points():
      interrupted.send(signal.SIGTERM)
      os.kill(os.getpid(), signal.SIGTERM)
      time.sleep(0.05)
      assert not ends
      raise interrupts.Preempted

  with pytest.raises(interrupts.Preempted):
    work()


def test_what_came_behind_the_last_look_ends_the_process_behind_the_safe_points(ends):
  with interrupts.at_safe_points():
    with interrupts.at_safe_points():
      interrupted.send(signal.SIGINT)
    assert not ends
  assert [code for code, _ in ends] == [130]


def test_whoever_starts_a_process_may_let_it_ignore_a_signal():
  with interrupted.handled(ignored=[signal.SIGHUP]) as ends:  # as nohup does
    assert signal.getsignal(signal.SIGHUP) == signal.SIG_IGN
    os.kill(os.getpid(), signal.SIGHUP)
    interrupted.send(signal.SIGTERM)
  assert [code for code, _ in ends] == [75]


def test_a_process_that_others_need_ends_after_them(monkeypatch, capfd):
  done = []

  def leave(code):
    done.append(("exit", code))
    raise SystemExit(code)  # instead of the process

  monkeypatch.setattr(interrupts, "_linger", 0.0)
  monkeypatch.setattr(interrupts, "_code", 75)
  monkeypatch.setattr(interrupts.time, "sleep", lambda seconds: done.append(("sleep", seconds)))
  monkeypatch.setattr(interrupts.os, "_exit", leave)
  interrupts.end_after_others(2.0)
  with pytest.raises(SystemExit, match="75"):
    interrupts._leave("a line")
  assert done == [("sleep", 2.0), ("exit", 75)]
  assert capfd.readouterr().err == "a line\n"


def square(number: int) -> int:
  return number * number


def test_processes_that_share_the_work_are_waited_for(ends):
  """Nothing is left of a pool: no process, no semaphore, no line of its own."""
  done = []

  def work():
    for number in staging.in_parallel(square, range(1000), workers=2):
      done.append(number)
      if len(done) == 3:
        interrupted.send(signal.SIGTERM)

  with pytest.raises(interrupts.Preempted, match="75"):
    work()
  assert done == [0, 1, 4]
  assert not ends


@pytest.mark.parametrize("path", COMMANDS, ids=str)
def test_every_command_listens_before_it_imports_anything_large(path):
  _, future, first, *_ = ast.parse((ROOT / path).read_text()).body
  assert future.module == "__future__"
  assert ast.unparse(first.test) == "__name__ == '__main__'", path
  assert "interrupts.install(" in ast.unparse(first)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_command_that_still_imports_ends_in_a_line(number):
  command = [sys.executable, "-m", "rcm_jax.main", "--config=none.py"]
  process = subprocess.Popen(
    command,
    cwd=ROOT,
    stderr=subprocess.PIPE,
    text=True,
    preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),
  )
  while not _caught(process.pid) & 1 << (signal.SIGTERM - 1):
    assert process.poll() is None
    time.sleep(0.001)
  time.sleep(0.05)
  process.send_signal(number)
  _, errors = process.communicate(timeout=60)
  assert process.returncode == CODES[number]
  assert errors == "rcm_jax: stopped on request; run the same command again to go on\n"


def _caught(pid: int) -> int:
  """The signals that a process handles, a bit each."""
  try:
    status = pathlib.Path(f"/proc/{pid}/status").read_text()
  except OSError:
    return 0
  return next((int(x.split()[1], 16) for x in status.splitlines() if x.startswith("SigCgt")), 0)
