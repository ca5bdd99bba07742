"""How far the readers of a study agree, and a consensus of their labels.

    python -m tfds_rcm.agreement --source=STUDY --out=DIR

Leaves agreement.html, agreement.md, a CSV a table, agreement.json and consensus.csv.
"""

from __future__ import annotations

if __name__ == "__main__":  # before what takes seconds to import
  from tfds_rcm import interrupts

  interrupts.install("tfds_rcm.agreement")

import argparse
from collections.abc import Sequence
import pathlib
import sys

from tfds_rcm.errors import UserError
from tfds_rcm.labelling import comparison, readings, report
from tfds_rcm.study import annotations as labels_lib
from tfds_rcm.study import label_tables
from tfds_rcm.study import manifest as manifest_lib


def run(
  source: pathlib.Path,
  out: pathlib.Path,
  *,
  manifest: pathlib.Path | None = None,
  labels: pathlib.Path | None = None,
  rules: labels_lib.Rules | None = None,
  address: str = "",
) -> comparison.Agreement:
  """Compares a study's readers and writes what was found.

  Args:
    source: the study's folder.
    out: folder of the report.
    manifest: the CSV of the stacks; the one below `source` if None.
    labels: the CSV of the labels or a folder of them; what lies beside the manifest if None.
    rules: how labels are to be understood.
    address: of an open label page, for links.

  Raises:
    UserError: the study cannot be read, or has nothing to compare.
  """
  if not source.is_dir():
    raise UserError(f"{source}: no such folder; give the study's folder as --source")
  manifest = manifest or manifest_lib.find_manifest(source)
  labels = labels or label_tables.find_labels(manifest.parent)
  rules = rules or labels_lib.Rules()
  if rules.first_slice and labels is not None and labels.is_dir():
    raise UserError(f"--first_slice={rules.first_slice}: {labels} counts slices from 0")
  notes: list[str] = []
  stacks = readings.read_study(manifest, labels, rules, notes)
  journals = readings.read_journals(manifest.parent / label_tables.LABELS_FOLDER)
  try:
    found = comparison.compare(stacks, journals)
  except UserError as error:
    raise UserError(f"{labels or manifest}: {error}") from error
  report.write(found, out, source=source.absolute().name, address=address, notes=notes)
  return found


def main(argv: Sequence[str] | None = None) -> int:
  """Runs the command line; returns the exit code."""
  parser = argparse.ArgumentParser(
    prog="python -m tfds_rcm.agreement", description="How far the readers of a study agree."
  )
  add = parser.add_argument
  add("--source", type=pathlib.Path, required=True, help="the study's folder")
  add("--out", type=pathlib.Path, required=True, help="folder for the report")
  add("--manifest", type=pathlib.Path, help="CSV of the stacks (default: manifest.csv in source)")
  add("--labels", type=pathlib.Path, help="CSV of the labels or a folder (default: beside it)")
  add("--label_map", default="", help="what labels mean, such as 1=epidermis,2=dej,3=dermis")
  add("--readers", default="", help="readers by seniority, such as ann,bob: ties go to the first")
  add("--first_slice", type=int, choices=(0, 1), default=0, help="number of the shallowest slice")
  add("--address", default="", help="of an open label page, for links to the stacks")
  args = parser.parse_args(argv)
  try:
    rules = labels_lib.Rules(
      label_map=labels_lib.parse_label_map(args.label_map),
      reader_order=tuple(filter(None, map(str.strip, args.readers.split(",")))),
      first_slice=args.first_slice,
    )
    found = run(
      args.source,
      args.out,
      manifest=args.manifest,
      labels=args.labels,
      rules=rules,
      address=args.address,
    )
  except UserError as error:
    print(f"error: {error}", file=sys.stderr)
    return 1
  except OSError as error:
    place = error.filename or args.out
    print(f"error: {place}: {error.strerror or error}", file=sys.stderr)
    return 1
  print(f"{report.summary(found)}\nreport      {args.out / 'agreement.html'}")
  return 0


if __name__ == "__main__":
  sys.exit(main())
