"""All stacks of a study read by a trained model, by one process or by many machines, into one table.

    python -m rcm_jax.predict_study --checkpoint=runs/toeplitz_d1 --source=STUDY --out=DIR [--share=3/16]

STUDY has a manifest.csv (docs/data.md; labels are not looked at). Each stack leaves its JSON, CSV and report in
DIR/stacks, as `rcm_jax.predict` writes them, and is not read again when the command is repeated. With
`--share=I/N` a process reads every N-th stack; in a job array of Slurm that is its task's share if
nothing else is said. Whoever finds all stacks read writes DIR/stacks.csv, one row a stack.
"""

from __future__ import annotations

if __name__ == "__main__":  # before what takes seconds to import
  from tfds_rcm import interrupts

  interrupts.install("rcm_jax.predict_study")

import argparse
from collections.abc import Mapping, Sequence
import csv
import hashlib
import io
import json
import os
import pathlib
import re
import sys
from typing import Any, NamedTuple

from rcm_jax.inference import bundle as bundle_lib
from rcm_jax.inference import stack_files
from rcm_jax.inference.description import RESEARCH_USE
from rcm_jax.inference.from_disk import read_stack
from rcm_jax.inference.predictor import Predictor
from rcm_jax.runtime import files
from tfds_rcm import locks
from tfds_rcm.errors import UserError
from tfds_rcm.labelling import stacks as stacks_lib
from tfds_rcm.labelling.stacks import StudyStack
from tfds_rcm.study import manifest as manifest_lib

TABLE = "stacks.csv"
_MODEL, _STACKS, _FAULT = "model.json", "stacks", ".error.txt"
_MOST_LETTERS = 100  # of a stack's name in a file's


class Found(NamedTuple):
  """How far a study is.

  Attributes:
    stacks: in all.
    read: of these.
    faults: stacks that could not be read.
  """

  stacks: int
  read: int
  faults: int


def run(
  checkpoint: pathlib.Path,
  source: pathlib.Path,
  out: pathlib.Path,
  *,
  manifest: pathlib.Path | None = None,
  share: tuple[int, int] = (1, 1),
  **options: Any,
) -> Found:
  """Reads a share of a study's stacks; a bad one does not stop the others.

  Args:
    checkpoint: a bundle or a run's work directory.
    source: the study's folder.
    out: gets `stacks/`, and `stacks.csv` once all shares are done.
    manifest: the CSV of the stacks; the one below `source` if None.
    share: (I, N), which of how many.
    options: of `stack_io.open_stack`, for all stacks; what the manifest says comes first.

  Returns:
    How far all shares together are; the table is written where nothing is left.

  Raises:
    UserError: there is no model or no manifest, or `out` has another model's answers.
    OSError: `out` cannot be written.
  """
  given = {name: options.pop(name, None) for name in ("step_um", "pixel_um")}
  stacks = stacks_lib.listed(manifest or manifest_lib.find_manifest(source), **given)
  folder = out / _STACKS
  folder.mkdir(parents=True, exist_ok=True)
  _claim(out, checkpoint)
  index, count = share
  own = stacks[index - 1 :: count]
  waiting = [stack for stack in own if not (folder / f"{name_of(stack)}.json").exists()]
  if waiting:
    predictor = Predictor(bundle_lib.load(checkpoint))
  for number, stack in enumerate(waiting, len(own) - len(waiting) + 1):
    name = name_of(stack)
    fault = folder / f"{name}{_FAULT}"
    try:
      result, slices = read_stack(
        predictor,
        stack.path,
        stack_id=name,
        step_um=stack.step_um,
        pixel_um=stack.pixel_um,
        **options,
      )
    except UserError as error:
      files.write_text(fault, f"{error}\n")
      print(f"{number} of {len(own)}: error: {error}", file=sys.stderr, flush=True)
      continue
    stack_files.write(folder, result, slices)
    fault.unlink(missing_ok=True)
    print(f"{number} of {len(own)}: {stack.stack_id}", flush=True)
  there = lambda stack, end: (folder / f"{name_of(stack)}{end}").exists()
  read = [there(stack, ".json") for stack in stacks]
  faults = sum(there(stack, _FAULT) for stack, known in zip(stacks, read) if not known)
  found = Found(len(stacks), sum(read), faults)
  if found.read + found.faults == found.stacks:
    files.write_text(out / TABLE, table(folder, stacks))
  return found


def name_of(stack: StudyStack) -> str:
  """Returns the name of a stack's files: its stack_id where that is safe in any file system."""
  safe = re.sub(r"[^A-Za-z0-9_.-]+", "_", stack.stack_id).strip("._-")[:_MOST_LETTERS]
  # Two names may differ in their capitals alone, which not all file systems tell apart.
  if safe == stack.stack_id == safe.lower():
    return safe
  digits = hashlib.sha256(os.fsencode(stack.stack_id)).hexdigest()[:8]
  return f"{safe}-{digits}" if safe else digits


def table(folder: pathlib.Path, stacks: Sequence[StudyStack]) -> str:
  """Returns one row a stack as CSV, in the order of the manifest.

  Raises:
    UserError: a stack's JSON is damaged.
  """
  rows = [_row(folder, stack) for stack in stacks]
  columns = dict.fromkeys(name for row in rows for name in row)
  last = ("warnings", "error", "file")
  text = io.StringIO()
  writer = csv.DictWriter(
    text, [*(c for c in columns if c not in last), *last], restval="", lineterminator="\n"
  )
  writer.writeheader()
  writer.writerows(rows)
  return text.getvalue()


def _row(folder: pathlib.Path, stack: StudyStack) -> dict[str, Any]:
  row = {"stack_id": stack.stack_id, "patient_id": stack.patient_id}
  path = folder / f"{name_of(stack)}.json"
  if not path.exists():
    fault = path.with_name(f"{name_of(stack)}{_FAULT}")
    return {**row, "error": fault.read_text(encoding="utf-8").strip(), "file": ""}
  try:
    found = json.loads(path.read_text(encoding="utf-8"))
    depths = [row["depth_um"] for row in found["slices"]]
    row |= {"slices": len(depths), "first_um": depths[0], "last_um": depths[-1]}
    for boundary in found["boundaries"]:
      for end in ("depth_um", "low_um", "high_um", "read_by_eye"):
        row[f"{boundary['name']}_{end}"] = _plain(boundary[end])
    for thickness in found["thickness"]:
      for end in ("thickness_um", "low_um", "high_um"):
        row[
          f"{thickness['stratum']}_thickness_{end}".replace("thickness_thickness", "thickness")
        ] = _plain(thickness[end])
    codes = dict.fromkeys(warning["code"] for warning in found["warnings"])
    return {**row, "warnings": " ".join(codes), "error": "", "file": f"{_STACKS}/{path.name}"}
  except (ValueError, KeyError, TypeError, IndexError) as error:
    raise UserError(
      f"{path}: damaged ({error!r}); remove it, and run the same command again"
    ) from error


def _plain(value: Any) -> Any:
  if value is None:
    return ""
  return value if isinstance(value, bool) else f"{value:.6g}"


def _claim(out: pathlib.Path, checkpoint: pathlib.Path) -> None:
  """Notes whose answers lie here, or refuses those of another model."""
  mine = files.folder_digest(bundle_lib.find(checkpoint))
  path = out / _MODEL
  with locks.held(out / ".lock", wait=True):
    if not path.exists():
      files.write_text(path, json.dumps({"digest": mine, "checkpoint": str(checkpoint)}) + "\n")
      return
    try:
      theirs: Mapping[str, Any] = json.loads(path.read_text(encoding="utf-8"))
      known = theirs["digest"], theirs["checkpoint"]
    except (ValueError, KeyError, TypeError) as error:
      raise UserError(f"{path}: damaged; choose another --out") from error
  if known[0] != mine:
    raise UserError(f"{out}: has answers of another model, {known[1]}; choose another --out")


def _share(text: str) -> tuple[int, int]:
  index, _, count = text.partition("/")
  share = int(index), int(count)
  if not 1 <= share[0] <= share[1]:
    raise ValueError(text)
  return share


def default_share(environment: Mapping[str, str]) -> tuple[int, int]:
  """Returns the share of a task in a job array of Slurm, else everything."""
  try:
    task, first, step, count = (
      int(environment[f"SLURM_ARRAY_TASK_{name}"]) for name in ("ID", "MIN", "STEP", "COUNT")
    )
    place = (task - first) // step + 1
  except (KeyError, ValueError, ZeroDivisionError):
    return 1, 1
  # An array such as 1,5,6 tells too little.
  if not 1 <= place <= count or first + step * (count - 1) != int(
    environment.get("SLURM_ARRAY_TASK_MAX", -1)
  ):
    raise UserError("SLURM_ARRAY_TASK_ID: the array is no plain range; say --share=I/N")
  return place, count


def main(argv: Sequence[str] | None = None) -> int:
  """Runs the command line; returns the exit code."""
  parser = argparse.ArgumentParser(
    prog="python -m rcm_jax.predict_study",
    description=f"Read all stacks of a study with a trained model. {RESEARCH_USE}",
  )
  option = parser.add_argument
  option("--checkpoint", type=pathlib.Path, required=True, help="work directory of a run")
  option("--source", type=pathlib.Path, required=True, help="the study's folder")
  option("--out", type=pathlib.Path, required=True, help="folder for stacks/ and stacks.csv")
  option(
    "--manifest", type=pathlib.Path, help="CSV of the stacks (default: manifest.csv in source)"
  )
  option("--share", type=_share, metavar="I/N", help="which of how many processes this one is")
  option("--step_um", type=float, help="µm between slices, where nothing else tells")
  option("--pixel_um", type=float, help="µm a pixel, where nothing else tells")
  args = parser.parse_args(argv)
  try:
    share = args.share or default_share(os.environ)
    found = run(
      args.checkpoint,
      args.source,
      args.out,
      manifest=args.manifest,
      share=share,
      step_um=args.step_um,
      pixel_um=args.pixel_um,
    )
  except UserError as error:
    print(f"error: {error}", file=sys.stderr)
    return 1
  except OSError as error:
    print(f"error: {stack_files.unwritten(error, args.out)}", file=sys.stderr)
    return 1
  ended, where = found.read + found.faults, stack_files.printable(args.out / TABLE)
  if ended < found.stacks:
    print(f"{ended} of {found.stacks} stacks are read; {where} comes with the last of them")
    return 0
  print(f"{found.stacks} stacks, {found.faults} of which could not be read: {where}")
  return 1 if found.faults else 0


if __name__ == "__main__":
  sys.exit(main())
