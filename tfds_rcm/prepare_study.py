"""The command line of the datasets that are made of a user's own files."""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import io
import pathlib
import sys

from tfds_rcm import locks
from tfds_rcm.errors import UserError, printable
from tfds_rcm.formats import zip_archive
from tfds_rcm.rcm_dryad import convert
from tfds_rcm.study import annotations as annotations_lib
from tfds_rcm.study import check_report, label_tables, patients
from tfds_rcm.study import manifest as manifest_lib
from tfds_rcm.study import plan as plan_lib

DATASETS = ("rcm_dryad", "rcm_clinical")


def add_arguments(parser: argparse.ArgumentParser, name: str) -> None:
  """Adds the options of one of DATASETS, besides --data_dir."""
  add = parser.add_argument
  add("--source", type=pathlib.Path, required=True, help="the study's folder, or a zip of it")
  add("--check", action="store_true", help="decode everything, report, write no dataset")
  add("--manifest", type=pathlib.Path, help="CSV of the stacks (default: manifest.csv in source)")
  add(
    "--labels",
    type=pathlib.Path,
    help="CSV of the labels, or a folder of them (default: labels.csv or labels/ beside it)",
  )
  add("--columns", default="", help="which column is what, such as stack_id=Stack,label=Layer")
  add("--label_map", default="", help="what labels mean, such as 1=epidermis,2=dej,3=dermis")
  add("--readers", default="", help="readers by seniority, such as ann,bob: ties go to the first")
  add("--first_slice", type=int, choices=(0, 1), default=0, help="number of the shallowest slice")
  add("--splits", type=pathlib.Path, help="CSV of the splits: obeyed if there, else written")
  add("--split_sizes", help="stacks in train,validation,test: counts or fractions")
  add(
    "--distinct_patients",
    default="",
    help="ids that look like one patient's and are not, such as 07,7",
  )
  add("--seed", type=int, default=0, help="of the splits")
  add("--value_range", help="black,white in pixels deeper than 8 bit (default: the stack's own)")
  add("--channel", type=int, help="which of several channels is read, from 1")
  add("--compression", choices=("fast", "small"), default="fast", help="of the slices on disk")
  add("--workers", type=int, help="processes (default: all cores)")
  add("--beam_options", help="decode by Apache Beam with these options, such as --runner=…")
  if name == "rcm_dryad":
    add("--patient_pattern", help="regular expression whose group in a stack's path is its patient")
    add("--step_um", type=float, help="distance between slices in µm")
    add("--pixel_um", type=float, help="side of a pixel in µm")


def run(name: str, args: argparse.Namespace, data_dir: pathlib.Path) -> None:
  """Checks or prepares one of DATASETS and prints what was found.

  Raises:
    UserError: if anything is wrong with the input; no dataset is written then.
  """
  base = data_dir / name
  # Holds what this run writes until it has ended. A check writes no more than it unpacks or converts.
  with contextlib.ExitStack() as alone:
    if not args.check:
      alone.enter_context(locks.held(base / ".lock"))
    folder = zip_archive.source_folder(args.source, base / "unpacked")
    warnings: list[str] = []
    options, note = _options(name, args, base, folder, alone, warnings)
    plan = plan_lib.make_plan(options, decode=args.check, workers=args.workers)
    plan = dataclasses.replace(plan, warnings=(*warnings, *plan.warnings))
    print(check_report.report(plan, note))
    plan.raise_problems()
    if not args.check:
      _prepare(name, plan, args, data_dir)


def _options(
  name: str,
  args: argparse.Namespace,
  base: pathlib.Path,
  folder: pathlib.Path,
  alone: contextlib.ExitStack,
  warnings: list[str],
) -> tuple[plan_lib.Options, str]:
  """How the study in `folder` is to be read, and a note to its reader."""
  table, labels_csv, note = args.manifest, args.labels, ""
  columns = _pairs("columns", args.columns)
  if name == "rcm_dryad":
    note = convert.NOTE
    if table is None and not (folder / manifest_lib.MANIFEST).is_file():
      hints = convert.Hints(
        columns=columns,
        patient_pattern=args.patient_pattern,
        step_um=args.step_um,
        pixel_um=args.pixel_um,
        labels=labels_csv,
      )
      alone.enter_context(locks.held(base / "converted" / ".lock"))
      table, labels_csv = convert.convert(folder, base / "converted", hints, warnings)
      columns = {}  # they named the archive's
  if table is None:
    table = manifest_lib.find_manifest(folder)
    folder = table.parent
  if labels_csv is None:
    labels_csv = label_tables.find_labels(table.parent)
  if args.first_slice and labels_csv is not None and labels_csv.is_dir():
    raise UserError(f"--first_slice={args.first_slice}: {labels_csv} counts slices from 0")
  options = plan_lib.Options(
    folder=folder,
    manifest=table,
    labels=labels_csv,
    splits=args.splits or base / "splits.csv",
    split_sizes=_numbers("split_sizes", args.split_sizes, 3),
    seed=args.seed,
    rules=annotations_lib.Rules(
      label_map=annotations_lib.parse_label_map(args.label_map),
      reader_order=tuple(filter(None, map(str.strip, args.readers.split(",")))),
      first_slice=args.first_slice,
    ),
    value_range=_numbers("value_range", args.value_range, 2),
    channel=args.channel,
    compress=args.compression == "small",
    columns=columns,
    distinct_patients=patients.parse_ids(args.distinct_patients),
  )
  return options, note


def _prepare(
  name: str, plan: plan_lib.Plan, args: argparse.Namespace, data_dir: pathlib.Path
) -> None:
  # Here, because TFDS takes a second to import and the processes that decode do without.
  import tensorflow_datasets as tfds

  from tfds_rcm.rcm_clinical import rcm_clinical_dataset_builder as clinical
  from tfds_rcm.rcm_dryad import rcm_dryad_dataset_builder as dryad

  if not sys.stderr.isatty():  # a log is no place for progress bars
    tfds.disable_progress_bar()
  builder_class = {"rcm_clinical": clinical.Builder, "rcm_dryad": dryad.Builder}[name]
  config = None
  if args.beam_options is not None:
    try:
      from apache_beam.options.pipeline_options import PipelineOptions, StandardOptions
      from apache_beam.runners import create_runner
    except ImportError as error:
      raise UserError("beam_options: Beam is missing: pip install apache-beam") from error
    options = PipelineOptions(args.beam_options.split())
    runner = create_runner(options.view_as(StandardOptions).runner or "DirectRunner")
    config = tfds.download.DownloadConfig(beam_options=options, beam_runner=runner)
  builder = builder_class(
    plan=plan, workers=args.workers, use_beam=config is not None, data_dir=data_dir
  )
  report = pathlib.Path(builder.data_path, "report.txt")
  before = report.read_text(encoding="utf-8").splitlines() if report.is_file() else []
  with contextlib.redirect_stdout(io.StringIO()):  # TFDS speaks of downloads of unknown size
    wrote = builder.prepare(config)
  manifests = {line for line in before if line.startswith(check_report.MANIFEST)}
  if wrote and manifests - set(check_report.report(plan).splitlines()):
    print(
      f"replaced    the dataset of {manifests.pop().removeprefix(check_report.MANIFEST).strip()}"
    )
  print(printable(f"{'dataset    ' if wrote else 'up to date '} {builder.data_path}"))


def _numbers(option: str, text: str | None, count: int) -> tuple[float, ...] | None:
  if text is None:
    return None
  try:
    numbers = tuple(float(part) for part in text.split(","))
  except ValueError:
    numbers = ()
  if len(numbers) != count:
    raise UserError(f"--{option}={text}: expected {count} numbers with commas between them")
  return numbers


def _pairs(option: str, text: str) -> dict[str, str]:
  pairs: dict[str, str] = {}
  for part in filter(None, map(str.strip, text.split(","))):
    ours, _, theirs = map(str.strip, part.partition("="))
    if not ours or not theirs or ours in pairs or theirs in pairs.values():
      raise UserError(f"--{option}={text}: expected NAME=COLUMN,NAME=COLUMN, each once")
    pairs[ours] = theirs
  return pairs
