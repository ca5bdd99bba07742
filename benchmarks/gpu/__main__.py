"""The first day on a GPU in one command, which may be stopped and started again.

python -m benchmarks.gpu --json=OUT [--minutes=8] [--part=parity|heads|extract|toeplitz|cnn|predict] [--dry]

Every result is a line of JSON, appended to OUT as it comes: the machine first, then a row each. The
most important parts come first. A second start skips the rows that are there, tries again those
that failed or disagreed, and finds the programs compiled, in `xla` beside OUT. A row that fails is
told and passed over; so is a peer that does not answer for three minutes. No row begins after
--minutes; the same command then goes on.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
import json
import os
import pathlib
import sys
import time

# Before JAX is imported: PyTorch needs room beside it on the same card.
os.environ.setdefault("XLA_PYTHON_CLIENT_MEM_FRACTION", "0.4")

import jax

from benchmarks import run
from benchmarks.gpu import parts
from rcm_jax.runtime import devices


def main(argv: Sequence[str] | None = None) -> None:
  """Measures what is not in the file yet; exit code 1 if rows failed, 75 if time was up."""
  parser = argparse.ArgumentParser(prog="python -m benchmarks.gpu")
  parser.add_argument("--json", type=pathlib.Path, required=True, metavar="OUT")
  parser.add_argument("--minutes", type=float, default=8.0, help="after which no row begins")
  parser.add_argument("--part", choices=tuple(parts.PARTS), help="this part alone")
  parser.add_argument("--dry", action="store_true", help="tiny sizes, to see that all of it runs")
  options = parser.parse_args(argv)
  until = time.monotonic() + 60 * options.minutes
  try:
    options.json.parent.mkdir(parents=True, exist_ok=True)
    done = _done(options.json)
  except (OSError, ValueError) as error:
    sys.exit(f"benchmarks.gpu: --json={options.json}: {error}; name another file")
  if not options.dry:
    jax.config.update("jax_compilation_cache_dir", str(options.json.parent.absolute() / "xla"))
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.5)
    devices.start()
    if jax.default_backend() != "gpu":
      sys.exit(
        "benchmarks.gpu: JAX sees no GPU; see docs/gpu.md, or give --dry for a trial on a CPU"
      )
  jax.config.update("jax_default_matmul_precision", "highest")
  if not done:
    _append(options.json, {"machine": {"device": "dry"} if options.dry else run.describe_machine()})
  failed = []
  for part in [options.part] if options.part else parts.PARTS:
    for name, measure in parts.rows(part, dry=options.dry):
      if (part, name) in done:
        continue
      if time.monotonic() > until:
        print("benchmarks.gpu: time is up; the same command goes on from here")
        sys.exit(75)
      row = {"part": part, "name": name}
      started = time.monotonic()
      try:
        row |= measure()
      except Exception as error:  # whatever it is, the next row may still tell something
        row["error"] = f"{type(error).__name__}: {' '.join(str(error).split())[:300]}"
        failed.append(name)
      if not row.get("agrees", True):
        failed.append(f"{name} (disagrees)")
      row["took"] = round(time.monotonic() - started, 1)
      _append(options.json, row)
      print(json.dumps(row), flush=True)
  if failed:
    sys.exit(f"benchmarks.gpu: {len(failed)} rows failed: {', '.join(failed)}")


def _append(path: pathlib.Path, row: dict) -> None:
  with path.open("a") as file:
    file.write(json.dumps(row) + "\n")


def _done(path: pathlib.Path) -> set[tuple[str, str]]:
  """The rows that a file has, but those to be tried again; what a killed run left half written is cut off."""
  if not path.exists():
    return set()
  text = path.read_text()
  whole = text[: text.rfind("\n") + 1]
  if whole != text:
    path.write_text(whole)
  rows = [json.loads(line) for line in whole.splitlines()]
  good = [row for row in rows if "error" not in row and row.get("agrees", True)]
  done = {(row["part"], row["name"]) for row in good if "part" in row}
  return done | ({("", "machine")} if rows else set())


if __name__ == "__main__":
  main()
