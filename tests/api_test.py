"""What others may build on: it is there, its examples are true, and importing it costs nothing."""

from __future__ import annotations

import doctest
import importlib.resources
import inspect
from pathlib import Path
import re
import subprocess
import sys

import bundles
import evaluate_test
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import rcm_jax
from rcm_jax.inference import bundle, predictor
from tfds_rcm.errors import UserError

ROOT = Path(__file__).resolve().parent.parent
# Nothing of these may come in with a bare `import rcm_jax`.
_HEAVY = (
  "jax",
  "flax",
  "numpy",
  "tensorflow",
  "tensorflow_datasets",
  "matplotlib",
  "scipy",
  "h5py",
)


@pytest.fixture(scope="module")
def home(tmp_path_factory):
  """Where the examples run: a model, a stack and finished runs."""
  home = tmp_path_factory.mktemp("home")
  bundle.save(home / "runs" / "toeplitz_d1" / "model", bundles.made())
  np.save(home / "stack.npy", bundles.slices(5))
  evaluate_test.run_files(home / "runs")
  return home


def examples():
  """Every example of a public name, of its module's docstring and of its public methods."""
  found = {"rcm_jax": inspect.getdoc(rcm_jax)}
  for name in rcm_jax.__all__:
    thing = getattr(rcm_jax, name)
    found[name] = inspect.getdoc(thing)
    if inspect.isclass(thing):
      members = {n: inspect.getdoc(m) for n, m in vars(thing).items() if not n.startswith("_")}
      found |= {f"{name}.{n}": text for n, text in members.items()}
  return {name: text for name, text in found.items() if text and ">>>" in text}


@pytest.mark.parametrize("name", examples())
def test_examples_are_true(name, home, monkeypatch):
  monkeypatch.chdir(home)
  known = {"rcm_jax": rcm_jax, "jax": jax, "jnp": jnp, "np": np}
  test = doctest.DocTestParser().get_doctest(examples()[name], known, name, None, None)
  told = []
  failed, tried = doctest.DocTestRunner().run(test, out=told.append)
  assert tried
  assert not failed, "".join(told)


@pytest.mark.parametrize("name", [n for n in rcm_jax.__all__ if n not in ("Stack", "UserError")])
def test_every_public_name_has_an_example(name):
  assert any(found.split(".")[0] == name for found in examples())


def test_importing_the_package_imports_none_of_its_libraries():
  """Neither does asking for help. (Processor time: others may hold this machine.)"""
  code = (
    "import sys, time; start = time.process_time(); import rcm_jax; dir(rcm_jax)\n"
    "from rcm_jax import cli; cli.main(['--help'])\n"
    "print(time.process_time() - start, *sys.modules)"
  )
  done = subprocess.run(
    [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True
  )
  seconds, *modules = done.stdout.splitlines()[-1].split()
  assert not set(_HEAVY) & {module.split(".")[0] for module in modules}
  assert float(seconds) < 0.3


def test_the_page_of_the_library_has_every_name_and_no_other():
  shown = re.findall(r"^::: rcm_jax\.(\w+)$", (ROOT / "docs" / "api.md").read_text(), re.M)
  assert sorted(shown) == sorted(rcm_jax.__all__)


def test_the_package_says_what_it_has():
  assert set(rcm_jax.__all__) <= set(dir(rcm_jax))
  assert all(getattr(rcm_jax, name).__doc__ for name in rcm_jax.__all__)
  with pytest.raises(AttributeError, match="no attribute 'toeplitz'"):
    rcm_jax.toeplitz  # noqa: B018


def test_type_checkers_are_told_the_same_names():
  text = (ROOT / "rcm_jax" / "__init__.py").read_text()
  told = {n: m for m, n in re.findall(r"^  from (\S+) import (\w+) as \2$", text, re.M)}
  assert told == rcm_jax._PLACES
  for package in ("rcm_jax", "tfds_rcm"):
    assert importlib.resources.files(package).joinpath("py.typed").is_file()


@pytest.mark.parametrize("kind", [str, Path])
def test_a_model_is_read_from_any_kind_of_path(home, kind):
  assert rcm_jax.load(kind(home / "runs" / "toeplitz_d1")).description.method == "toeplitz_d1"
  with pytest.raises(UserError, match="no model in it"):
    rcm_jax.load(kind(home))


def test_a_stack_brings_its_own_depths_and_pixels():
  model = rcm_jax.Model(bundles.made())
  slices, depths = bundles.slices(4), np.array([0.0, 2.0, 5.0, 9.0])
  found = model.predict(rcm_jax.Stack(slices, depths, 0.5))
  plain = predictor.Predictor(bundles.made()).predict(slices, depths, pixel_um=0.5)
  np.testing.assert_array_equal(found.interpretation.strata, plain.interpretation.strata)
  assert found.boundaries == plain.boundaries
  assert found.warnings == plain.warnings
  with pytest.raises(UserError, match="given beside a Stack"):
    model.predict(rcm_jax.Stack(slices, depths, None), depths)
  with pytest.raises(UserError, match="depth_um: missing"):
    model.predict(slices)


def test_tables_of_two_datasets_are_not_mixed(home, tmp_path):
  one = evaluate_test.run("mine", "whole stack", 0, 1.0)
  for name in ("one", "two"):
    evaluate_test.results.write_run(
      tmp_path / name, {**evaluate_test.DATASET, "name": name}, one, versions={}
    )
  (tmp_path / "half").mkdir()
  (tmp_path / "half" / "results.json").write_text("{}")
  with (
    pytest.warns(UserWarning, match="half: left out"),
    pytest.raises(UserError, match="runs on one, two; choose one"),
  ):
    rcm_jax.tables_of(tmp_path)
  (tmp_path / "half" / "results.json").unlink()
  with pytest.raises(UserError, match="no finished run on 'three'"):
    rcm_jax.tables_of(tmp_path, "three")
  tables = rcm_jax.tables_of(str(tmp_path), "two")
  assert {"table1", "table2", "table3"} <= tables.keys()
  assert tables["table1"]._repr_markdown_() == str(tables["table1"])
  assert "paired_tests" in rcm_jax.tables_of(home / "runs")
