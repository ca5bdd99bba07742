"""Compiles for an NVIDIA H100, which need not be there, every program that a GPU run would start.

python -m benchmarks.gpu_compile [--only=TEXT] [--new] [--out=DIRECTORY] [--card=h100|h200]

It needs JAX's CUDA plugin and no GPU: `make gpu-compile` makes the environment. It prints a table
and, with --out, writes it as compiled.md and compiled.json: what compiles, its memory, the kernels
that it launches, its loops, the types and layouts of its convolutions, what devices exchange. No
time: nothing runs. All of it takes half an hour on two cores; rows of other programs stay in the files,
and with --new only those are compiled that are not there yet.
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
from benchmarks.gpu.program import Program

_HEADER = (
  "| program | GPUs | temporary, MB | kernels a step | turns of loops a step | in CUDA graphs "
  "| convolutions | collectives |\n|---|---|---|---|---|---|---|---|"
)


def main(argv: Sequence[str] | None = None) -> None:
  """Compiles, prints and writes; exit code 1 if a program does not compile."""
  parser = argparse.ArgumentParser(prog="python -m benchmarks.gpu_compile")
  parser.add_argument("--only", default="", help="programs whose name or group contains this")
  parser.add_argument("--new", action="store_true", help="only programs that --out has no row of")
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
  rows = read(options.out, options) if options.out else {}
  if options.new:
    wanted = [p for p in wanted if "error" in rows.get((p.name, p.devices), {"error": "none"})]
  print(_HEADER, flush=True)
  failed = False
  for program in wanted:
    row = examine(program, options.card)
    failed |= "error" in row
    print(line(row), flush=True)
    rows[program.name, program.devices] = row
    if options.out:
      write(options.out, rows, options)
  if failed:
    sys.exit(1)


def examine(program: Program, card: str = "h100") -> dict:
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


def _about(options: argparse.Namespace) -> dict[str, str]:
  return {
    "card": described.CARDS[options.card][0],
    "jax": jax.__version__,
    "precision": options.precision,
  }


def read(directory: pathlib.Path, options: argparse.Namespace) -> dict[tuple[str, int], dict]:
  """The rows of `write` by program and GPUs; none of another card, JAX or precision."""
  try:
    found = json.loads((directory / "compiled.json").read_text())
  except FileNotFoundError:
    return {}
  if {name: found[name] for name in _about(options)} != _about(options):
    return {}
  return {(row["program"], row["gpus"]): row for row in found["programs"]}


def write(
  directory: pathlib.Path, known: dict[tuple[str, int], dict], options: argparse.Namespace
) -> None:
  """Writes both files, whole each time, in the order of the programs."""
  directory.mkdir(parents=True, exist_ok=True)
  about = _about(options)
  order = [(p.name, p.devices) for p in programs.programs()]
  rows = [known[key] for key in order if key in known]
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
