"""`rcm` and its commands, and what `--config=` finds; wheel_test runs them for real."""

from __future__ import annotations

import importlib.util
from pathlib import Path
import runpy
import sys

import pytest

from launch import sweep
from rcm_jax import cli, configs, main
from rcm_jax.run import config_files
from tfds_rcm.errors import UserError

ROOT = Path(__file__).resolve().parent.parent


@pytest.mark.parametrize("name", cli.COMMANDS)
def test_a_command_runs_its_module_with_what_follows(monkeypatch, name):
  ran = []
  monkeypatch.setattr(sys, "argv", ["rcm"])
  monkeypatch.setattr(
    runpy, "run_module", lambda module, **how: ran.append((module, how, sys.argv[1:]))
  )
  assert cli.main([name, "--out=x", "--help"]) == 0
  how = {"run_name": "__main__", "alter_sys": True}
  assert ran == [(cli.COMMANDS[name][0], how, ["--out=x", "--help"])]


def test_every_command_is_a_program():
  specs = {module: importlib.util.find_spec(module) for module, _ in cli.COMMANDS.values()}
  assert None not in specs.values()
  for spec in filter(None, specs.values()):
    assert 'if __name__ == "__main__":' in Path(spec.origin).read_text()


def test_help_names_every_command_on_a_terminal_line(capsys, monkeypatch):
  monkeypatch.setattr(sys, "argv", ["rcm"])
  assert cli.main() == 0
  asked = capsys.readouterr().out
  for name in ("-h", "--help", "help"):
    assert cli.main([name]) == 0
    assert capsys.readouterr().out == asked
  assert all(f"\n  {name} " in asked for name in cli.COMMANDS)
  assert max(map(len, asked.splitlines())) <= 100


def test_an_unknown_command_names_the_nearest(capsys):
  assert cli.main(["predikt", "--help"]) == 1
  assert capsys.readouterr().err == (
    "error: rcm has no command 'predikt'; did you mean 'predict'?\n"
  )


def test_a_configuration_is_a_file_or_a_name_that_ships(monkeypatch, tmp_path):
  monkeypatch.chdir(tmp_path)
  shipped = ROOT / "configs" / "toeplitz_d1.py"
  assert config_files.find("toeplitz_d1") == str(shipped)
  assert config_files.find("toeplitz_d1:paper") == f"{shipped}:paper"
  (tmp_path / "mine.py").write_text("")
  assert config_files.find("mine.py:demo") == "mine.py:demo"
  (tmp_path / "toeplitz_d1").write_text("")
  assert config_files.find("toeplitz_d1") == "toeplitz_d1"  # the user's own file


@pytest.mark.parametrize(
  ("given", "near"), [("toeplitz_d9", "toeplitz_d"), ("configs/hames.py:demo", "hames")]
)
def test_outside_a_checkout_names_are_proposed(monkeypatch, tmp_path, given, near):
  monkeypatch.chdir(tmp_path)
  with pytest.raises(UserError, match=f"no such file; did you mean '{near}"):
    config_files.find(given)


def test_every_name_that_ships_can_be_loaded():
  assert set(configs.names()) == {
    path.stem for path in (ROOT / "configs").glob("*.py") if path.stem != "base"
  }
  assert all(sweep.load(name).pipeline for name in configs.names())


@pytest.mark.parametrize("given", ["--config=hames", "-config=hames", "--config hames"])
def test_the_main_program_finds_a_name_however_it_is_given(given):
  found = main._with_config_file(["main", "--workdir=hames", *given.split()])
  path = ROOT / "configs" / "hames.py"
  expected = given.replace("hames", str(path))
  assert found == ["main", "--workdir=hames", *expected.split()]
