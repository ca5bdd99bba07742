"""Combinators, folding into programs, and what a sweep refuses."""

from __future__ import annotations

import itertools
from pathlib import Path
import random
import shlex

from absl import flags
from ml_collections import config_flags
import pytest

from launch import sweep
from launch.runners import job as job_lib
from tfds_rcm.errors import UserError

CONFIG = "configs/toeplitz_d1.py:demo"


@pytest.fixture(autouse=True)
def _at_the_root(monkeypatch):
  monkeypatch.chdir(Path(__file__).resolve().parent.parent)


def expand(job: job_lib.Job) -> list[tuple]:
  """A job's trainings: its architecture, and one value of each folded field."""
  rest = tuple((n, v) for n, v in job.fields.items() if n not in sweep.FOLDED and n != "name")
  return [(*rest, *values) for values in itertools.product(*(job.fields[n] for n in sweep.FOLDED))]


def test_grid_is_every_combination():
  points = sweep.grid({"a": [1, 2, 3], "b": "xy"})
  assert [(p["a"], p["b"]) for p in points] == list(itertools.product([1, 2, 3], "xy"))


def test_product_of_sweeps_is_the_grid_of_their_fields():
  a, b = sweep.grid({"a": [1, 2]}), sweep.grid({"b": [3, 4, 5]})
  assert sweep.product(a, b) == sweep.grid({"a": [1, 2], "b": [3, 4, 5]})
  assert sweep.product(a, [{}]) == sweep.product([{}], a) == a
  assert sweep.product(a, [{"a": 7}]) == [{"a": 7}, {"a": 7}]


def test_zip_goes_in_step_and_refuses_unequal_lengths():
  a, b = sweep.grid({"a": [1, 2]}), sweep.grid({"b": [3, 4]})
  assert sweep.zip(a, b) == [{"a": 1, "b": 3}, {"a": 2, "b": 4}]
  with pytest.raises(UserError, match="2, 3 points"):
    sweep.zip(a, sweep.grid({"b": [3, 4, 5]}))


def test_chain_keeps_order():
  a, b = sweep.grid({"a": [1, 2]}), sweep.grid({"b": [3]})
  assert sweep.chain(a, b) == [*a, *b]


@pytest.mark.parametrize("seed", range(10))
def test_fold_trains_each_point_once(seed):
  """Any set of points, repeated and overlapping ones among them."""
  draw = random.Random(seed)
  fields = {
    "config": [CONFIG],
    "seeds": [0, 1, (1, 2)],
    "head.half_widths": [0, 1, (0, 3)],
    "head.l1s": [0.05, 0.1],
    "head.hidden": [32, 64],
  }
  points = draw.choices(sweep.grid(fields), k=draw.randrange(1, 30))
  folded = sweep.fold(points)
  trained = [training for job in folded for training in expand(job)]
  wanted = {training for point in points for job in sweep.fold([point]) for training in expand(job)}
  assert len(trained) == len(set(trained))
  assert set(trained) == wanted
  assert len({job.name for job in folded}) == len(folded)
  assert sum(job.members for job in folded) == len(trained)


def test_a_full_grid_folds_into_one_job_an_architecture():
  folded = sweep.fold(
    sweep.grid(
      {
        "config": [CONFIG],
        "seeds": range(3),
        "head.half_widths": [0, 1, 2, 3, 5, 7],
        "head.learning_rates": [1e-3, 3e-3],
        "head.l1s": [0.05, 1],
        "head.dropouts": [0.1, 0.2],
        "head.hidden": [32, 64],
      }
    )
  )
  assert [job.members for job in folded] == [3 * 6 * 2 * 2 * 2] * 2
  assert folded[0].fields["head.l1s"] == (0.05, 1.0)


def test_configs_that_differ_only_in_half_width_fold(tmp_path):
  text = Path("configs/toeplitz_d1.py").read_text()
  other = tmp_path / "toeplitz_d4.py"
  other.write_text(text.replace("(0, 1)", "(4,)").replace("toeplitz_d1", "toeplitz_d4"))
  (job,) = sweep.fold(sweep.grid({"config": [CONFIG, f"{other}:demo"]}))
  assert job.fields["head.half_widths"] == (0, 1, 4)


def test_features_are_made_by_the_quickest_job_that_needs_them():
  folded = sweep.fold(
    sweep.grid(
      {
        "config": [CONFIG],
        "cnn.width": [0.25, 0.5],
        "head.epochs": [200, 60],
        "head.l1s": [0.1, 0.2],
      }
    )
  )
  made = [job for job in folded if job.after is None]
  assert folded[:2] == made  # first, because others wait for them
  assert [(job.fields["cnn.width"], job.fields["head.epochs"]) for job in made] == [
    (0.25, 60),
    (0.5, 60),
  ]
  for job in folded[2:]:
    assert job.after == made[[0.25, 0.5].index(job.fields["cnn.width"])].name


def test_rows_of_different_jobs_have_different_methods():
  points = sweep.zip(
    sweep.grid({"config": [CONFIG] * 3}),
    sweep.grid({"head.l1s": [0.1, 0.2, 0.05]}),
    sweep.grid({"head.dropouts": [0.2, 0.3, 0.1]}),
  )
  folded = sweep.fold(points)
  assert len({job.fields["name"] for job in folded}) == len(folded) == 3
  assert folded[2].fields["name"] == "toeplitz_d1"  # nothing changed, nothing added


def test_a_job_keeps_its_name_when_its_sweep_grows():
  small = sweep.fold(sweep.grid({"config": [CONFIG], "head.hidden": [32]}))
  large = sweep.fold(sweep.grid({"config": [CONFIG], "head.hidden": [16, 32, 64]}))
  assert small[0].name in {job.name for job in large}


@pytest.mark.parametrize(
  ("point", "words"),
  [
    ({"config": CONFIG, "head.hiden": 3}, ["head.hiden", "'head.hidden'"]),
    ({"config": CONFIG, "seed": 3}, ["'seed'", "'seeds'"]),
    ({"config": CONFIG, "head.hidden": "many"}, ["head.hidden", "64", "'many'"]),
    ({"config": CONFIG, "head.l1s": "much"}, ["head.l1s", "'much'"]),
    ({"config": CONFIG, "seeds": 0.5}, ["seeds", "0.5"]),
    ({"config": CONFIG, "seeds": ()}, ["seeds"]),
    ({"config": "configs/toeplitz_d11.py"}, ["toeplitz_d11.py", "'configs/toeplitz_d1.py'"]),
    ({"config": "configs/toeplitz_d1.py:papr"}, ["papr", "paper"]),
    ({"head.hidden": 3}, ["config"]),
  ],
)
def test_a_bad_point_is_told_in_one_line(point, words):
  with pytest.raises(UserError) as raised:
    sweep.fold([point])
  text = str(raised.value)
  assert "\n" not in text
  for word in words:
    assert word in text


def test_a_dry_run_shows_cost_and_commands_and_runs_nothing(tmp_path, capsys):
  workdir = tmp_path / "runs"
  options = ["--grid", "head.hidden=32,64", "--grid", "seeds=0,1", "--zip", "head.cell=gru,lstm"]
  options += ["--zip", "head.dropouts=0.2,0.3", "--grid", "head.window=3", "--dry-run"]
  sweep.main([f"--config={CONFIG}", f"--workdir={workdir}", "--data_dir=some where", *options])
  cost_line, *commands = capsys.readouterr().out.splitlines()
  assert cost_line.startswith("4 jobs, 16 trainings, at most 4 in one program; roughly")
  assert len(commands) == 4
  assert not workdir.exists()

  # What main reads from these command lines is what the sweep meant.
  points = sweep.product(
    sweep.grid({"config": [CONFIG]}),
    sweep.zip(
      sweep.grid({"head.cell": ["gru", "lstm"]}), sweep.grid({"head.dropouts": [0.2, 0.3]})
    ),
    sweep.grid({"head.hidden": [32, 64], "seeds": [0, 1], "head.window": [3]}),
  )
  for command, job in zip(commands, sweep.fold(points), strict=True):
    values = flags.FlagValues()
    argv = shlex.split(command, comments=True)[2:]
    config = config_flags.DEFINE_config_file("config", flag_values=values, sys_argv=argv)
    flags.DEFINE_string("workdir", None, "", flag_values=values)
    flags.DEFINE_string("cache_dir", None, "", flag_values=values)
    values(argv)
    read = dict(sweep._flatten(config.value))
    assert read == {**job.fields, "data.data_dir": "some where"}
    assert values["workdir"].value == str(workdir / job.name)


def test_a_mistake_on_the_command_line_exits_with_one_line(tmp_path, capsys):
  with pytest.raises(SystemExit, match="1"):
    sweep.main([f"--config={CONFIG}", f"--workdir={tmp_path}", "--grid", "head.hiden=1"])
  assert capsys.readouterr().err.count("\n") == 1


def test_a_sweep_file(tmp_path, capsys):
  file = tmp_path / "mine.py"
  file.write_text(
    "from launch.sweep import chain, grid\n"
    "def get_sweep():\n"
    "  return chain(grid({'head.hidden': [8, 16]}), grid({'head.cell': ['rnn']}))\n"
  )
  options = [f"--config={CONFIG}", f"--sweep={file}", f"--workdir={tmp_path / 'x'}", "--dry-run"]
  sweep.main(options)
  assert capsys.readouterr().out.startswith("3 jobs, 18 trainings")
