"""Files in; strata, boundaries with intervals, a depth plan and a report out.

    python -m rcm_jax.predict --checkpoint=runs/toeplitz_d1 --stack=FOLDER_OR_FILE --step_um=3 \
        --out=DIR

A stack is anything that `tfds_rcm.stack_io` reads; `--stack` may be given many times. A model whose
heads read another encoder's features takes `--features=FILE.npz` (docs/encoders.md) instead. Each stack
leaves NAME.json (`inference/prediction.schema.json`), NAME.csv and NAME.html, a report
that needs no network. NAME tells the stack's path.
"""

from __future__ import annotations

if __name__ == "__main__":  # before what takes seconds to import
  from tfds_rcm import interrupts

  interrupts.install("rcm_jax.predict")

import argparse
from collections.abc import Sequence
import os
import pathlib
import sys

from rich.console import Console
from rich.progress import Progress

from rcm_jax import anatomy
from rcm_jax.data import feature_file
from rcm_jax.inference import bundle as bundle_lib
from rcm_jax.inference import stack_files
from rcm_jax.inference.description import RESEARCH_USE
from rcm_jax.inference.from_disk import read_stack
from rcm_jax.inference.predictor import Predictor
from tfds_rcm import stack_io
from tfds_rcm.errors import UserError


def run(
  checkpoint: pathlib.Path,
  stacks: Sequence[pathlib.Path],
  out: pathlib.Path,
  *,
  step_um: float | None = None,
  pixel_um: float | None = None,
  value_range: stack_io.Range | None = None,
  channel: int | None = None,
  features: Sequence[pathlib.Path] = (),
) -> list[str]:
  """Interprets stacks from disk and writes what was found; a bad one does not stop the others.

  Args:
    checkpoint: a bundle or a run's work directory.
    stacks: folders and files.
    out: gets three files a stack.
    step_um: distance between slices in µm, where the files do not tell it.
    pixel_um: side of a pixel in µm, likewise.
    value_range: stored values that become 0 and 255; each stack's own if None.
    channel: which of several channels is read, counted from 1.
    features: files of features, whose stacks are read too.

  Returns:
    One line for each stack that could not be read.

  Raises:
    UserError: there is no model.
    OSError: `out` cannot be written.
  """
  predictor = Predictor(bundle_lib.load(checkpoint))
  out.mkdir(parents=True, exist_ok=True)
  console = Console(stderr=True, highlight=False, soft_wrap=True)
  faults = []
  distinct = {os.path.abspath(path): path for path in stacks}.values()
  with Progress(console=console, disable=not console.is_terminal, transient=True) as bar:
    for path in distinct:
      task = bar.add_task(stack_files.printable(path.name), total=None)
      advance = lambda done, total, task=task: bar.update(task, completed=done, total=total)
      try:
        result, slices = read_stack(
          predictor,
          path,
          advance,
          stack_id=stack_files.unused_name(out, path),
          step_um=step_um,
          pixel_um=pixel_um,
          value_range=value_range,
          channel=channel,
        )
      except UserError as error:
        faults.append(str(error))
        continue
      finally:
        bar.remove_task(task)
      report = stack_files.write(out, result, slices)
      console.print(f"{_summary(result)} → {stack_files.printable(report)}", markup=False)
  for path in features:
    faults += _read_features(predictor, path, out, console)
  return faults


def _read_features(predictor, path, out, console):
  """Interprets the stacks of a file of features; returns a line for each that cannot be read."""
  try:
    encoder, stacks = feature_file.load_stacks(str(path))
    wanted = predictor.bundle.description.encoder
    if wanted not in (None, encoder):
      raise UserError(f"--features: {path}: of {encoder}; this model reads those of {wanted}")
  except UserError as error:
    return [str(error)]
  faults = []
  for stack in stacks:
    try:
      prediction = predictor.predict_features(stack.features, stack.depth_um)
    except UserError as error:
      faults.append(f"--features: {path}: stack {stack.name}: {error}")
      continue
    result = stack_files.result_of(
      prediction,
      predictor.bundle.description,
      stack_id=stack_files.unused_name(out, path, stack.name),
      source=stack_files.source_of(path, stack.name),
      slice_names=[f"{stack.name} {t}" for t in range(len(stack.depth_um))],
      pixel_um=None,
    )
    report = stack_files.write(out, result, None)
    console.print(f"{_summary(result)} → {stack_files.printable(report)}", markup=False)
  return faults


def _summary(result):
  parts, titles = [], anatomy.of_names(result["model"]["strata"]).boundary_titles
  for boundary in result["boundaries"]:
    text = "not in this stack"
    if boundary["depth_um"] is not None:
      text = f"{boundary['depth_um']:.0f} µm"
      if boundary["low_um"] is not None and boundary["high_um"] is not None:
        text += f" ({boundary['low_um']:.0f} to {boundary['high_um']:.0f})"
    parts.append(f"{titles[boundary['name']]} {text}")
  count = len(result["warnings"])
  warned = f"; {count} warning{'s' if count > 1 else ''}" if count else ""
  return f"{result['stack']['id']}: {', '.join(parts)}{warned}"


def _range(text):
  low, high = map(float, text.split(","))
  return low, high


def main(argv: Sequence[str] | None = None) -> int:
  """Runs the command line; returns the exit code."""
  parser = argparse.ArgumentParser(
    prog="python -m rcm_jax.predict",
    description=f"Find skin strata in RCM stacks and plan the depths of mosaics. {RESEARCH_USE}",
  )
  option = parser.add_argument
  option("--checkpoint", type=pathlib.Path, required=True, help="work directory of a run")
  option(
    "--stack",
    type=pathlib.Path,
    action="append",
    default=[],
    help="folder or file of one stack; may be given many times",
  )
  option(
    "--features",
    type=pathlib.Path,
    action="append",
    default=[],
    help="file of features (docs/encoders.md), in place of stacks; may be given many times",
  )
  option("--step_um", type=float, help="µm between slices, where the files do not tell")
  option("--pixel_um", type=float, help="µm a pixel, where the files do not tell")
  option("--value_range", type=_range, help="LOW,HIGH: stored values that become black and white")
  option("--channel", type=int, help="which of several channels, counted from 1")
  option("--out", type=pathlib.Path, required=True, help="folder for JSON, CSV and reports")
  args = parser.parse_args(argv)
  if not args.stack and not args.features:
    parser.error("give --stack or --features")
  try:
    faults = run(
      args.checkpoint,
      args.stack,
      args.out,
      step_um=args.step_um,
      pixel_um=args.pixel_um,
      value_range=args.value_range,
      channel=args.channel,
      features=args.features,
    )
  except UserError as error:
    faults = [str(error)]
  except OSError as error:
    faults = [stack_files.unwritten(error, args.out)]
  for fault in faults:
    print(f"error: {fault}", file=sys.stderr)
  return 1 if faults else 0


if __name__ == "__main__":
  sys.exit(main())
