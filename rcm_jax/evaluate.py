"""From any number of finished runs to the paper's tables.

    python -m rcm_jax.evaluate --runs=DIR --out=DIR

Reads every finished run below `--runs`, at any time, and writes tables.md, each table as CSV and
LaTeX, and the figures.
"""

from __future__ import annotations

if __name__ == "__main__":  # before what takes seconds to import
  from tfds_rcm import interrupts

  interrupts.install("rcm_jax.evaluate")

import argparse
from collections.abc import Sequence
import pathlib
import sys

import rich.console

from rcm_jax.evaluation import finished_runs
from rcm_jax.reporting import console_table, reader_rows, study_report
from tfds_rcm import errors


def main(argv: Sequence[str] | None = None) -> int:
  """Runs the command; returns its exit code."""
  parser = argparse.ArgumentParser(prog="python -m rcm_jax.evaluate", description=__doc__)
  parser.formatter_class = argparse.RawDescriptionHelpFormatter
  parser.add_argument("--runs", required=True, help="directory that runs' workdirs lie in")
  parser.add_argument("--out", required=True, help="directory for tables and figures")
  parser.add_argument(
    "--readers",
    type=pathlib.Path,
    help="agreement.json of tfds_rcm.agreement: the readers' own agreement as a row",
  )
  args = parser.parse_args(argv)
  console = rich.console.Console()
  try:
    readers = reader_rows.read(args.readers) if args.readers else None
    datasets, notes = finished_runs.gather(args.runs)
    for note in notes:
      console.print(f"note: {note}", style="yellow", markup=False, highlight=False)
    for runs in datasets:
      folder = pathlib.Path(args.out)
      if len(datasets) > 1:
        folder /= "".join(c if c.isalnum() or c in "-+." else "_" for c in runs.dataset)
      rows = study_report.write(runs, folder, readers)
      console_table.print_table(rows, title=runs.dataset, console=console)
      console.print(f"tables.md, table*.csv, table*.tex and figures are in {folder}", markup=False)
  except errors.UserError as error:
    print(error, file=sys.stderr)
    return 1
  except OSError as error:
    print(
      f"{error.filename or args.out}: {error.strerror}; free space there or choose another --out",
      file=sys.stderr,
    )
    return 1
  return 0


if __name__ == "__main__":
  sys.exit(main())
