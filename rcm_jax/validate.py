"""A finished model on labelled stacks that it has never seen.

    python -m rcm_jax.validate --checkpoint=runs/toeplitz_d1 --source=rcm_clinical \
        --data_dir=DATA [--split=all] [--by=lesion] --out=DIR

Reads every stack as `rcm_jax.predict` does and fits nothing to any. DIR/validation.md has all
figures with intervals over patients; DIR/results.json and predictions.csv are those of any run, so that
`rcm_jax.evaluate --runs=…` sets the model beside others.
"""

from __future__ import annotations

if __name__ == "__main__":  # before what takes seconds to import
  from tfds_rcm import interrupts

  interrupts.install("rcm_jax.validate")

import argparse
from collections.abc import Sequence
import pathlib
import sys

from rich.console import Console
from rich.progress import Progress

from rcm_jax.data import labelled
from rcm_jax.evaluation import finished_runs, results
from rcm_jax.inference import bundle as bundle_lib
from rcm_jax.inference import stack_files
from rcm_jax.inference.description import RESEARCH_USE, Description
from rcm_jax.inference.predictor import Predictor
from rcm_jax.reporting import reader_rows, study_report
from rcm_jax.runtime import versions
from rcm_jax.validation import groups, reading, report
from rcm_jax.validation.command import add_arguments, named
from rcm_jax.validation.figures import figures_of, measure
from tfds_rcm.errors import UserError

REPORTS = "reports"


def run(
  checkpoint: pathlib.Path,
  source: str,
  out: pathlib.Path,
  *,
  data_dir: str | None = None,
  split: str = labelled.ALL,
  by: Sequence[str] = (),
  name: str | None = None,
  worst: int = 10,
  readers: pathlib.Path | None = None,
) -> report.Validation:
  """Validates a model and writes the report.

  Args:
    checkpoint: a bundle or a run's work directory.
    source: prepared data set, such as "rcm_clinical" or "rcm_phantom/demo".
    out: gets the report.
    data_dir: where TFDS keeps data sets; its default if None.
    split: "all", or splits with commas between them.
    by: columns of the manifest that figures are divided by, besides the usual ones.
    name: of the model in the tables; its method, and whether it is an ensemble, if None.
    worst: stacks that get a report.
    readers: agreement.json of `tfds_rcm.agreement`, for a row in Tables 1 and 3.

  Raises:
    UserError: there is no model, no such data, or nothing in it that the model can read.
    OSError: `out` cannot be written.
  """
  console = Console(stderr=True, highlight=False, soft_wrap=True)
  ceiling = reader_rows.read(readers) if readers else None
  splits = labelled.parse_splits(split)
  predictor = Predictor(bundle_lib.load(checkpoint))
  predictor.bundle.check_sees_images()
  model = predictor.bundle.description
  builder, filled = labelled.open_builder(source, data_dir, splits)
  if (out / "config.json").exists():
    raise UserError(f"--out={out}: is a run's work directory, whose results would go; name another")
  out.mkdir(parents=True, exist_ok=True)
  total = sum(builder.info.splits[s].num_examples for s in filled)
  with Progress(console=console, disable=not console.is_terminal, transient=True) as bar:
    task = bar.add_task(source, total=total)
    stacks, left_out = reading.read(
      predictor, labelled.read(builder, filled, model.strata), source, lambda: bar.advance(task)
    )
  measured = measure(stacks)
  divisions = groups.divide(
    stacks, measured, by
  )  # refuses an unknown column before anything is written
  (out / report.JSON).unlink(missing_ok=True)  # comes back last, when all is there
  unseen = [i for i, s in enumerate(stacks) if s.seen is False]
  shown = groups.worst(stacks, worst)
  found = report.Validation(
    name=name or (f"{model.method}_ensemble" if len(model.seeds) > 1 else model.method),
    model=model,
    dataset=named(source, splits),
    stacks=stacks,
    measured=measured,
    left_out=left_out,
    whole=figures_of(measured),
    unseen=figures_of(measured.take(unseen)) if unseen else None,
    divisions=divisions,
    warned=groups.by_warning(stacks, measured),
    worst=shown,
    reports=_write_reports(out, builder, [stacks[i] for i in shown], model),
  )
  runs = _write_run(out, found)
  study_report.write(runs, out, ceiling)
  report.write(out, found)
  return found


def _write_run(out: pathlib.Path, found: report.Validation) -> finished_runs.FinishedRuns:
  """Writes results.json and predictions.csv; returns the same for the tables."""
  head = found.model.head
  sees = "whole stack" if head.window is None else "partial stack"
  predictions = [s.prediction(found.name, sees, head.ordered) for s in found.stacks]
  temperature = found.model.calibration.boundary_temperature
  temperature_of = {} if temperature is None else {found.name: temperature}
  scale = found.model.scale
  results.write_run(
    out,
    {
      "name": found.dataset,
      "stacks": {"test": len(predictions)},
      "slices": {"test": sum(len(p.labels) for p in predictions)},
      "image_size": scale.image_size,
      "field_um": scale.field_um,
      "strata": found.model.strata.names,
    },
    predictions,
    versions=versions.installed(),
    temperature_of=temperature_of,
    about={"validated": report.model_fields(found.name, found.model)},
  )
  return finished_runs.FinishedRuns(
    found.dataset, {found.name: {0: predictions}}, {}, {}, temperature_of
  )


def _write_reports(out, builder, stacks: Sequence[reading.ReadStack], model: Description):
  """Writes JSON, CSV and HTML of some stacks; returns the reports' paths below `out`."""
  (out / REPORTS).mkdir(exist_ok=True)
  paths = []
  for s in stacks:
    stack = labelled.read_again(builder, s.known, model.strata)
    folder = pathlib.Path(builder.data_dir, stack.split)
    result = stack_files.result_of(
      s.said,
      model,
      stack_id=stack_files.unused_name(out / REPORTS, folder, stack.stack_id),
      source=stack_files.source_of(folder, stack.stack_id),
      slice_names=[str(t) for t in range(len(stack.depth_um))],
      pixel_um=stack.pixel_um,
    )
    paths.append(f"{REPORTS}/{stack_files.write(out / REPORTS, result, stack.slices).name}")
  return paths


def main(argv: Sequence[str] | None = None) -> int:
  """Runs the command line; returns the exit code."""
  parser = argparse.ArgumentParser(
    prog="python -m rcm_jax.validate",
    description=f"Try a finished model on labelled stacks. {RESEARCH_USE}",
  )
  add_arguments(parser)
  option = parser.add_argument
  option("--by", action="append", default=[], help="column of the manifest to divide figures by")
  option("--name", help="of the model in the tables (default: its method)")
  option("--worst", type=int, default=10, help="stacks that get a report (default: %(default)s)")
  option("--readers", type=pathlib.Path, help="agreement.json of tfds_rcm.agreement: a row")
  option("--out", type=pathlib.Path, required=True, help="folder of the report")
  args = parser.parse_args(argv)
  try:
    found = run(
      args.checkpoint,
      args.source,
      args.out,
      data_dir=args.data_dir,
      split=args.split,
      by=[column for text in args.by for column in text.split(",")],
      name=args.name,
      worst=args.worst,
      readers=args.readers,
    )
  except UserError as error:
    print(f"error: {error}", file=sys.stderr)
    return 1
  except OSError as error:
    place = stack_files.printable(error.filename or args.out)
    print(f"error: {place}: {error.strerror or error}; choose another --out", file=sys.stderr)
    return 1
  for line in report.notes(found):
    print(f"warning: {line}", file=sys.stderr)
  accuracy = found.whole.accuracy
  print(
    f"{found.whole.stacks} stacks of {found.whole.patients} patients: {accuracy.value:.1%} of slices "
    f"right; {stack_files.printable(args.out / report.MARKDOWN)}"
  )
  return 0


if __name__ == "__main__":
  sys.exit(main())
