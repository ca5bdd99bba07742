"""Speed side by side with the peers and with what the machine allows.

python -m benchmarks.run heads|toeplitz|gru|extract|pipeline|loader|prepare|checkpoints [--peers] [--json=FILE]
"""

from __future__ import annotations

import argparse
import importlib
import importlib.metadata
import json
import os
import pathlib
import platform

import jax
from rich.console import Console
from rich.table import Table

from benchmarks import timing
from rcm_jax.runtime import devices
from tfds_rcm import staging

BENCHMARKS = ("heads", "toeplitz", "gru", "extract", "pipeline", "loader", "prepare", "checkpoints")
_LIBRARIES = ("jax", "jaxlib", "flax", "torch", "keras", "onnxruntime")


def main(argv: list[str] | None = None) -> None:
  """Runs one benchmark and prints its table."""
  parser = argparse.ArgumentParser(
    prog="python -m benchmarks.run", description="Speed against peers and the machine's limits."
  )
  parser.add_argument("benchmark", choices=BENCHMARKS)
  parser.add_argument(
    "--peers", action="store_true", help="time other libraries too (requirements-bench.txt)"
  )
  parser.add_argument(
    "--json", type=pathlib.Path, metavar="FILE", help="also write machine and rows here"
  )
  options = parser.parse_args(argv)
  os.environ.setdefault("KERAS_BACKEND", "jax")
  # Without it a copy of 64 MB measures fresh pages, for every implementation alike.
  staging.keep_freed_memory()
  devices.start()
  machine = describe_machine()
  rows = importlib.import_module(f"benchmarks.{options.benchmark}").rows(options.peers)
  show(machine, rows)
  if options.json:
    options.json.write_text(json.dumps({"machine": machine, "rows": rows}, indent=2) + "\n")


def describe_machine() -> dict:
  """What ran, and the two rates that floors are computed from."""
  versions = {}
  for name in _LIBRARIES:
    try:
      versions[name] = importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
      versions[name] = None
  device = jax.devices()[0]
  return {
    "platform": platform.platform(),
    "processor": _processor(),
    "cores": os.cpu_count(),
    "device": device.device_kind,
    "backend": device.platform,
    "matmul_gflops_per_second": round(timing.matmul_flops_per_second() / 1e9, 1),
    "copy_gigabytes_per_second": round(timing.copy_bytes_per_second() / 1e9, 1),
    "versions": versions,
  }


def _processor() -> str:
  try:
    lines = pathlib.Path("/proc/cpuinfo").read_text().splitlines()
  except OSError:
    return platform.processor()
  return next(
    (l.split(":", 1)[1].strip() for l in lines if l.startswith("model name")), platform.processor()
  )


def show(machine: dict, rows: list[dict]) -> None:
  """Prints the machine and one table."""
  console = Console()
  console.print(
    f"{machine['processor']}, {machine['cores']} cores, {machine['device']}: "
    f"{machine['matmul_gflops_per_second']} GFLOP/s matrix product, "
    f"{machine['copy_gigabytes_per_second']} GB/s copy (read + write)"
  )
  for case in dict.fromkeys(r["case"] for r in rows):
    same = [r for r in rows if r["case"] == case]
    ours = next((r["seconds_median"] for r in same if r["implementation"].startswith("ours")), None)
    table = Table("implementation", title=case, title_justify="left")
    for column in ("median", "min", "max", "floor", "of floor", "vs ours"):
      table.add_column(column, justify="right")
    for r in same:
      floor, median = r["floor_seconds"], r["seconds_median"]
      table.add_row(
        r["implementation"],
        *(_seconds(r[f"seconds_{k}"]) for k in ("median", "min", "max")),
        _seconds(floor) if floor else "–",
        f"{floor / median:.0%}" if floor else "–",
        f"{median / ours:.2f}×" if ours else "–",
      )
    console.print(table)


def _seconds(value: float) -> str:
  for unit, scale in (("s", 1), ("ms", 1e3), ("µs", 1e6)):
    if value * scale >= 1 or unit == "µs":
      return f"{value * scale:.3g} {unit}"
  return ""


if __name__ == "__main__":
  main()
