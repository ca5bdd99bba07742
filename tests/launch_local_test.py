"""Jobs as processes of this machine: order, places, failures, interruption."""

from __future__ import annotations

import argparse
import dataclasses
import os
from pathlib import Path
import signal
import subprocess
import sys
import textwrap
import time

import pytest

from launch import sweep
from launch.runners import cost, job, local
from tfds_rcm.errors import UserError

FIELDS = {
  "pipeline": "head",
  "seeds": (0,),
  "data.sources": ("rcm_phantom/demo",),
  "data.image_size": None,
  "cnn.width": 0.25,
  "cnn.epochs": 12,
  "head.epochs": 200,
}


@dataclasses.dataclass(frozen=True)
class Stand(job.Job):
  """A job that runs a line of Python with `events` as its file to write to."""

  code: str = ""

  def command(self, args):
    start = f"import os, sys, time; events = open({args.events!r}, 'a', buffering=1);"
    return [sys.executable, "-c", start + self.code]


def stand(name, code, after=None):
  return Stand(name, "", {}, FIELDS, 1, after, code)


def around(name, seconds=0.3):
  return f"events.write('+{name}\\n'); time.sleep({seconds}); events.write('-{name}\\n')"


@pytest.fixture
def args(tmp_path):
  return argparse.Namespace(
    workdir=str(tmp_path / "runs"), at_once=1, on="local", events=str(tmp_path / "events")
  )


def events(args):
  with open(args.events) as file:
    return file.read().split()


def test_two_at_a_time_by_default_on_a_core_each(args, monkeypatch):
  args.at_once = None
  monkeypatch.setattr(local, "num_cores", lambda: 8)
  with_cores = "events.write(str(sorted(os.sched_getaffinity(0))).replace(' ', '') + '\\n');"
  local.run_local([stand(name, f"time.sleep(0.3); {with_cores}") for name in "abcd"], args)
  cores = sorted(os.sched_getaffinity(0))
  half = len(cores) // 2
  shares = {str(part or cores).replace(" ", "") for part in (cores[:half], cores[half:])}
  assert len(events(args)) == 4
  assert set(events(args)) == shares


def test_one_at_a_time_on_one_core(args, monkeypatch):
  args.at_once = None
  monkeypatch.setattr(local, "num_cores", lambda: 1)
  local.run_local([stand(name, around(name, 0)) for name in "abc"], args)
  assert events(args) == ["+a", "-a", "+b", "-b", "+c", "-c"]


def test_at_most_as_many_as_asked_for(args):
  args.at_once = 2
  local.run_local([stand(name, around(name)) for name in "abcd"], args)
  running = most = 0
  for event in events(args):
    running += 1 if event[0] == "+" else -1
    most = max(most, running)
  assert most == 2
  assert len(events(args)) == 8


def test_a_job_starts_after_the_one_it_waits_for(args):
  args.at_once = 3
  first, second = stand("a", around("a")), stand("b", around("b"), after="a")
  local.run_local([first, second, stand("c", around("c", 0))], args)
  order = events(args)
  assert order.index("-a") < order.index("+b")
  assert order.index("+c") < order.index("+b")


def test_a_failure_is_reported_and_stops_nothing_else(args, capsys):
  args.at_once = 2
  bad = stand("bad", "print('what went wrong'); sys.exit(3)")
  with pytest.raises(UserError, match=r"1 of 3 jobs failed: bad; see .*logs") as raised:
    local.run_local([bad, stand("b", around("b"), after="bad"), stand("c", around("c"))], args)
  assert "\n" not in str(raised.value)
  assert {"-b", "-c"} <= set(events(args))
  assert "bad: failed, exit code 3" in capsys.readouterr().out
  with open(f"{args.workdir}/logs/bad.log") as log:
    assert log.read() == "what went wrong\n"


def test_each_place_has_its_gpu(args):
  args.at_once = None
  code = "events.write(os.environ['CUDA_VISIBLE_DEVICES'] + '\\n'); time.sleep(0.5)"
  local.run_local([stand(name, code) for name in "abcd"], args, gpus=["4", "7"])
  assert sorted(events(args)) == ["4", "4", "7", "7"]


@pytest.mark.parametrize("how", [signal.SIGINT, signal.SIGTERM])
def test_an_interrupted_sweep_lets_its_jobs_save(how, args):
  """Each running job gets SIGTERM and is waited for."""
  code = (
    "import signal; signal.signal(signal.SIGTERM, lambda *_: (time.sleep(0.3),"
    "events.write('saved\\n'), sys.exit(0))); events.write('ready\\n'); time.sleep(60)"
  )
  program = textwrap.dedent(f"""
    import argparse, signal, sys
    signal.signal(signal.SIGINT, signal.default_int_handler)  # ignored in a shell's background
    sys.path[:0] = [{os.getcwd()!r}, {os.path.dirname(__file__)!r}]
    from tfds_rcm import interrupts
    interrupts.install("a sweep")
    from launch.runners import dispatch, job
    from launch_local_test import stand
    args = argparse.Namespace(**{{**{vars(args)!r}, "at_once": 2, "dry_run": False}})
    with job.told_in_one_line("a sweep"):
      dispatch.launch([stand(name, {code!r}) for name in "ab"], args)
  """)
  process = subprocess.Popen(
    [sys.executable, "-c", program], stderr=subprocess.PIPE, text=True, start_new_session=True
  )
  deadline = time.monotonic() + 60
  while not os.path.exists(args.events) or len(events(args)) < 2:
    assert process.poll() is None
    assert time.monotonic() < deadline
    time.sleep(0.05)
  os.killpg(process.pid, how)  # as a terminal does; the jobs are asked by the sweep alone
  _, errors = process.communicate(timeout=60)
  assert process.returncode == (130 if how == signal.SIGINT else 75)
  assert errors == (
    "a sweep: stopped on request after 0 of 2 jobs; the same command goes on from there\n"
  )
  assert sorted(events(args)) == ["ready", "ready", "saved", "saved"]


def test_cost_counts_shared_features_once():
  first = stand("a", "")
  second = dataclasses.replace(first, after="a")
  assert cost.seconds(second, "cpu") < cost.seconds(first, "cpu")
  assert cost.line([first, second], "cpu").startswith("2 jobs, 2 trainings, at most 1 in one")


@pytest.mark.parametrize(
  "file", sorted(p.stem for p in Path("configs").glob("[a-z]*_*.py") if p.stem != "depth_prior")
)
def test_every_method_costs_what_it_does_besides_the_cnn(file):
  """Above all `end_to_end`, which trains for minutes what others read from the cache."""
  (found,) = sweep.fold([{"config": f"configs/{file}.py", "seeds": (0, 1, 2)}])
  shared = dataclasses.replace(found, after="another")
  start = cost.seconds(
    dataclasses.replace(shared, fields={**found.fields, "pipeline": "features"}), "cpu"
  )
  assert cost.seconds(shared, "cpu") > start + 1
  assert cost.seconds(found, "cpu") >= cost.seconds(shared, "cpu")
  if file == "end_to_end":
    assert found.members == 3
    (heads,) = sweep.fold(
      [{"config": "configs/toeplitz_d1.py", "head.half_widths": 1, "seeds": (0, 1, 2)}]
    )
    assert cost.seconds(shared, "cpu") > 30 + cost.seconds(
      dataclasses.replace(heads, after="another"), "cpu"
    )


@pytest.mark.parametrize("pipeline", ["head", "cnn", "hames", "kaur"])
def test_more_data_costs_more(pipeline):
  demo = dataclasses.replace(stand("a", ""), fields={**FIELDS, "pipeline": pipeline})
  paper = {**demo.fields, "data.sources": ("rcm_phantom/paper",), "cnn.width": 1.0}
  assert cost.seconds(dataclasses.replace(demo, fields=paper), "cpu") > cost.seconds(demo, "cpu")
