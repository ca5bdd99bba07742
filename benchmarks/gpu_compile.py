"""Compiles for an NVIDIA H100, which need not be there, every program that a GPU run would start.

python -m benchmarks.gpu_compile [--only=TEXT] [--out=DIRECTORY] [--card=h100|h200]

It needs JAX's CUDA plugin and no GPU: `make gpu-compile` makes the environment. It prints a table
and, with --out, writes it as compiled.md and compiled.json: what compiles, its memory, the kernels
that it launches, its loops, the types and layouts of its convolutions, what devices exchange. No
time: nothing runs.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
import dataclasses
import json
import os
import pathlib
import sys

os.environ.setdefault("JAX_PLATFORMS", "cpu")  # else the CUDA plugin looks for a driver

import jax

from benchmarks.gpu import described, launches, programs

_HEADER = (
  "| program | GPUs | temporary, MB | kernels a step | turns of loops a step | in CUDA graphs "
  "| convolutions | collectives |\n|---|---|---|---|---|---|---|---|"
)


def main(argv: Sequence[str] | None = None) -> None:
  """Compiles, prints and writes; exit code 1 if a program does not compile."""
  parser = argparse.ArgumentParser(prog="python -m benchmarks.gpu_compile")
  parser.add_argument("--only", default="", help="programs whose name or group contains this")
  parser.add_argument(
    "--out", type=pathlib.Path, help="directory for compiled.md and compiled.json"
  )
  parser.add_argument("--card", choices=tuple(described.CARDS), default="h100")
  parser.add_argument(
    "--precision", default="highest", help="of float32 products, as config.precision"
  )
  options = parser.parse_args(argv)
  reason = described.missing()
  if reason:
    sys.exit(f"gpu_compile: {reason}")
  jax.config.update("jax_default_matmul_precision", options.precision)
  wanted = [p for p in programs.programs() if options.only in f"{p.group} {p.name}"]
  if not wanted:
    sys.exit(f"gpu_compile: --only={options.only}: no program has this in its name")
  print(_HEADER, flush=True)
  rows = []
  for program in wanted:
    rows.append(examine(program, options.card))
    print(line(rows[-1]), flush=True)
    if options.out:
      write(options.out, rows, options)
  if any("error" in row for row in rows):
    sys.exit(1)


def examine(program: programs.Program, card: str = "h100") -> dict:
  """Compiles one program and describes it, or the error."""
  row = {"program": program.name, "group": program.group, "gpus": program.devices}
  try:
    found = described.devices(card, program.devices)
    with described.compiling_for(found) as place:
      compiled = program.lower(place).compile()
  except Exception as error:  # of any of several compilers
    text = " ".join(str(error).split())
    return {**row, "error": f"{type(error).__name__}: {text[:200]}"}
  memory = compiled.memory_analysis()
  seen = launches.read(compiled.as_text())
  return {
    **row,
    "steps": program.steps,
    "temporary_bytes": memory.temp_size_in_bytes,
    "argument_bytes": memory.argument_size_in_bytes,
    "aliased_bytes": memory.alias_size_in_bytes,
    "kernels_a_step": round(seen.kernels / program.steps, 1),
    "turns_a_step": round(seen.turns / program.steps, 1),
    **dataclasses.asdict(seen),
  }


def line(row: dict) -> str:
  """One row of the table."""
  if "error" in row:
    return f"| {row['program']} | {row['gpus']} | {row['error'].replace('|', '/')} |||||| "
  known = [loop for loop in row["loops"] if loop["turns"]]
  graphs = (
    "–" if not row["loops"] else "yes" if all(loop["graph"] for loop in known) else "in parts"
  )
  shown = lambda counts: ", ".join(f"{count} {name}" for name, count in counts.items()) or "–"
  return (
    f"| {row['program']} | {row['gpus']} | {row['temporary_bytes'] / 1e6:.0f} | "
    f"{row['kernels_a_step']:g} | {row['turns_a_step']:g} | {graphs} | "
    f"{shown(row['convolutions'])} | {shown(row['collectives'])} |"
  )


def write(directory: pathlib.Path, rows: list[dict], options: argparse.Namespace) -> None:
  """Writes both files, whole each time."""
  directory.mkdir(parents=True, exist_ok=True)
  about = {
    "card": described.CARDS[options.card][0],
    "jax": jax.__version__,
    "precision": options.precision,
  }
  table = "\n".join([_HEADER, *map(line, rows), ""])
  head = f"Compiled for {about['card']} with jax {about['jax']}; nothing ran.\n\n"
  for name, text in (
    ("compiled.md", head + table),
    ("compiled.json", json.dumps({**about, "programs": rows}, indent=1) + "\n"),
  ):
    partial = directory / f".{name}"
    partial.write_text(text)
    partial.replace(directory / name)


if __name__ == "__main__":
  main()
