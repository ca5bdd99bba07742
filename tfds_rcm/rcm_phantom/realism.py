r"""How far simulated slices are from real ones: figures side by side, and a sheet to look at.

    python -m tfds_rcm.rcm_phantom.realism paper --sheet=sheet.png
    python -m tfds_rcm.rcm_phantom.realism FOLDER_OF_IMAGES --pixel_um=0.5

The published figures were measured on 222 slices that journals print, at 5 to 6 µm a pixel, most of
lesions near the junction or at unknown depth, contrast in part stretched: only those of coarse
structure are robust. They are to be near, not to be hit.
"""

from __future__ import annotations

if __name__ == "__main__":  # before what takes seconds to import
  from tfds_rcm import interrupts

  interrupts.install("tfds_rcm.rcm_phantom.realism")

import argparse
from collections.abc import Iterator, Sequence
import dataclasses
import pathlib
import sys

import numpy as np
from PIL import Image
import rich.box
import rich.console
import rich.table

from tfds_rcm import record as record_lib
from tfds_rcm import stack_io
from tfds_rcm.errors import UserError
from tfds_rcm.rcm_phantom import anatomy as anatomy_lib
from tfds_rcm.rcm_phantom import annotators, image_statistics, preview, render, spec

# Measure → (how it is named, lowest and highest median of the published slices' sources).
PUBLISHED = {
  "coarse": ("contrast above 125 µm", (0.22, 0.27)),
  "medium": ("contrast, 35 to 60 µm", (0.09, 0.18)),
  "length_um": ("autocorrelation length, µm", (30, 60)),
  "slope": ("slope of power", (-2.8, -2.2)),
  "skewness": ("skewness", (0.7, 1.3)),
}
PUBLISHED_MEAN = (64, 26)  # and standard deviation over slices
_SLICES = 3  # of each stratum and stack


@dataclasses.dataclass(frozen=True)
class Slice:
  """A slice to be judged.

  Attributes:
    group: stratum, or the kind of tissue; where its figures stand.
    title: says in the sheet what it is.
    image: gray levels.
    pixel_um: µm a pixel.
  """

  group: str
  title: str
  image: np.ndarray
  pixel_um: float


def of_phantom(phantom: spec.Phantom, stacks: int) -> Iterator[Slice]:
  """Renders some slices of each stratum of some patients' first training stacks."""
  patients = set()
  for anatomy in anatomy_lib.draw_anatomies(phantom):
    if anatomy.patient_id in patients or anatomy.split != "train":
      continue
    if len(patients) == stacks:
      return
    patients.add(anatomy.patient_id)
    plan = annotators.plan_stack(phantom, anatomy)
    wanted = []
    for stratum in range(len(record_lib.LABELS)):
      (rows,) = np.nonzero(plan.labels == stratum)
      wanted += [
        rows[round(at * (len(rows) - 1))] for at in np.linspace(0.1, 0.9, _SLICES) if len(rows)
      ]
    wanted = sorted(set(wanted))
    for index, image in zip(wanted, render.render_stack(phantom, anatomy, plan, wanted)):
      label = record_lib.LABELS[plan.labels[index]]
      title = f"{anatomy.stack_id} {anatomy.lesion} {label} {plan.depth_um[index]:.0f} um"
      yield Slice(label, title, image, phantom.pixel_um)


def of_folder(folder: pathlib.Path, pixel_um: float) -> Iterator[Slice]:
  """Reads every image below a folder.

  Raises:
    UserError: there is none, or one cannot be read.
  """
  paths = sorted(p for p in folder.rglob("*") if p.suffix.lower() in stack_io.images.SUFFIXES)
  if not paths:
    raise UserError(f"{folder}: no images; expected PNG, TIFF, BMP or JPEG files in it or below")
  for path in paths:
    try:
      with Image.open(path) as opened:
        image = np.asarray(opened.convert("L"))
    except OSError as error:
      raise UserError(f"{path}: no image that can be read ({error})") from error
    yield Slice(path.parent.name, path.stem, image, pixel_um)


def table(slices: Sequence[Slice]) -> rich.table.Table:
  """Sets medians by group, and quartiles over all slices, beside the published figures."""
  measured = [image_statistics.measure(s.image, s.pixel_um) for s in slices]
  groups = list(dict.fromkeys(s.group for s in slices))
  table = rich.table.Table(box=rich.box.SIMPLE_HEAD, title=f"{len(slices)} slices, medians")
  table.add_column("")
  for name in ("published", *groups, "all", "quartiles"):
    table.add_column(name.replace("_", " "), justify="right")
  for measure, (name, (low, high)) in PUBLISHED.items():
    values = np.array([getattr(m, measure) for m in measured])
    digits = 0 if measure == "length_um" else 2
    of_groups = [values[[s.group == group for s in slices]] for group in groups]
    medians = [f"{_median(v):.{digits}f}" for v in (*of_groups, values)]
    quartiles = np.nanpercentile(values, (25, 75)) if np.isfinite(values).any() else (np.nan,) * 2
    table.add_row(
      name, f"{low} to {high}", *medians, " to ".join(f"{q:.{digits}f}" for q in quartiles)
    )
  means = np.array([m.mean for m in measured])
  cells = [
    f"{v.mean():.0f} ± {v.std():.0f}"
    for v in (*(means[[s.group == group for s in slices]] for group in groups), means)
  ]
  table.add_row("mean ± sd over slices", "{} ± {}".format(*PUBLISHED_MEAN), *cells, "")
  return table


def _median(values: np.ndarray) -> float:
  return float(np.nanmedian(values)) if np.isfinite(values).any() else np.nan


def main(argv: Sequence[str] | None = None) -> int:
  """Runs the command line; returns the exit code."""
  parser = argparse.ArgumentParser(
    prog="python -m tfds_rcm.rcm_phantom.realism", description=__doc__.split("\n")[0]
  )
  parser.add_argument("what", help="a phantom, such as paper+seed=1, or a folder of images")
  parser.add_argument("--stacks", type=int, default=12, help="of a phantom (default: 12)")
  parser.add_argument("--pixel_um", type=float, default=0.5, help="of images (default: 0.5)")
  parser.add_argument("--sheet", type=pathlib.Path, help="draw the slices into this image")
  parser.add_argument("--field_um", type=float, help="show this much of each slice in the sheet")
  args = parser.parse_args(argv)
  try:
    folder = pathlib.Path(args.what)
    if folder.is_dir():
      slices = list(of_folder(folder, args.pixel_um))
    else:
      slices = list(of_phantom(spec.named(args.what), args.stacks))
    rich.console.Console(width=160).print(table(slices))
    if args.sheet is not None:
      shown = [_middle(s, args.field_um) for s in slices]
      preview.save_sheet(preview.tiles(shown, [s.title for s in slices]), args.sheet)
      print(f"sheet       {args.sheet}")
  except (UserError, OSError) as error:
    print(f"error: {error}", file=sys.stderr)
    return 1
  return 0


def _middle(piece: Slice, field_um: float | None) -> np.ndarray:
  if field_um is None:
    return piece.image
  side = max(8, round(field_um / piece.pixel_um))
  rows, columns = (slice(max(0, (n - side) // 2), (n + side) // 2) for n in piece.image.shape)
  return piece.image[rows, columns]


if __name__ == "__main__":
  sys.exit(main())
