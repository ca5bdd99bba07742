"""The rooms of this house, and which of them may open onto which."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
PACKAGES = ("rcm_jax", "tfds_rcm", "launch", "benchmarks", "configs")
MAX_LINES = 400

ERRORS = "tfds_rcm.errors"
TOP = {
  f"rcm_jax.{top}" for top in ("main", "pipeline", "methods", "classifier", "head_config", "stages")
}
STAGES = {
  f"rcm_jax.{stage}"
  for stage in (
    "cnn",
    "cnn_step",
    "cnn_training",
    "end_to_end",
    "evaluate",
    "export",
    "heads",
    "predict",
  )
}

# Room → (what of ours it may import, and what of that it may not). The longest name that matches
# a module counts; a room may always import itself.
ROOMS = {
  "tfds_rcm": (set(), set()),
  "configs": (set(), set()),
  "launch": ({"rcm_jax", "tfds_rcm", "configs"}, set()),
  "benchmarks": ({"rcm_jax", "tfds_rcm", "configs"}, set()),
  "rcm_jax": ({"tfds_rcm"}, TOP | STAGES),
  "rcm_jax.main": ({"rcm_jax", "tfds_rcm"}, set()),
  "rcm_jax.run.pipeline": ({"rcm_jax", "tfds_rcm"}, {"rcm_jax.main"}),
  "rcm_jax.run.methods": ({"rcm_jax", "tfds_rcm"}, {"rcm_jax.main", "rcm_jax.run.pipeline"}),
  "rcm_jax.run.cnn_stages": (
    {"rcm_jax", "tfds_rcm"},
    {"rcm_jax.main", "rcm_jax.run.pipeline", "rcm_jax.run.methods"},
  ),
  **{stage: ({"rcm_jax", "tfds_rcm"}, TOP | STAGES - {stage}) for stage in STAGES},
  "rcm_jax.cnn.training": (
    {"rcm_jax", "tfds_rcm"},
    TOP | STAGES - {"rcm_jax.cnn.spec", "rcm_jax.cnn.train_step"},
  ),
  "rcm_jax.cnn.train_step": ({"rcm_jax", "tfds_rcm"}, TOP | STAGES - {"rcm_jax.cnn.spec"}),
  "rcm_jax.models": ({"rcm_jax.arrays", "rcm_jax.ops", ERRORS}, set()),
  "rcm_jax.ops": ({"rcm_jax.arrays"}, set()),
  "rcm_jax.decoding.strata": ({"rcm_jax.arrays"}, set()),
  "rcm_jax.evaluation.metrics": ({"rcm_jax.arrays"}, set()),
  "rcm_jax.arrays": (set(), set()),
}
SEES_CONFIGS = TOP | {"configs", "launch"}
READS_TORCH = {"benchmarks", "rcm_jax.cnn.weight_files"}  # where it is installed


def module_name(path: Path) -> str:
  parts = path.relative_to(ROOT).with_suffix("").parts
  return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


MODULES = {
  module_name(path): path
  for package in (*PACKAGES, "tests")
  for path in sorted((ROOT / package).rglob("*.py"))
}


def within(module: str, rooms: set[str]) -> bool:
  return any(f"{module}.".startswith(f"{room}.") for room in rooms)


def imports(source: str) -> set[str]:
  """What a module imports, anywhere in it. `from a import b` counts as a.b."""
  names = set()
  for node in ast.walk(ast.parse(source)):
    if isinstance(node, ast.Import):
      names.update(alias.name for alias in node.names)
    elif isinstance(node, ast.ImportFrom):
      assert node.level == 0, f"line {node.lineno}: a relative import"
      names.update(f"{node.module}.{alias.name}" for alias in node.names)
  return names


def import_faults(module: str, source: str) -> list[str]:
  room = max((room for room in ROOMS if within(module, {room})), key=len)
  allowed, forbidden = ROOMS[room]
  ours = {name for name in imports(source) if within(name, set(PACKAGES))}
  return sorted(n for n in ours if not within(n, allowed | {room}) or within(n, forbidden))


def foreign_faults(module: str, source: str) -> list[str]:
  banned = {"tensorflow", "tf_keras", "pytest", "beartype", "pickle"}
  if not within(module, {"benchmarks"}):
    banned |= {"keras"}
  if not within(module, READS_TORCH):
    banned |= {"torch"}
  if not within(module, SEES_CONFIGS):
    banned |= {"ml_collections"}
  if "__main__" not in source:  # flags belong to programs
    banned |= {"absl.flags", "absl.app"}
  return sorted(name for name in imports(source) if within(name, banned))


@pytest.mark.parametrize("module", [m for m in MODULES if within(m, set(PACKAGES))])
def test_module_imports_only_what_its_room_may(module):
  source = MODULES[module].read_text()
  assert import_faults(module, source) == []
  assert foreign_faults(module, source) == []


def unsafe_calls(source: str) -> list[str]:
  """Where a file that came from elsewhere could run code: pickles in numpy's files, eval, exec."""
  faults = []
  for node in ast.walk(ast.parse(source)):
    if isinstance(node, ast.Call):
      name = ast.unparse(node.func)
      given = {keyword.arg: ast.unparse(keyword.value) for keyword in node.keywords}
      loads = name in ("np.load", "numpy.load") or name.endswith("read_array")
      if name in ("eval", "exec") or (loads and given.get("allow_pickle") != "False"):
        faults.append(f"line {node.lineno}: {name}")
  return faults


@pytest.mark.parametrize("module", [m for m in MODULES if within(m, set(PACKAGES))])
def test_nothing_read_from_a_file_can_run_code(module):
  assert unsafe_calls(MODULES[module].read_text()) == []


@pytest.mark.parametrize(
  "source", ["np.load(path)", "np.load(path, allow_pickle=True)", "eval(text)", "exec(text)"]
)
def test_a_call_that_could_run_code_is_found(source):
  assert unsafe_calls(source)


@pytest.mark.parametrize("module", MODULES)
def test_a_file_holds_one_idea(module):
  assert len(MODULES[module].read_text().splitlines()) <= MAX_LINES


@pytest.mark.parametrize(
  ("module", "source"),
  [
    ("tfds_rcm.stack_io", "from rcm_jax import arrays"),
    ("tfds_rcm.stack_io", "import rcm_jax.arrays"),
    ("rcm_jax.heads.training", "from rcm_jax.cnn import train"),
    ("rcm_jax.heads.training", "def f():\n  from rcm_jax import evaluate"),
    ("rcm_jax.runtime.metric_writer", "from rcm_jax import heads"),
    ("rcm_jax.heads.training", "from rcm_jax import pipeline"),
    ("rcm_jax.run.pipeline", "from rcm_jax import main"),
    ("rcm_jax.ops.gru", "from rcm_jax.models import encoders"),
    ("rcm_jax.evaluation.metrics", "from rcm_jax import decode"),
    ("rcm_jax.arrays", "from rcm_jax.ops import gru"),
    ("rcm_jax.cnn.spec", "from launch import sweep"),
    ("configs.toeplitz_d1", "from rcm_jax import heads"),
  ],
)
def test_an_import_against_the_direction_is_found(module, source):
  assert import_faults(module, source)


@pytest.mark.parametrize(
  ("module", "source"),
  [
    ("rcm_jax.cnn.spec", "import tensorflow as tf"),
    ("rcm_jax.cnn.spec", "import keras"),
    ("rcm_jax.heads.training", "from ml_collections import ConfigDict"),
    ("rcm_jax.heads.training", "from absl import flags"),
    ("tfds_rcm.stack_io", "import pickle"),
  ],
)
def test_a_foreign_import_out_of_place_is_found(module, source):
  assert foreign_faults(module, source)


def test_allowed_imports_pass():
  assert import_faults("rcm_jax.ops.rnn", "from rcm_jax.ops.gru import gru") == []
  assert import_faults("rcm_jax.run.pipeline", "from rcm_jax import arrays, cnn, heads") == []
  assert foreign_faults("benchmarks.peers", "import keras\nimport torch") == []
  assert foreign_faults("rcm_jax.data.slices", "import tensorflow_datasets as tfds") == []
