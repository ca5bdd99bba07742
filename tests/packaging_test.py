"""pyproject.toml, the pinned requirements and the imports of the code tell one story."""

from __future__ import annotations

import ast
from importlib import metadata
from pathlib import Path
import re
import sys
import tomllib

from packaging.markers import Marker
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
import pytest

ROOT = Path(__file__).resolve().parent.parent
PACKAGES = ("rcm_jax", "tfds_rcm", "launch", "benchmarks", "configs")
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
EXTRAS = PROJECT["optional-dependencies"]


HERE = f"{sys.version_info.major}.{sys.version_info.minor}"
PYTHONS = ("3.11", "3.12", "3.13")


def pins(filename: str, python: str = HERE) -> dict[str, str]:
  found = {}
  for line in (ROOT / filename).read_text().splitlines():
    line = line.split("#")[0].strip()
    if line.startswith("-r "):
      found |= pins(line[3:], python)
    elif line:
      name, version, marker = re.fullmatch(
        r"([\w.-]+)(?:\[\w+\])?==([\w.]+)(?:\s*;(.*))?", line
      ).groups()
      if not marker or Marker(marker).evaluate({"python_version": python}):
        name = canonicalize_name(name)
        assert found.get(name, version) == version, f"{filename}: two of {name} on Python {python}"
        found[name] = version
  return found


@pytest.mark.parametrize("python", PYTHONS)
@pytest.mark.parametrize(
  ("ranges", "filename"),
  [
    (PROJECT["dependencies"], "requirements.txt"),
    (EXTRAS["dev"], "requirements-dev.txt"),
    (EXTRAS["cuda13"], "requirements-cuda.txt"),
    (EXTRAS["bench"], "requirements-bench.txt"),
    (EXTRAS["docs"], "requirements-docs.txt"),
    (
      EXTRAS["label"] + EXTRAS["slurm"] + EXTRAS["onnx"] + EXTRAS["notebooks"],
      "requirements-dev.txt",
    ),
  ],
)
def test_every_dependency_is_pinned_within_its_range(ranges, filename, python):
  pinned = pins(filename, python)
  for requirement in map(Requirement, ranges):
    version = pinned.get(canonicalize_name(requirement.name))
    assert version is not None, f"{requirement.name} is not in {filename}"
    assert requirement.specifier.contains(version), f"{requirement} excludes {version}"


@pytest.mark.parametrize("filename", ["requirements-bench.txt", "requirements-docs.txt"])
def test_environments_share_their_versions(filename):
  """So that what is installed for one may be added to the other."""
  known, more = pins("requirements-dev.txt"), pins(filename)
  assert {name: known[name] for name in known.keys() & more.keys()} == {
    name: more[name] for name in known.keys() & more.keys()
  }


def test_a_package_has_one_range_in_all_extras():
  ranges = {}
  for requirement in map(Requirement, [r for extra in EXTRAS.values() for r in extra]):
    ranges.setdefault(canonicalize_name(requirement.name), set()).add(str(requirement.specifier))
  ranges.pop("jax")  # the dependency has its range
  assert {name: found for name, found in ranges.items() if len(found) > 1} == {}


@pytest.mark.parametrize("python", PYTHONS)
def test_jax_and_its_plugins_are_of_one_version(python):
  pinned = pins("requirements-cuda.txt", python)
  names = ("jax", "jaxlib", "jax-cuda13-pjrt", "jax-cuda13-plugin")
  assert len({pinned[name] for name in names}) == 1


def test_pins_are_complete():
  """Nothing that a pinned package needs is left to the day of the installation."""
  pinned = pins("requirements-dev.txt")
  missing = set()
  for name in pinned:
    for text in metadata.requires(name) or ():
      requirement = Requirement(text)
      needed = requirement.marker is None or requirement.marker.evaluate({"extra": ""})
      if needed and canonicalize_name(requirement.name) not in pinned:
        missing.add(f"{requirement.name} (for {name})")
  assert not missing


def test_every_import_is_a_declared_dependency():
  declared = {
    canonicalize_name(Requirement(text).name)
    for texts in (PROJECT["dependencies"], *EXTRAS.values())
    for text in texts
  }
  owners = metadata.packages_distributions()
  undeclared = set()
  for package in PACKAGES:
    for path in (ROOT / package).rglob("*.py"):
      for node in ast.walk(ast.parse(path.read_text())):
        names = [a.name for a in node.names] if isinstance(node, ast.Import) else []
        names += [node.module] if isinstance(node, ast.ImportFrom) and node.module else []
        for name in {name.split(".")[0] for name in names} - set(PACKAGES):
          if name in sys.stdlib_module_names:
            continue
          dists = {canonicalize_name(dist) for dist in owners.get(name, [name])}
          if not dists & declared:
            undeclared.add(f"{name} in {path.relative_to(ROOT)}")
  assert not undeclared
