"""Flags of a run: configurations that are not there, and fields that had another name."""

from __future__ import annotations

from main_runs import ROOT
import pytest

from launch import sweep
from rcm_jax import main
from rcm_jax.configs import base
from rcm_jax.run import renamed


@pytest.mark.parametrize(
  ("given", "expected"),
  [
    ("--config.method=x", "--config.name=x"),
    ("-config.head.boundary=zero", "-config.head.edge_mode=zero"),
    ("--config.head.average", "--config.head.ema_decay"),
    ("--config=configs/base.py", "--config=configs/base.py"),
    ("--config.textures.components=8", "--config.textures.components=8"),
    ("--workdir=runs/config.method", "--workdir=runs/config.method"),
  ],
)
def test_an_argument_gets_the_new_name(given, expected):
  assert renamed.argument(given) == expected


def test_a_configuration_of_old_names_becomes_one_of_new_names():
  config = base.get_config()
  config.method, config.model, config.head.average = "mine", "cnn", 0.5
  config.lock()
  assert renamed.modernize(config) == ["model", "method", "head.average"]
  assert (config.name, config.pipeline, config.head.ema_decay) == ("mine", "cnn", 0.5)
  assert renamed.modernize(config) == []
  assert "model" not in config
  assert "method" not in config


def test_every_new_name_is_a_field():
  known = base.get_config()
  for old, new in renamed.RENAMED.items():
    known.update_from_flattened_dict({new: None})
    assert old not in dict(sweep._flatten(known))


def test_a_sweep_knows_old_names():
  (job,) = sweep.fold([{"config": "configs/toeplitz_d1.py", "head.boundary": "renormalize"}])
  assert job.overrides["head.edge_mode"] == "renormalize"


def test_an_unknown_config_names_the_nearest(monkeypatch, capsys):
  monkeypatch.chdir(ROOT)
  with pytest.raises(SystemExit, match="1"):
    main.parse(["main", "--config=configs/toeplit_d1.py:demo"])
  assert capsys.readouterr().err == (
    "rcm_jax: --config=configs/toeplit_d1.py: no such file; did you mean "
    "'configs/toeplitz_d1.py'?\n"
  )
