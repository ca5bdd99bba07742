"""The wheel as a user has it: built, installed away from any checkout, and used from data to report."""

from __future__ import annotations

import json
import os
from pathlib import Path
import site
import subprocess
import sys
import venv
import zipfile

import bundles
from main_runs import SMALL
import numpy as np
import pytest

ROOT = Path(__file__).resolve().parent.parent
pytestmark = pytest.mark.slow


def call(*command, **options):
  """Runs a command to a good end; returns what it printed."""
  done = subprocess.run([*map(str, command)], capture_output=True, text=True, **options)
  assert done.returncode == 0, f"{command}: {done.stdout}{done.stderr}"
  return done.stdout


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
  folder = tmp_path_factory.mktemp("wheel")
  pip = (sys.executable, "-m", "pip", "--disable-pip-version-check")
  call(*pip, "wheel", ROOT, "--no-deps", "--no-build-isolation", f"--wheel-dir={folder}")
  (path,) = folder.glob("*.whl")
  return path


@pytest.fixture(scope="module")
def user(tmp_path_factory, wheel):
  """Runs commands of a fresh environment in a folder that knows nothing of the checkout.

  The dependencies are those of the environment that runs the tests.
  """
  home = tmp_path_factory.mktemp("user")
  venv.create(home / "venv")
  python = home / "venv" / "bin" / "python"
  packages = Path(
    call(python, "-c", "import sysconfig; print(sysconfig.get_path('purelib'))").strip()
  )
  lines = [f"import site; site.addsitedir({folder!r})" for folder in site.getsitepackages()]
  (packages / "dependencies.pth").write_text("\n".join(lines))
  pip = (sys.executable, "-m", "pip", "--disable-pip-version-check", "--python", python)
  call(*pip, "install", "--no-deps", "--no-index", wheel)
  env = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
  return lambda program, *rest: call(python.parent / program, *rest, cwd=home, env=env), home


def test_only_the_two_packages_are_installed(wheel):
  names = zipfile.ZipFile(wheel).namelist()
  tops = {name.split("/")[0] for name in names if ".dist-info/" not in name}
  assert tops == {"rcm_jax", "tfds_rcm"}
  held = {path.relative_to(ROOT).as_posix() for top in tops for path in (ROOT / top).rglob("*.*")}
  held |= {f"rcm_jax/configs/{path.name}" for path in (ROOT / "configs").glob("*.py")}
  held = {name for name in held if "__pycache__" not in name}
  assert {name for name in names if ".dist-info/" not in name} == held


def test_the_whole_path_of_a_user(user):
  run, home = user
  where = run(
    "python", "-c", "import rcm_jax, tfds_rcm; print(rcm_jax.__file__, tfds_rcm.__file__)"
  )
  assert all(path.startswith(str(home / "venv")) for path in where.split())
  assert "train" in run("rcm", "--help")

  (dataset,) = SMALL["data.sources"]
  name, _, preset = dataset.partition("/")
  run("rcm", "prepare", name, f"--preset={preset}", "--data_dir=data")
  (home / "mine.py").write_text(
    "from rcm_jax.configs import toeplitz_d1\n\n\n"
    "def get_config(preset='demo'):\n"
    "  config = toeplitz_d1.get_config(preset)\n"
    f"  config.update_from_flattened_dict({SMALL!r})\n"
    "  config.data.data_dir = 'data'\n"
    "  return config\n"
  )
  run("rcm", "train", "--config=mine.py", "--workdir=runs/mine")
  kept = json.loads((home / "runs" / "mine" / "config.json").read_text())
  assert kept["git_revision"] is None
  # The same by the name that ships: all stages are there, and so only the tables are made again.
  small = [f"--config.{key}={value}" for key, value in SMALL.items()]
  by_name = ("--config=toeplitz_d1:demo", "--workdir=runs/shipped", "--config.data.data_dir=data")
  run("rcm", "train", *by_name, *small)

  np.save(home / "stack.npy", bundles.slices(6))
  stack = ("--stack=stack.npy", "--step_um=3", "--pixel_um=2.0")
  run("rcm", "predict", "--checkpoint=runs/mine", *stack, "--out=read")
  said = json.loads((home / "read" / "stack.json").read_text())
  assert len(said["slices"]) == 6
  assert (home / "read" / "stack.html").exists()

  assert "Toeplitz" in run("rcm", "evaluate", "--runs=runs", "--out=tables")
  assert (home / "tables" / "tables.md").exists()
  run("rcm", "export", "--checkpoint=runs/mine", "--format=safetensors", "--out=exported")

  code = (
    "import rcm_jax\n"
    "found = rcm_jax.load('runs/mine').predict(rcm_jax.read_stack('stack.npy', step_um=3, pixel_um=2.0))\n"
    "print(found.interpretation.strata.tolist())"
  )
  strata = [rcm_slice["stratum"] for rcm_slice in said["slices"]]
  names = ("epidermis", "dej", "dermis")
  assert run("python", "-c", code).strip() == str([names.index(stratum) for stratum in strata])
