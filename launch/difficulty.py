r"""How hard the phantom is: what single-slice methods reach on its validation stacks.

    python -m launch.difficulty --workdir=runs/difficulty --preset=paper_small \
      --grid texture_contrast=0.8,1.0 --grid reader_disagreement=0.8,1.0

Its two knobs are set by this table alone, before anybody looks at a sequence method or at a test
stack: Inception-V3 and Hames should come near what the paper reports on its test stacks. Lesions are
the harder part and stand apart.
"""

from __future__ import annotations

if __name__ == "__main__":  # before what takes seconds to import
  from tfds_rcm import interrupts

  interrupts.install("launch.difficulty")

import argparse
from collections.abc import Sequence
from pathlib import Path

import rich.box
import rich.console
import rich.table

from launch import sweep
from launch.runners import dispatch, job
from rcm_jax.evaluation import finished_runs, paper_results
from tfds_rcm.errors import UserError
from tfds_rcm.rcm_phantom import anatomy, spec

METHODS = ("inception_v3", "hames")


def points(preset: str, knobs: sweep.Sweep) -> sweep.Sweep:
  """Returns both methods, one seed, on a phantom for each setting of its fields."""
  sources = [
    "+".join([f"rcm_phantom/{preset}", *(f"{name}={value}" for name, value in knob.items())])
    for knob in knobs
  ]
  return [
    {
      "config": f"configs/{method}.py:{preset}",
      "name": method,  # not made longer by what the dataset's name says
      "data.sources": source,
      "seeds": 0,
    }
    for source in sources
    for method in METHODS
  ]


Accuracies = dict[tuple[str, str], float]  # (method, kind of tissue or "all") → share


def validation_accuracy(runs: Path) -> list[tuple[str, Accuracies]]:
  """Returns each dataset's name, and the shares of its validation slices that are right.

  Raises:
    UserError: there is no finished run at or below `runs`.
  """
  table = []
  for found in finished_runs.gather(runs)[0]:
    lesions = lesions_of(found.dataset)
    accuracies = {}
    for method in found.predictions:
      stacks = found.of_split(method, "validation")[0]
      for kind in ("all", *sorted(set(lesions.values()))):
        rows = [p for p in stacks if kind in ("all", lesions.get(p.stack_id))]
        if rows:
          right = sum(int((p.predicted == p.labels).sum()) for p in rows)
          accuracies[method, kind] = right / sum(len(p.labels) for p in rows)
    table.append((found.dataset, accuracies))
  return table


def lesions_of(dataset: str) -> dict[str, str]:
  """Returns each stack's kind of tissue in a phantom, such as "rcm_phantom/demo"."""
  name, _, phantom = dataset.partition("/")
  if name != "rcm_phantom":
    return {}
  return {a.stack_id: a.lesion for a in anatomy.draw_anatomies(spec.named(phantom))}


def main(argv: Sequence[str] | None = None) -> None:
  """Runs the jobs that the command line describes, then prints the table."""
  parser = argparse.ArgumentParser(
    prog="python -m launch.difficulty", description=__doc__.split("\n")[0]
  )
  parser.add_argument("--preset", default="paper_small", help="of configs and phantom")
  parser.add_argument(
    "--grid",
    type=sweep.values_of,
    action="append",
    default=[],
    metavar="FIELD=V,V,…",
    help="fields of the phantom, see tfds_rcm/rcm_phantom/spec.py",
  )
  job.add_arguments(parser)
  args = parser.parse_args(argv)
  with job.told_in_one_line("launch.difficulty"):
    if args.on == "slurm":
      raise UserError("--on=slurm: this is a matter of minutes and runs here; use --on=local")
    dispatch.launch(sweep.fold(points(args.preset, sweep.grid(dict(args.grid)))), args)
    if not args.dry_run:
      _print(validation_accuracy(Path(args.workdir)))


def _print(measured: Sequence[tuple[str, Accuracies]]) -> None:
  table = rich.table.Table(title="Accuracy on validation stacks, %", box=rich.box.SIMPLE_HEAD)
  for name in ("Phantom", "Tissue"):
    table.add_column(name)
  for method in METHODS:
    table.add_column(paper_results.display_name(method), justify="right")
  for name, accuracies in measured:
    for kind in dict.fromkeys(kind for _, kind in accuracies):
      shares = [accuracies.get((method, kind)) for method in METHODS]
      table.add_row(
        name, kind, *("-" if share is None else f"{100 * share:.1f}" for share in shares)
      )
  paper = [f"{paper_results.METHODS[method].accuracy:.1f}" for method in METHODS]
  table.add_row(f"{paper_results.MEASURED_ON}, test stacks", "all", *paper)
  rich.console.Console().print(table)


if __name__ == "__main__":
  main()
