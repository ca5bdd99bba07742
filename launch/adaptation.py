r"""What a few stacks of one's own are worth: a model on another instrument, as it is and adapted.

    python -m launch.adaptation --workdir=runs/adaptation --out=docs/study [--preset=paper_small]

Trains a model at home, then meets phantoms of other people on a shifted instrument, of which a site has
labelled 10, 30 and 60 stacks: as it is, trained from scratch on them, recalibrated on them, and
fine-tuned on them (`config.init`). All are validated on the same stacks of further patients. Whatever
ended before is not done again when the command is repeated.
"""

from __future__ import annotations

if __name__ == "__main__":  # before what takes seconds to import
  from tfds_rcm import interrupts

  interrupts.install("launch.adaptation")

import argparse
from collections.abc import Mapping, Sequence
import dataclasses
import math
from pathlib import Path
from typing import Any, NamedTuple

from launch import sweep
from launch.runners import dispatch
from launch.runners import job as job_lib
from rcm_jax import recalibrate, validate
from rcm_jax.anatomy import PAPER
from rcm_jax.reporting import plots, table_formats
from rcm_jax.reporting.table_formats import Cell, Table
from rcm_jax.runtime import files
from rcm_jax.validation import report
from tfds_rcm import prepare
from tfds_rcm.errors import UserError

SHIFT = "noise=2+section_um=8"
HOME, SCRATCH, RECALIBRATED, TUNED = "as it is", "from scratch", "recalibrated", "fine-tuned"
_AT_HOME = "as it is, on its own instrument"
_LOCAL_SEED, _TEST_SEED = 2000, 1000  # that no other phantom of the study has
_VALIDATION = 0.3  # share of the local stacks that a training validates on
NAME = "adaptation"


class Outcome(NamedTuple):
  """One row of the table.

  Attributes:
    way: what was done.
    stacks: local ones that it took.
    found: all figures of validation.json; None where it could not be done.
    why_not: then, why.
  """

  way: str
  stacks: int
  found: Mapping[str, Any] | None
  why_not: str = ""


def phantom(preset: str, shift: str, stacks: Sequence[int], seed: int) -> str:
  """Returns the name of a phantom of people who give one or two stacks each."""
  counts = f"stacks={','.join(map(str, stacks))}+stacks_per_patient=1,2+seed={seed}"
  return "+".join(filter(None, [f"rcm_phantom/{preset}", counts, shift]))


def local(preset: str, shift: str, stacks: int) -> str:
  """Returns the phantom whose training and validation stacks a site has labelled."""
  validation = max(2, round(_VALIDATION * stacks))
  return phantom(preset, shift, (stacks - validation, validation, 1), _LOCAL_SEED)


def jobs(args: argparse.Namespace) -> tuple[job_lib.Job, list[job_lib.Job]]:
  """Returns the training at home, and those on local stacks, which may follow it in any order."""
  base = {"config": f"configs/{args.method}.py:{args.preset}"}
  at_home = _job("home", base, args)
  others = []
  for stacks in args.stacks:
    on_local = base | {"data.sources": (local(args.preset, args.shift, stacks),)}
    others.append(_job(f"scratch_{stacks}", on_local, args))
    tuned = on_local | {"init": str(Path(args.workdir) / "home")}
    others.append(_job(f"tuned_{stacks}", tuned, args))
  return at_home, others


def _job(name: str, point: sweep.Point, args: argparse.Namespace) -> job_lib.Job:
  fields = sweep.resolve(point)
  if fields["head.attention"] == "toeplitz":  # of one half-width
    point = point | {"head.half_widths": max(fields["head.half_widths"])}
  folded = sweep.fold([point | {"seeds": seed} for seed in range(args.seeds)])
  if folded[0].fields["pipeline"] != "head":
    raise UserError(f"--method={args.method}: leaves no model to adapt; take a sequence head")
  return dataclasses.replace(folded[0], name=name, after=None)


def main(argv: Sequence[str] | None = None) -> None:
  """Runs the study, or goes on where it was, and writes its table and curves."""
  parser = argparse.ArgumentParser(
    prog="python -m launch.adaptation", description=__doc__.split("\n")[0]
  )
  option = parser.add_argument
  option("--preset", default="paper_small", help="of configs and phantom (default: %(default)s)")
  option("--method", default="toeplitz_d1", help="a config with a sequence head")
  option("--shift", default=SHIFT, help="fields of the other instrument (default: %(default)s)")
  option("--stacks", type=int, nargs="+", default=[10, 30, 60], help="local, labelled")
  option("--test_stacks", type=int, default=60, help="of further patients there")
  option("--seeds", type=int, default=3, help="of heads, an ensemble")
  option("--out", default="docs/study", help="directory of the table and the curves")
  job_lib.add_arguments(parser)
  args = parser.parse_args(argv)
  with job_lib.told_in_one_line("launch.adaptation"):
    if min(args.stacks) < 4 or args.test_stacks < 1 or args.seeds < 1:
      raise UserError("--stacks, --test_stacks, --seeds: at least 4 local stacks, 1 of the others")
    if args.on == "slurm":
      raise UserError("--on=slurm: the study gathers what it starts; run it on one machine")
    at_home, others = jobs(args)
    dispatch.launch([at_home], args)
    dispatch.launch(others, args)
    if not args.dry_run:
      write(Path(args.out), outcomes(args), args)


def outcomes(args: argparse.Namespace) -> list[Outcome]:
  """Validates every model on the same stacks; what was validated before is read back."""
  workdir = Path(args.workdir)
  test = phantom(args.preset, args.shift, (1, 1, args.test_stacks), _TEST_SEED)
  usual = phantom(args.preset, "", (1, 1, args.test_stacks), _TEST_SEED)
  found = [
    Outcome(_AT_HOME, 0, _validated(args, workdir / "home", usual, "home_usual")),
    Outcome(HOME, 0, _validated(args, workdir / "home", test, "home")),
  ]
  for stacks in args.stacks:
    for way, name in ((SCRATCH, f"scratch_{stacks}"), (TUNED, f"tuned_{stacks}")):
      found.append(Outcome(way, stacks, _validated(args, workdir / name, test, name)))
    found.append(_recalibrated(args, stacks, test))
  return found


def _validated(args: argparse.Namespace, model: Path, source: str, name: str) -> Mapping[str, Any]:
  out = Path(args.workdir) / "validated" / name
  written = report.written(out)
  if written is not None and written["dataset"] == source:
    return written
  prepare.prepare_phantom(source.partition("/")[2], args.data_dir)
  print(f"{name}: validating on {source}", flush=True)
  options = {"data_dir": args.data_dir, "split": "test", "name": name, "worst": 0}
  return report.to_json(validate.run(model, source, out, **options))


def _recalibrated(args: argparse.Namespace, stacks: int, test: str) -> Outcome:
  workdir, source = Path(args.workdir), local(args.preset, args.shift, stacks)
  name = f"recalibrated_{stacks}"
  model = workdir / name
  if not (model / "sealed.json").exists():
    try:
      recalibrate.run(
        workdir / "home", source, model, data_dir=args.data_dir, split="train,validation"
      )
    except UserError as error:
      return Outcome(RECALIBRATED, stacks, None, str(error))
  return Outcome(RECALIBRATED, stacks, _validated(args, model, test, name))


def write(out: Path, found: Sequence[Outcome], args: argparse.Namespace) -> None:
  """Writes adaptation.md, adaptation.csv and figures/adaptation.png."""
  made = table(found, args)
  files.write_text(out / f"{NAME}.csv", table_formats.to_csv(made))
  picture = f"![Accuracy and errors by the number of local stacks](figures/{NAME}.png)\n"
  files.write_text(out / f"{NAME}.md", f"{table_formats.to_markdown(made)}\n{picture}")
  plots.by_count(curves(found), "Local stacks", out / "figures" / f"{NAME}.png")
  print(f"{out / NAME}.md and figures/{NAME}.png are written", flush=True)


def table(found: Sequence[Outcome], args: argparse.Namespace) -> Table:
  """Returns the outcomes as a table."""
  names = list(PAPER.boundary_titles.values())
  columns = [("", "Model"), ("", "Local stacks"), ("", "Slices right, %")]
  for what in ("Mean error, µm", "In interval, %", "Width, µm"):
    columns += [(what, name) for name in names]
  columns.append(("", "Calibration error, %"))
  rows = [[o.way, Cell(o.stacks, decimals=0), *_cells(o.found)] for o in found]
  refused = sorted({f"{o.stacks} stacks, {o.way}: {o.why_not}." for o in found if o.found is None})
  notes = [
    f"Simulated stacks: {args.method}, preset {args.preset}, {args.seeds} heads; the other instrument "
    f"has {args.shift}. All are measured on {args.test_stacks} stacks of further patients there, as "
    "`rcm_jax.predict` shows them; 95 % intervals over these patients do not tell how local stacks, "
    f"of which there was one choice, would vary. Of these, trainings validate on {_VALIDATION:.0%}; "
    "recalibration takes all.",
    *refused,
  ]
  title = "A model on another instrument, and what local stacks are worth"
  return Table(NAME, title, columns, rows, (), notes)


def _cells(found: Mapping[str, Any] | None) -> list[Cell]:
  if found is None:
    return [Cell(math.nan)] * (2 + 3 * len(PAPER.boundaries))
  whole = found["all"]
  estimates = lambda name: [whole[name][b] for b in PAPER.boundaries]
  return [
    _cell(whole["accuracy"], 100, 1),
    *(_cell(e, 1, 1) for e in estimates("boundary_mae_um")),
    *(_cell(e, 100, 0) for e in estimates("interval_coverage")),
    *(Cell(math.nan if w is None else w, decimals=0) for w in estimates("interval_width_um")),
    Cell(100 * whole["calibration_error"], decimals=1),
  ]


def _cell(estimate: Sequence[float | None], scale: int, decimals: int) -> Cell:
  return Cell(*(math.nan if x is None else scale * x for x in estimate), decimals=decimals)


def curves(found: Sequence[Outcome]) -> dict[str, dict[str, list[tuple[int, float, float, float]]]]:
  """Returns panel → way → (local stacks, value, low, high); at 0 stands the model as it is."""
  panels: dict[str, dict[str, list[tuple[int, float, float, float]]]] = {}
  labels = ["Slices right, %", *(f"{title}, µm" for title in PAPER.boundary_titles.values())]
  for column, label in enumerate(labels):
    lines: dict[str, list[tuple[int, float, float, float]]] = {}
    for o in found:
      if o.found is None or o.way == _AT_HOME:
        continue
      cell = _cells(o.found)[column]
      point = (o.stacks, cell.value, cell.low, cell.high)
      for way in (TUNED, RECALIBRATED, HOME) if o.way == HOME else (o.way,):
        lines.setdefault(way, []).append(point)
    panels[label] = lines
  return panels


if __name__ == "__main__":
  main()
