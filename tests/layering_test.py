"""The rooms of this house, and which of them may open onto which."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
PACKAGES = ("rcm_jax", "tfds_rcm", "launch", "benchmarks", "configs")
MAX_LINES = 400

# The packages of rcm_jax from the top floor down: a room may open onto rooms of the floors below it.
FLOORS = (
  {"cli"},
  {"main", "predict", "predict_study", "evaluate", "export", "validate", "recalibrate"},
  {"run"},
  {"configs"},
  {"exporters", "validation"},
  {"baselines", "inference", "reporting"},
  {"cnn", "heads", "textures"},
  {"evaluation"},
  {"data", "decoding"},
  {"runtime"},
  {"ops"},
  {"arrays"},
  {"anatomy"},
)
# What a room may not see although it lies below: stages know nothing of each other.
APART = {
  "baselines": {"cnn", "heads", "evaluation"},
  "reporting": {"cnn", "heads", "textures", "data"},
  "cnn": {"evaluation", "decoding"},
  "heads": {"evaluation"},
  "textures": {"evaluation"},
  "evaluation": {"data", "ops"},
  "data": {"ops"},
}


def below(room: str) -> set[str]:
  """The rooms of rcm_jax that a room may import, itself included."""
  (floor,) = (n for n, rooms in enumerate(FLOORS) if room in rooms)
  lower = {f"rcm_jax.{name}" for rooms in FLOORS[floor + 1 :] for name in rooms}
  return lower - {f"rcm_jax.{name}" for name in APART.get(room, ())} | {f"rcm_jax.{room}"}


# Room → what of ours it may import. The longest name that matches a module counts.
ROOMS = {
  "tfds_rcm": {"tfds_rcm"},
  "configs": {"rcm_jax.configs"},
  "launch": {"launch", "rcm_jax", "tfds_rcm"},
  "benchmarks": {"benchmarks", "rcm_jax", "tfds_rcm"},
  "rcm_jax": {"rcm_jax", "tfds_rcm"},
  **{
    f"rcm_jax.{room}": below(room) | {"rcm_jax.__version__", "tfds_rcm"}
    for rooms in FLOORS
    for room in rooms
  },
  "rcm_jax.ops": {"rcm_jax.ops", "rcm_jax.arrays"},
  "rcm_jax.decoding": {"rcm_jax.decoding", "rcm_jax.arrays"},
  "rcm_jax.arrays": set(),
  "rcm_jax.configs": {"rcm_jax.configs"},
  "rcm_jax.cli": {
    "rcm_jax.__version__",
    "tfds_rcm.errors",
  },  # it starts the others, and imports none
  "rcm_jax.anatomy": set(),
}
SEES_CONFIGS = {"rcm_jax.main", "rcm_jax.run", "configs", "launch"}
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


def room_of(module: str) -> str:
  return max((room for room in ROOMS if within(module, {room})), key=len)


def import_faults(module: str, source: str) -> list[str]:
  ours = {name for name in imports(source) if within(name, set(PACKAGES))}
  return sorted(name for name in ours if not within(name, ROOMS[room_of(module)]))


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


def circle(modules: dict[str, str]) -> list[str]:
  """Modules that import each other, directly or around a corner; packages' faces do not count."""
  left = {}
  for module, source in modules.items():
    named = {part for name in imports(source) for part in (name, name.rpartition(".")[0])}
    left[module] = named & modules.keys() - {module}
  while free := {module for module, others in left.items() if not others & left.keys()}:
    left = {module: others for module, others in left.items() if module not in free}
  return sorted(left)


def test_no_modules_import_each_other():
  sources = {m: p.read_text() for m, p in MODULES.items() if p.name != "__init__.py"}
  assert circle(sources) == []


def test_a_circle_is_found():
  assert circle({"a.b": "from a import c", "a.c": "from a.b import d", "e": "import a.b"})


def test_every_room_of_the_house_has_its_floor():
  rooms = {module.split(".")[1] for module in MODULES if module.startswith("rcm_jax.")}
  assert rooms == set().union(*FLOORS)


@pytest.mark.parametrize(
  ("module", "source"),
  [
    ("tfds_rcm.stack_io", "from rcm_jax import arrays"),
    ("tfds_rcm.stack_io", "import rcm_jax.arrays"),
    ("rcm_jax.heads.training", "from rcm_jax.cnn.training import train"),
    ("rcm_jax.heads.training", "def f():\n  from rcm_jax.reporting import plots"),
    ("rcm_jax.runtime.metric_writer", "from rcm_jax.heads import training"),
    ("rcm_jax.heads.training", "from rcm_jax.run import pipeline"),
    ("rcm_jax.run.pipeline", "from rcm_jax import main"),
    ("rcm_jax.ops.gru", "from rcm_jax.heads import encoders"),
    ("rcm_jax.decoding.strata", "from rcm_jax.evaluation import metrics"),
    ("rcm_jax.heads.losses", "from rcm_jax.evaluation import metrics"),
    ("rcm_jax.arrays", "from rcm_jax.ops import gru"),
    ("rcm_jax.cnn.training", "from launch import sweep"),
    ("configs.toeplitz_d1", "from rcm_jax.heads import training"),
  ],
)
def test_an_import_against_the_direction_is_found(module, source):
  assert import_faults(module, source)


@pytest.mark.parametrize(
  ("module", "source"),
  [
    ("rcm_jax.cnn.training", "import tensorflow as tf"),
    ("rcm_jax.cnn.training", "import keras"),
    ("rcm_jax.heads.training", "from ml_collections import ConfigDict"),
    ("rcm_jax.heads.training", "from absl import flags"),
    ("tfds_rcm.stack_io", "import pickle"),
  ],
)
def test_a_foreign_import_out_of_place_is_found(module, source):
  assert foreign_faults(module, source)


def test_allowed_imports_pass():
  assert import_faults("rcm_jax.ops.rnn", "from rcm_jax.ops.gru import gru") == []
  assert import_faults("rcm_jax.run.pipeline", "from rcm_jax.cnn import training") == []
  assert foreign_faults("benchmarks.peers", "import keras\nimport torch") == []
  assert foreign_faults("rcm_jax.data.records", "import tensorflow_datasets as tfds") == []
