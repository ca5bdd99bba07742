"""Collects the wheels that a GPU machine without a package index lacks.

python -m benchmarks.gpu.wheels --out=DIRECTORY --have=FREEZE [--all] [--python=3.12] [--most=60]

FREEZE is what `pip freeze` prints there (jax, its CUDA plugin and PyTorch among it). What
`python -m benchmarks.gpu` needs besides, directly or not, is downloaded at the versions of
requirements.txt; with --all, what every command needs. A package without a wheel is built. Run it
where requirements-cuda.txt is installed: that environment knows what asks for what. On the machine:
pip install --no-index --no-deps DIRECTORY/*.whl
"""

from __future__ import annotations

import argparse
from collections.abc import Iterable, Sequence
from importlib import metadata
import pathlib
import re
import subprocess
import sys
import tomllib

from packaging.markers import Marker
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = pathlib.Path(__file__).resolve().parents[2]
# Direct dependencies that `benchmarks.gpu` does not import: users' files, figures, two baselines.
LATER = frozenset({"imagecodecs", "matplotlib", "scikit-learn"})
# Asked for by packages that we use without what they need it for: TFDS reads Parquet by it, 55 MB.
NEVER = frozenset({"pyarrow"})


def main(argv: Sequence[str] | None = None) -> None:
  """Downloads, and says how much it came to."""
  parser = argparse.ArgumentParser(prog="python -m benchmarks.gpu.wheels")
  parser.add_argument("--out", type=pathlib.Path, required=True)
  parser.add_argument(
    "--have", type=pathlib.Path, required=True, help="`pip freeze` of the machine"
  )
  parser.add_argument("--python", default="3.12", help="of the machine")
  parser.add_argument("--all", action="store_true", help="for every command, not the first day's")
  parser.add_argument("--most", type=float, default=60.0, help="MB that may be carried")
  options = parser.parse_args(argv)
  try:
    have = frozen(options.have.read_text())
  except OSError as error:
    sys.exit(f"wheels: --have={options.have}: {error.strerror}; save `pip freeze` there")
  pinned = pins((ROOT / "requirements.txt").read_text(), options.python)
  wanted = [
    f"{name}=={pinned[name]}"
    for name in sorted(needed(roots(everything=options.all), have))
    if name in pinned
  ]
  options.out.mkdir(parents=True, exist_ok=True)
  for requirement in wanted:
    _get(requirement, options.out, options.python)
  found = sorted(options.out.glob("*.whl"))
  total = sum(path.stat().st_size for path in found) / 1e6
  for path in found:
    print(f"{path.stat().st_size / 1e6:8.2f} MB  {path.name}")
  print(f"{total:8.2f} MB in {len(found)} wheels")
  if total > options.most:
    sys.exit(f"wheels: more than --most={options.most:g} MB")


def roots(*, everything: bool) -> set[str]:
  """Direct dependencies in pyproject.toml: all of them, or those of the first day's command."""
  project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
  names = {canonicalize_name(Requirement(text).name) for text in project["dependencies"]}
  return names if everything else names - LATER


def frozen(text: str) -> set[str]:
  """Names in the output of `pip freeze`."""
  names = (re.match(r"[\w.-]+", line) for line in text.splitlines())
  return {canonicalize_name(name[0]) for name in names if name}


def pins(text: str, python: str) -> dict[str, str]:
  """Name → version of a requirements file, for a Python version."""
  found = {}
  for line in text.splitlines():
    line = line.split("#")[0].strip()
    if not line or line.startswith("-"):
      continue
    requirement = Requirement(line)
    if requirement.marker is None or requirement.marker.evaluate({"python_version": python}):
      found[canonicalize_name(requirement.name)] = str(requirement.specifier).removeprefix("==")
  return found


def needed(roots: Iterable[str], have: set[str]) -> set[str]:
  """Roots and all that they ask for, as this environment knows it, but what is there or `NEVER` used."""
  waiting, found = [canonicalize_name(name) for name in roots], set()
  while waiting:
    name = waiting.pop()
    if name in found or name in have or name in NEVER:
      continue
    found.add(name)
    for text in metadata.requires(name) or ():
      requirement = Requirement(text)
      marker: Marker | None = requirement.marker
      if marker is None or marker.evaluate({"extra": ""}):
        waiting.append(canonicalize_name(requirement.name))
  return found


def _get(requirement: str, out: pathlib.Path, python: str) -> None:
  pip = [sys.executable, "-m", "pip", "--quiet", "--disable-pip-version-check"]
  place = ["--no-deps", f"--{{}}={out}", requirement]
  download = [part.format("dest") for part in place]
  known = ["--only-binary=:all:", f"--python-version={python}", "--implementation=cp"]
  tags = [f"--platform=manylinux_2_{minor}_x86_64" for minor in (17, 24, 27, 28, 31, 34)]
  tags += ["--platform=manylinux2014_x86_64", "--platform=any"]
  if subprocess.run([*pip, "download", *known, *tags, *download]).returncode == 0:
    return
  build = [part.format("wheel-dir") for part in place]
  if subprocess.run([*pip, "wheel", *build]).returncode:
    sys.exit(f"wheels: {requirement} can neither be downloaded nor built")


if __name__ == "__main__":
  main()
