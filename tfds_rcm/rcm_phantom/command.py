"""The command line of the phantom, a part of `python -m tfds_rcm.prepare`."""

from __future__ import annotations

import argparse
import pathlib

from rich.console import Console

from tfds_rcm import progress
from tfds_rcm.errors import UserError, printable
from tfds_rcm.rcm_phantom import anatomy as anatomy_lib
from tfds_rcm.rcm_phantom import annotators, make_dataset, preview, render, spec


def add_arguments(parser: argparse.ArgumentParser, name: str) -> None:
  """Adds the phantom's options, besides --data_dir."""
  del name
  add = parser.add_argument
  add(
    "--preset",
    default="demo",
    help=f"{' or '.join(spec.PRESETS)}, or a variation: demo+skin_types=1,2+depth_step_um=1.5",
  )
  add("--seed", type=int, default=0, help="another seed, another phantom of the same kind")
  add("--preview", type=pathlib.Path, help="draw a stack into this image, write no dataset")
  add("--stack", help="which stack to draw, such as p003_s1 (default: one that has all strata)")


def run(name: str, args: argparse.Namespace, data_dir: pathlib.Path) -> None:
  """Prepares the dataset, or draws one of its stacks.

  Raises:
    UserError: no such preset or stack.
    OSError: what is to be written cannot be.
  """
  if args.preview is not None:
    _preview(spec.named(spec.with_seed(args.preset, args.seed)), args.stack, args.preview)
    print(printable(f"preview     {args.preview}"))
    return
  with progress.shown(name, Console(stderr=True, highlight=False, markup=False)) as advance:
    folder = make_dataset.prepare(args.preset, data_dir, seed=args.seed, progress=advance)
  print(printable(f"dataset     {folder}"))


def _preview(phantom: spec.Phantom, stack_id: str | None, path: pathlib.Path) -> None:
  for anatomy in anatomy_lib.draw_anatomies(phantom):
    plan = annotators.plan_stack(phantom, anatomy)
    complete = len(set(plan.labels.tolist())) == 4 and not anatomy.overlong
    if anatomy.stack_id == stack_id or (stack_id is None and complete):
      break
  else:
    raise UserError(f"--stack={stack_id}: no such stack; the first is p000_s0")
  slices = list(render.render_stack(phantom, anatomy, plan))
  title = (
    f"phantom {anatomy.stack_id}: {anatomy.site}, lesion: {anatomy.lesion}, field"
    f" {phantom.size_px * phantom.pixel_um:.0f} um"
  )
  preview.save_sheet(preview.contact_sheet(slices, plan.labels, plan.depth_um, title), path)
