"""The notebooks run from top to bottom, on one very small run, and are kept without outputs."""

from __future__ import annotations

import os
from pathlib import Path

from main_runs import SMALL
import nbclient
import nbformat
import pytest

from launch import sweep
from rcm_jax.run import pipeline

ROOT = Path(__file__).resolve().parent.parent
NOTEBOOKS = sorted((ROOT / "notebooks").glob("*.ipynb"))
# One stack a patient: the paired test needs some patients.
STACKS = "rcm_phantom/demo+stacks=4,3,6+stacks_per_patient=1,1+size_px=80+pixel_um=2.0"
LIMIT_S = 600  # a cell; others may hold this machine


@pytest.fixture(scope="module")
def home(tmp_path_factory):
  """A checkout's `runs`, as notebooks/README.md makes it."""
  home = tmp_path_factory.mktemp("home")
  for name in ("toeplitz_d1", "features"):
    config = sweep.load(name)
    config.update_from_flattened_dict(SMALL | {"data.sources": (STACKS,)})
    config.data.data_dir = str(home / "runs" / "data")
    pipeline.run(config, home / "runs" / name, home / "runs" / "cache")
  (home / "notebooks").mkdir()
  return home


@pytest.mark.slow
@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_a_notebook_runs(path, home, monkeypatch):
  monkeypatch.setenv("PYTHONPATH", f"{ROOT}{os.pathsep}{os.environ.get('PYTHONPATH', '')}")
  monkeypatch.delenv("MPLBACKEND", raising=False)  # figures go into the notebook
  notebook = nbformat.read(path, as_version=4)
  where = {"metadata": {"path": str(home / "notebooks")}}
  done = nbclient.NotebookClient(notebook, timeout=LIMIT_S, resources=where).execute()
  shown = [output for cell in done.cells for output in cell.get("outputs", ())]
  assert any("image/png" in output.get("data", ()) for output in shown)
  told = "".join(output["text"] for output in shown if output.get("name") == "stderr")
  assert "Warning" not in told, told


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_a_notebook_is_kept_without_outputs(path):
  notebook = nbformat.read(path, as_version=4)
  nbformat.validate(notebook)
  for cell in notebook.cells:
    assert not cell.get("outputs")
    assert cell.get("execution_count") is None
