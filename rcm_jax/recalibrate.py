"""Fits a finished model's temperature and intervals, and nothing else, to a site's labelled stacks.

    python -m rcm_jax.recalibrate --checkpoint=runs/toeplitz_d1 --source=rcm_clinical \
        --data_dir=DATA [--split=train,validation] --out=NEW

NEW is a whole model. Keep patients apart to validate it on: `--split` chooses.
"""

from __future__ import annotations

if __name__ == "__main__":  # before what takes seconds to import
  from tfds_rcm import interrupts

  interrupts.install("rcm_jax.recalibrate")

import argparse
from collections.abc import Sequence
import dataclasses
import pathlib
import sys

from rcm_jax.data import labelled
from rcm_jax.evaluation import calibration as calibration_lib
from rcm_jax.inference import bundle as bundle_lib
from rcm_jax.inference import describe, seen_patients, stack_files
from rcm_jax.inference.description import RESEARCH_USE, Description, Recalibrated
from rcm_jax.inference.predictor import Predictor
from rcm_jax.validation import figures, reading
from rcm_jax.validation.command import add_arguments, named
from tfds_rcm.errors import UserError


def run(
  checkpoint: pathlib.Path,
  source: str,
  out: pathlib.Path,
  *,
  data_dir: str | None = None,
  split: str = labelled.ALL,
) -> tuple[Description, list[str]]:
  """Writes a recalibrated model.

  Args:
    checkpoint: a bundle or a run's work directory.
    source: prepared data set.
    out: becomes the new model.
    data_dir: where TFDS keeps data sets; its default if None.
    split: "all", or splits with commas between them.

  Returns:
    What the new model is, and a line for whatever was left out.

  Raises:
    UserError: there is no model or no such data, too few patients for intervals, or `out` is
      something else than a model.
    OSError: `out` cannot be written.
  """
  directory, out = bundle_lib.find(checkpoint), out.resolve()
  if out == directory.resolve():
    raise UserError(f"--out={out}: is the model itself; name another folder")
  if (
    out.exists()
    and not (out / bundle_lib.DESCRIPTION).exists()
    and (not out.is_dir() or any(out.iterdir()))
  ):
    raise UserError(f"--out={out}: is there and no model, and would be replaced; name another")
  model = bundle_lib.load(directory)
  model.check_sees_images()
  splits = labelled.parse_splits(split)
  builder, filled = labelled.open_builder(source, data_dir, splits)
  read, told = reading.read(
    Predictor(model), labelled.read(builder, filled, model.description.strata), source
  )
  seen = sorted({s.known.patient_id for s in read if s.seen})
  if seen:
    told.append(
      f"{len(seen)} patients ({', '.join(seen[:10])}) have ids of patients that the model has learned "
      "from: their stacks tell nothing of new ones and were left out"
    )
  stacks = [s for s in read if not s.seen]
  description = recalibrated(model.description, stacks, source, named(source, splits))
  out.parent.mkdir(parents=True, exist_ok=True)
  bundle_lib.save(out, dataclasses.replace(model, description=description))
  return description, told


def recalibrated(
  model: Description, stacks: Sequence[reading.ReadStack], source: str, dataset: str
) -> Description:
  """Returns a model's description with temperature and intervals of other stacks.

  What was measured before the change is not said of what is after it.

  Args:
    model: its description.
    stacks: of patients that it has not learned from.
    source: their data set.
    dataset: the same in words.

  Raises:
    UserError: there are too few patients for intervals.
  """
  patients = {s.known.patient_id for s in stacks}
  predictions = [s.prediction(model.method, "", model.head.ordered) for s in stacks]
  calibration, wide_um = describe.calibration_of(predictions) if stacks else (None, None)
  if calibration is None or wide_um is None:
    counts = []
    if stacks:
      counted = figures.measure(stacks).counted
      for name, column in zip(model.strata.boundary_titles.values(), counted.T, strict=True):
        having = {s.known.patient_id for s, has in zip(stacks, column) if has}
        counts.append(f"{name} in those of {len(having)}")
    shown = f" ({', '.join(counts)})" if counts else ""
    raise UserError(
      f"--source={source}: stacks of {len(patients)} patients that the model has not learned from"
      f"{shown}; intervals need each boundary in those of {calibration_lib.MIN_PATIENTS} at least: label "
      "more, or keep the model as it is"
    )
  groups = model.patients
  if groups:  # who is not told of at all stays so
    people = seen_patients.people([source], sorted(patients))
    groups = (*groups, seen_patients.hashes_of(people))
  return dataclasses.replace(
    model,
    calibration=calibration,
    training=dataclasses.replace(model.training, wide_um=wide_um),
    figures={},
    recalibrated=Recalibrated(
      dataset, len(stacks), len(patients), sum(len(s.known.labels) for s in stacks)
    ),
    patients=groups,
  )


def main(argv: Sequence[str] | None = None) -> int:
  """Runs the command line; returns the exit code."""
  parser = argparse.ArgumentParser(
    prog="python -m rcm_jax.recalibrate",
    description=f"Fit a model's temperature and intervals to a site's stacks. {RESEARCH_USE}",
  )
  add_arguments(parser)
  parser.add_argument("--out", type=pathlib.Path, required=True, help="folder of the new model")
  args = parser.parse_args(argv)
  try:
    model, told = run(
      args.checkpoint, args.source, args.out, data_dir=args.data_dir, split=args.split
    )
  except UserError as error:
    print(f"error: {error}", file=sys.stderr)
    return 1
  except OSError as error:
    place = stack_files.printable(error.filename or args.out)
    print(f"error: {place}: {error.strerror or error}; choose another --out", file=sys.stderr)
    return 1
  for line in told:
    print(f"warning: {line}", file=sys.stderr)
  fitted, calibration = model.recalibrated, model.calibration
  print(
    f"{fitted.stacks} stacks of {fitted.patients} patients: temperature {calibration.temperature:.3g}, "
    f"intervals for {calibration.coverage:.0%}; {stack_files.printable(args.out)}"
  )
  return 0


if __name__ == "__main__":
  sys.exit(main())
