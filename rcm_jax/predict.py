"""Files in; strata, boundaries with intervals, a depth plan and a report out.

    python -m rcm_jax.predict --checkpoint=runs/toeplitz_d1 --stack=FOLDER_OR_FILE --step_um=3 \
        --out=DIR

A stack is anything that `tfds_rcm.stack_io` reads; `--stack` may be given many times. Each
leaves NAME.json (`inference/prediction.schema.json`), NAME.csv and NAME.html, a report
that needs no network.
"""

from __future__ import annotations

if __name__ == "__main__":  # before what takes seconds to import
  from tfds_rcm import interrupts

  interrupts.install("rcm_jax.predict")

import argparse
from collections.abc import Sequence
import csv
import dataclasses
import io
import json
import pathlib
import re
import sys
from typing import Any

from jaxtyping import UInt8
import numpy as np
from rich.console import Console
from rich.progress import Progress

from rcm_jax.arrays import STRATA
from rcm_jax.inference import bundle as bundle_lib
from rcm_jax.inference import html_report, model_card
from rcm_jax.inference import interpretation as reading_lib
from rcm_jax.inference.predictor import Prediction, Predictor
from rcm_jax.runtime import stage_cache
from tfds_rcm import stack_io
from tfds_rcm.errors import UserError

SCHEMA = "rcm_jax.prediction/1"
COLUMNS = ("slice", "name", "depth_um", "stratum", *(f"p_{stratum}" for stratum in STRATA))


def describe(
  prediction: Prediction,
  card: model_card.Description,
  *,
  name: str,
  source: str,
  slice_names: Sequence[str],
  pixel_um: float | None,
) -> dict[str, Any]:
  """Returns a prediction as JSON values, as `prediction.schema.json` has them."""
  wide = card.training.wide_um
  limits = (float("inf"), float("inf")) if wide is None else wide
  steps = np.diff(prediction.depth_um)
  reading = prediction.reading
  return {
    "schema": SCHEMA,
    "stack": {
      "name": name,
      "source": source,
      "step_um": float(np.median(steps)) if steps.size else None,
      "pixel_um": pixel_um,
    },
    "model": {
      "method": card.method,
      "members": len(card.seeds),
      "dataset": card.training.dataset,
      "coverage": None if wide is None else card.calibration.coverage,
      "temperature": card.calibration.temperature,
      "version": card.version,
    },
    "slices": [
      {
        "slice": t,
        "name": slice_name,
        "depth_um": float(depth),
        "stratum": STRATA[stratum],
        "probabilities": dict(zip(STRATA, np.clip(row, 0, 1).tolist(), strict=True)),
      }
      for t, (slice_name, depth, stratum, row) in enumerate(
        zip(slice_names, prediction.depth_um, reading.strata, reading.probabilities, strict=True)
      )
    ],
    "boundaries": [
      {**dataclasses.asdict(b), "read_by_eye": reading_lib.is_wide(b, limit)}
      for b, limit in zip(prediction.boundaries, limits, strict=True)
    ],
    "plan": [dataclasses.asdict(mosaic) for mosaic in prediction.plan],
    "warnings": [caution._asdict() for caution in prediction.warnings],
    "attention": None
    if prediction.attention is None
    else np.round(prediction.attention.astype(np.float64), 4).tolist(),
    "use": model_card.RESEARCH_USE,
  }


def write(
  directory: pathlib.Path, result: dict[str, Any], slices: UInt8[np.ndarray, "T height width"]
) -> pathlib.Path:
  """Writes a stack's JSON, CSV and report; returns the report's path.

  Args:
    directory: of all stacks; files of another stack with this name are replaced.
    result: of `describe`.
    slices: what the report shows.
  """
  stem = directory / result["stack"]["name"]
  table = io.StringIO()
  writer = csv.writer(table, lineterminator="\n")
  writer.writerow(COLUMNS)
  for row in result["slices"]:
    probabilities = (f"{row['probabilities'][stratum]:.6g}" for stratum in STRATA)
    writer.writerow(
      (row["slice"], row["name"], f"{row['depth_um']:g}", row["stratum"], *probabilities)
    )
  named = lambda suffix: stem.with_name(f"{stem.name}.{suffix}")
  stage_cache.write_text(named("json"), json.dumps(result, indent=1, allow_nan=False))
  stage_cache.write_text(named("csv"), table.getvalue())
  stage_cache.write_text(named("html"), html_report.render(result, slices))
  return named("html")


def file_names(paths: Sequence[pathlib.Path]) -> list[str]:
  """Gives each stack a name that is safe in any file system and that no other one has."""
  names: list[str] = []
  for path in paths:
    path = path.absolute()
    base = path.name if path.is_dir() else path.stem
    base = re.sub(r"[^\w.-]+", "_", base).strip("._") or "stack"
    name, number = base, 1
    while name in names:
      number += 1
      name = f"{base}-{number}"
    names.append(name)
  return names


def run(
  checkpoint: pathlib.Path,
  stacks: Sequence[pathlib.Path],
  out: pathlib.Path,
  *,
  step_um: float | None = None,
  pixel_um: float | None = None,
) -> list[str]:
  """Reads stacks from disk and writes what was found; a bad one does not stop the others.

  Args:
    checkpoint: a bundle or a run's work directory.
    stacks: folders and files.
    out: gets three files a stack.
    step_um: distance between slices in µm, where the files do not tell it.
    pixel_um: side of a pixel in µm, likewise.

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
  with Progress(console=console, disable=not console.is_terminal, transient=True) as bar:
    for path, name in zip(stacks, file_names(stacks), strict=True):
      task = bar.add_task(name, total=None)
      try:
        with stack_io.open_stack(path, step_um=step_um, pixel_um=pixel_um) as reader:
          slices = reader.read_all()
          advance = lambda done, total: bar.update(task, completed=done, total=total)
          prediction = predictor.predict(slices, reader.depth_um, advance)
          result = describe(
            prediction,
            predictor.bundle.description,
            name=name,
            source=str(path),
            slice_names=[pathlib.Path(str(n)).name for n in reader.names],
            pixel_um=reader.pixel_um,
          )
      except UserError as error:
        text = str(error)
        faults.append(text if str(path) in text else f"{path}: {text}")
        continue
      finally:
        bar.remove_task(task)
      console.print(f"{_summary(result)} → {write(out, result, slices)}", markup=False)
  return faults


def _summary(result):
  parts = []
  for boundary in result["boundaries"]:
    text = "not in this stack"
    if boundary["depth_um"] is not None:
      text = f"{boundary['depth_um']:.0f} µm"
      if boundary["low_um"] is not None and boundary["high_um"] is not None:
        text += f" ({boundary['low_um']:.0f} to {boundary['high_um']:.0f})"
    parts.append(f"{reading_lib.DISPLAY_NAMES[boundary['name']]} {text}")
  count = len(result["warnings"])
  warned = f"; {count} warning{'s' if count > 1 else ''}" if count else ""
  return f"{result['stack']['name']}: {', '.join(parts)}{warned}"


def main(argv: Sequence[str] | None = None) -> int:
  """Runs the command line; returns the exit code."""
  parser = argparse.ArgumentParser(
    prog="python -m rcm_jax.predict",
    description="Find skin strata in RCM stacks and plan the depths of mosaics. "
    f"{model_card.RESEARCH_USE}",
  )
  option = parser.add_argument
  option("--checkpoint", type=pathlib.Path, required=True, help="work directory of a run")
  option(
    "--stack",
    type=pathlib.Path,
    action="append",
    required=True,
    help="folder or file of one stack; may be given many times",
  )
  option("--step_um", type=float, help="µm between slices, where the files do not tell")
  option("--pixel_um", type=float, help="µm a pixel, where the files do not tell")
  option("--out", type=pathlib.Path, required=True, help="folder for JSON, CSV and reports")
  args = parser.parse_args(argv)
  try:
    faults = run(
      args.checkpoint, args.stack, args.out, step_um=args.step_um, pixel_um=args.pixel_um
    )
  except UserError as error:
    faults = [str(error)]
  except OSError as error:
    place = error.filename or args.out
    faults = [f"{place}: {error.strerror or error}; make room or choose another --out"]
  for fault in faults:
    print(f"error: {fault}", file=sys.stderr)
  return 1 if faults else 0


if __name__ == "__main__":
  sys.exit(main())
