r"""The study: the paper's tables at the paper's scale, on the phantom, and what lies around them.

    python -m launch.study --workdir=runs/study --out=docs/study [--preset=gpu] [--seed=1]

Trains all 13 methods of Table 1 and our two ordered ones, writes tables, figures and findings, then one
table for each ablation. Whatever ended before is not done again when the command is repeated.

    python -m launch.study --evaluate --workdir=runs/evaluation

trains all rows on the five evaluation phantoms instead, which are looked at once.
"""

from __future__ import annotations

if __name__ == "__main__":  # before what takes seconds to import
  from tfds_rcm import interrupts

  interrupts.install("launch.study")

import argparse
from collections.abc import Sequence
import dataclasses
from pathlib import Path
import time

from launch import sweep, table1
from launch.replication import ablations, evaluation, findings, seeds
from launch.runners import dispatch
from launch.runners import job as job_lib
from rcm_jax.evaluation import finished_runs
from rcm_jax.reporting import console_table, paper_tables, study_report, table_formats
from rcm_jax.runtime import files
from tfds_rcm.errors import UserError
from tfds_rcm.rcm_phantom import spec

PRESETS = {"cpu": "paper_small", "gpu": "paper"}  # presets of the configs
CORE = "table"
_ONCE_A_CNN = ("inception_v3", "iv3_context", "hames", "kaur")


def core(preset: str, seeds: int, cnn_seeds: int) -> sweep.Sweep:
  """Returns the methods of Table 1 and those of ours, each with its seeds, and the prior."""
  counts = dict.fromkeys((*table1.METHODS, *findings.METHODS), seeds)
  counts |= dict.fromkeys(_ONCE_A_CNN, cnn_seeds) | {table1.PRIOR: 1}
  return [
    {"config": f"configs/{method}.py:{preset}", "seeds": seed}
    for method, count in counts.items()
    for seed in range(count)
  ]


def on_phantom(points: sweep.Sweep, source: str, seed: int) -> sweep.Sweep:
  """Returns the points on another phantom of the same kind, and with other seeds of training."""
  if not seed:
    return points
  moved = []
  for point in points:
    change = {"data.sources": (source,), "cnn.seed": 1000 * seed, **point}
    moved.append(change | {"seeds": 1000 * seed + point["seeds"], "name": _name(point)})
  return moved


def _name(point: sweep.Point) -> str:
  return point.get("name") or sweep.load(point["config"]).name


def main(argv: Sequence[str] | None = None) -> None:
  """Runs the parts of the study that the command line names."""
  parser = argparse.ArgumentParser(
    prog="python -m launch.study", description=__doc__.split("\n")[0]
  )
  parser.add_argument("--preset", choices=PRESETS, default="cpu")
  parser.add_argument(
    "--out",
    help="directory of tables and figures; default: WORKDIR/tables, of --evaluate "
    f"{evaluation.OUT}, which knows what saw its phantoms",
  )
  parser.add_argument("--seeds", type=int, default=5, help="of sequence heads")
  parser.add_argument("--cnn_seeds", type=int, default=3, help="of CNNs and texture classifiers")
  parser.add_argument("--seed", type=int, default=0, help="of the phantom and of all training")
  known = [CORE, *ablations.ABLATIONS, *evaluation.PARTS]
  parser.add_argument("--parts", nargs="+", choices=known, help="of the study; default: all")
  parser.add_argument("--evaluate", action="store_true", help="on the evaluation phantoms")
  job_lib.add_arguments(parser)
  args = parser.parse_args(argv)
  with job_lib.told_in_one_line("launch.study"):
    if min(args.seeds, args.cnn_seeds) < 1:
      raise UserError("--seeds and --cnn_seeds: each must be 1 or more")
    if args.on == "slurm":
      raise UserError("--on=slurm: the study gathers what it starts; use launch.sweep there")
    preset = PRESETS[args.preset]
    possible = evaluation.PARTS if args.evaluate else (CORE, *ablations.ABLATIONS)
    parts = args.parts or possible
    args.out = args.out or (evaluation.OUT if args.evaluate else f"{args.workdir}/tables")
    if wrong := sorted(set(parts) - set(possible)):
      raise UserError(f"--parts: {', '.join(wrong)}; here there are {', '.join(possible)}")
    if args.evaluate:
      for part in parts:
        evaluate(part, preset, args)
      return
    source = f"rcm_phantom/{spec.with_seed(preset, args.seed)}"
    for part in parts:
      _run(part, preset, source, args)


def evaluate(part: str, preset: str, args: argparse.Namespace) -> None:
  """Runs one part of the evaluation on all its phantoms, and writes the tables after each."""
  workdir, out = Path(args.workdir), Path(args.out)
  for seed in spec.EVALUATION_SEEDS:
    source = f"rcm_phantom/{spec.with_seed(preset, seed)}"
    folded = sweep.fold(on_phantom(evaluation.points(part, preset), source, seed))
    below = lambda name, seed=seed: f"{seed}/{name}" if name else None
    jobs = [dataclasses.replace(j, name=below(j.name), after=below(j.after)) for j in folded]
    print(f"{part}, phantom {seed}: ", end="")
    if not args.dry_run:
      evaluation.spend(out, seed, jobs)
    dispatch.launch(jobs, args)
    if not args.dry_run:
      evaluation.write(workdir, out)


def _run(part: str, preset: str, source: str, args: argparse.Namespace) -> None:
  if part == CORE:
    points = core(preset, args.seeds, args.cnn_seeds)
  else:
    points = ablations.ABLATIONS[part](preset, source)
  folded = [
    dataclasses.replace(
      job, name=f"{part}/{job.name}", after=f"{part}/{job.after}" if job.after else None
    )
    for job in sweep.fold(on_phantom(points, source, args.seed))
  ]
  print(f"{part}: ", end="")
  started = time.monotonic()
  dispatch.launch(folded, args)
  if args.dry_run:
    return
  print(f"{part}: {time.monotonic() - started:.0f} s", flush=True)
  workdir, out = Path(args.workdir), Path(args.out)
  if part == CORE:
    (found,), _ = finished_runs.gather(workdir / CORE)
    rows = study_report.write(found, out)
    console_table.print_table(rows, title=found.dataset)
    files.write_text(out / "findings.md", findings.to_markdown(rows, found.dataset))
  else:
    _write_ablation(part, folded, workdir, out)


def _write_ablation(part: str, folded: Sequence[job_lib.Job], workdir: Path, out: Path) -> None:
  """Writes one table: a block a job, or groups of seeds."""
  runs = {job.name: finished_runs.gather(workdir / job.name)[0][0] for job in folded}
  title = (ablations.ABLATIONS[part].__doc__ or part).split("\n")[0]
  if part == "seeds":
    (job,) = folded
    table = seeds.table(runs[job.name], job.fields["name"], part, title)
  else:
    table = paper_tables.settings_table(part, title, _by_setting(folded, runs))
  folder = out / "ablations"
  folder.mkdir(parents=True, exist_ok=True)
  files.write_text(folder / f"{part}.md", table_formats.to_markdown(table))
  files.write_text(folder / f"{part}.csv", table_formats.to_csv(table))
  print(f"{folder / part}.md is written", flush=True)


def _by_setting(folded, runs):
  found = []
  for job in folded:
    run = runs[job.name]
    if len({other.dataset for other in runs.values()}) == 1 and job.fields["pipeline"] == "head":
      run.predictions.pop("inception_v3", None)  # of the one CNN that all share
    found.append((_setting(job), run.dataset, study_report.estimate_methods(run)))
  return found


def _setting(job: job_lib.Job) -> str:
  """Says what makes a job differ from its config, besides what its members differ in."""
  told = {"name", "cnn.seed", "data.test_sources", *sweep.FOLDED}
  changes = [f"{name}={_shown(v)}" for name, v in job.overrides.items() if name not in told]
  return ", ".join([Path(job.config.partition(":")[0]).stem, *changes])


def _shown(value: object) -> str:
  return "+".join(map(str, value)) if isinstance(value, tuple) else str(value)


if __name__ == "__main__":
  main()
