"""Time and storage of each stage at 1, 4 and 16 times the data: python -m benchmarks.stages.

Runs `rcm_jax.main` on small phantoms, each in a process and with a cache of its own but with the
programs of a first run compiled, and prints one line a stage and size. Heads are compiled anew for
every number of stacks, which their time contains.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
import json
import pathlib
import re
import shutil
import subprocess
import sys
import tempfile
import time

STACKS = (4, 1, 1)  # training, validation, test
TIMES = (1, 4, 16)
FIELDS = {
  "cnn.width": 0.0625,
  "cnn.epochs": 2,
  "head.epochs": 20,
  "seeds": (0,),
  "head.half_widths": (1,),
}
STAGES = ("phantom", "decode", "train_cnn", "extract", "train_heads")


def measure(times: int, folder: pathlib.Path, compiled: pathlib.Path | None) -> dict:
  """Returns slices, seconds and bytes by stage of one run."""
  counts = ",".join(str(times * count) for count in STACKS)
  source = f"rcm_phantom/demo+stacks={counts}+size_px=80+pixel_um=2.0"
  cache, data = folder / "cache", folder / "data"
  if compiled is not None:
    shutil.copytree(compiled, cache / "xla")
  command = [
    sys.executable,
    "-m",
    "rcm_jax.main",
    "--config=configs/toeplitz_d1.py",
    f"--workdir={folder / 'run'}",
    f"--cache_dir={cache}",
    f"--config.data.data_dir={data}",
    f"--config.data.sources=('{source}',)",
    *(f"--config.{name}={value}" for name, value in FIELDS.items()),
  ]
  started = time.perf_counter()
  done = subprocess.run(command, capture_output=True, text=True, check=True)
  whole = time.perf_counter() - started
  told = re.findall(r"^(\S+): ([\d.]+) s$", done.stderr, re.MULTILINE)
  spent = lambda stage: sum(float(seconds) for name, seconds in told if name == stage)
  seconds = {stage: spent(stage) for stage in STAGES[1:]} | {"phantom": spent(source)}
  size = lambda path: sum(p.stat().st_size for p in path.rglob("*") if p.is_file())
  stored = {stage: sum(map(size, cache.glob(f"{stage}-*"))) for stage in STAGES[1:]}
  stored["phantom"] = size(data)
  slices = json.loads((folder / "run/results.json").read_text())["dataset"]["slices"]
  return {"times": times, "slices": slices, "seconds": seconds, "bytes": stored, "whole": whole}


def main(argv: Sequence[str] | None = None) -> None:
  """Measures all sizes and prints them."""
  parser = argparse.ArgumentParser(
    prog="python -m benchmarks.stages", description=__doc__.split("\n")[0]
  )
  parser.add_argument("--json", type=pathlib.Path, metavar="FILE", help="also write rows here")
  parser.add_argument("--times", type=int, nargs="*", default=TIMES, help="of the data")
  parser.add_argument(
    "--compiled", type=pathlib.Path, metavar="FOLDER", help="keep compiled programs here"
  )
  options = parser.parse_args(argv)
  rows = []
  with tempfile.TemporaryDirectory() as home:
    home = pathlib.Path(home)
    compiled = options.compiled or home / "compiling" / "cache" / "xla"
    if not compiled.exists():
      measure(TIMES[0], home / "compiling", None)
      if options.compiled:
        shutil.copytree(home / "compiling" / "cache" / "xla", options.compiled)
    for times in options.times:
      rows.append(measure(times, home / f"measured{times}", compiled))
      found = rows[-1]
      print(f"{times}×: {sum(found['slices'].values())} slices, {found['whole']:.1f} s in all")
      for stage in STAGES:
        print(
          f"  {stage}: {found['seconds'][stage]:.1f} s, {found['bytes'][stage] / 1e6:.2f} MB",
          flush=True,
        )
  if options.json:
    options.json.write_text(json.dumps(rows, indent=2) + "\n")


if __name__ == "__main__":
  main()
