"""How often a model says of a stack that it is unlike those of training: of such stacks, and of others.

    python -m launch.unfamiliar --checkpoint=runs/ordered --source=rcm_phantom/paper_small \
      --data_dir=runs/data [--stacks=40]

Takes test stacks of a prepared dataset, changes them in ways that no stack should be changed, and
prints a table in Markdown: the share of stacks with the warning `unfamiliar`, and by which question.
"""

from __future__ import annotations

if __name__ == "__main__":  # before what takes seconds to import
  from tfds_rcm import interrupts

  interrupts.install("launch.unfamiliar")

import argparse
from collections.abc import Callable, Sequence
import dataclasses
import pathlib

import numpy as np
from PIL import Image
from scipy import ndimage
from sklearn import datasets

from launch.runners import job
from rcm_jax.data import records
from rcm_jax.inference import altered, familiarity
from rcm_jax.inference import bundle as bundle_lib
from rcm_jax.inference.predictor import Predictor
from tfds_rcm import prepare
from tfds_rcm.errors import UserError
from tfds_rcm.rcm_phantom import spec
from tfds_rcm.record import Record, read_record

Change = Callable[[np.ndarray, np.random.Generator], np.ndarray]
_BLUR_PX = 2.0  # at the model's scale


def _fields_of_one_depth(slices: np.ndarray, rng: np.random.Generator) -> np.ndarray:
  """Tiles of one slice's neighbourhood: turned, mirrored and moved so far that none overlaps."""
  image = slices[rng.integers(len(slices) // 4, 3 * len(slices) // 4)]
  side = min(image.shape)
  square = image[:side, :side]
  turned = (np.rot90(square, int(rng.integers(4))) for _ in slices)
  return np.stack([np.roll(t, rng.integers(side, size=2), (0, 1)) for t in turned])


def _photograph(slices: np.ndarray, rng: np.random.Generator) -> np.ndarray:
  gray = datasets.load_sample_image("china.jpg").mean(2)
  height, width = slices.shape[1:]
  whole = Image.fromarray(gray.astype(np.uint8)).resize((4 * width, 4 * height))
  moved = np.asarray(whole)
  starts = [(rng.integers(3 * height), rng.integers(3 * width)) for _ in slices]
  return np.stack([moved[y : y + height, x : x + width] for y, x in starts])


CHANGES: dict[str, Change] = {
  "as they are": lambda slices, rng: slices,
  "magnified twice": lambda slices, rng: altered.zoom(slices, 2.0),
  "shrunk to a half": lambda slices, rng: altered.zoom(slices, 0.5),
  "blurred by 2 px": lambda slices, rng: ndimage.gaussian_filter(slices, (0, _BLUR_PX, _BLUR_PX)),
  "one slice repeated": lambda slices, rng: np.repeat(
    slices[len(slices) // 2][None], len(slices), 0
  ),
  "fields of one depth": _fields_of_one_depth,
  "shuffled slices": lambda slices, rng: slices[rng.permutation(len(slices))],
  "upside down": lambda slices, rng: slices[::-1].copy(),
  "a photograph": _photograph,
  "one gray level": lambda slices, rng: np.full_like(slices, 90),
  "all black": lambda slices, rng: np.zeros_like(slices),
  "all white": lambda slices, rng: np.full_like(slices, 255),
  "noise": lambda slices, rng: rng.integers(0, 256, slices.shape, dtype=np.uint8),
}


def judge(predictor: Predictor, stacks: Sequence[Record], change: Change) -> list[tuple[str, ...]]:
  """Returns by stack the questions that make a changed stack unfamiliar."""
  rng = np.random.default_rng(0)
  found = []
  for stack in stacks:
    slices = change(np.stack([image[..., 0] for image in stack.slices]), rng)
    said = predictor.predict(slices, stack.depth_um, pixel_um=stack.pixel_um)
    text = " ".join(w.message for w in said.warnings if w.code == "unfamiliar")
    found.append(tuple(q for q in familiarity.QUESTIONS if familiarity.reasons((q,)) in text))
  return found


def _line(name: str, found: Sequence[tuple[str, ...]]) -> str:
  share = lambda hits: f"{np.mean(hits):.0%}"
  by = (share([question in one for one in found]) for question in familiarity.QUESTIONS)
  return f"| {name} | {share([bool(one) for one in found])} | {' | '.join(by)} |"


def _test_stacks(source: str, data_dir: str | None, count: int) -> list[Record]:
  builder = records.open_builder(source, data_dir)
  read = builder.as_data_source("test")
  return [read_record(read[i]) for i in range(min(count, len(read)))]


def main(argv: Sequence[str] | None = None) -> None:
  """Prints the table."""
  parser = argparse.ArgumentParser(prog="python -m launch.unfamiliar", description=__doc__)
  parser.formatter_class = argparse.RawDescriptionHelpFormatter
  option = parser.add_argument
  option("--checkpoint", type=pathlib.Path, required=True, help="work directory of a run")
  option("--source", required=True, help="prepared dataset, such as rcm_phantom/paper_small")
  option("--data_dir", help="where TFDS keeps data sets; its default if not given")
  option("--stacks", type=int, default=40, help="test stacks that are looked at")
  args = parser.parse_args(argv)
  with job.told_in_one_line("launch.unfamiliar"):
    bundle = bundle_lib.load(args.checkpoint)
    if bundle.familiar is None:
      raise UserError(
        f"{args.checkpoint}: this model was kept without what is familiar; run it again"
      )
    predictor = Predictor(bundle)
    stacks = _test_stacks(args.source, args.data_dir, args.stacks)
    print(f"{len(stacks)} test stacks of {args.source}\n")
    print(f"| stacks | unfamiliar | {' | '.join(familiarity.QUESTIONS)} |")
    print("|---" * (2 + len(familiarity.QUESTIONS)) + "|")
    for name, change in CHANGES.items():
      print(_line(name, judge(predictor, stacks, change)), flush=True)
    if args.source.startswith("rcm_phantom/"):
      preset = args.source.partition("/")[2]
      phantom = spec.named(preset)
      for name, change in (
        ("twice the noise", f"noise={2 * phantom.noise:g}"),
        ("pixels half as wide", f"pixel_um={phantom.pixel_um / 2:g}"),
        ("pixels twice as wide", f"pixel_um={2 * phantom.pixel_um:g}"),
      ):
        prepare.prepare_phantom(f"{preset}+{change}", args.data_dir)
        others = _test_stacks(f"rcm_phantom/{preset}+{change}", args.data_dir, args.stacks)
        unsaid = [dataclasses.replace(stack, pixel_um=None) for stack in others]
        print(_line(name, judge(predictor, unsaid, CHANGES["as they are"])), flush=True)


if __name__ == "__main__":
  main()
