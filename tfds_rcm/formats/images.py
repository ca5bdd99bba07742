"""Folders with one image a slice, and the order of their names."""

from __future__ import annotations

from collections.abc import Sequence
import pathlib
import re

import numpy as np
from PIL import Image

from tfds_rcm.errors import UserError
from tfds_rcm.formats.raw import RawStack, check_path, check_size, decoding

SUFFIXES = frozenset({".bmp", ".png", ".jpg", ".jpeg"})
_NUMBER = re.compile(r"(\d+)")
_DEEP_MODES = ("I", "F")


def read_image(path: pathlib.Path) -> np.ndarray:
  """Decodes a BMP, PNG or JPEG; 16-bit values stay as stored.

  Raises:
    UserError: if the file is damaged, empty or too large.
  """
  check_path(path)
  with decoding(path), Image.open(path) as image:
    check_size(path, image.height, image.width)
    # Pillow's conversion from I;16 to L clips at 255: deep modes are scaled by the caller.
    if image.mode != "L" and not image.mode.startswith(_DEEP_MODES):
      image = image.convert("L")
    return np.asarray(image)


def open_images(paths: Sequence[pathlib.Path]) -> RawStack:
  """A stack of BMP, PNG or JPEG files, in the order given."""
  return RawStack(names=[str(p) for p in paths], read=lambda t: read_image(paths[t]))


def in_natural_order(paths: Sequence[pathlib.Path]) -> list[pathlib.Path]:
  """Sorts a folder's slices by the number in their names.

  v2 comes before v10. The names may differ in numbers only. One of the numbers
  must rise by the same step from file to file: a slice that got lost would shift
  the depth of all that follow.

  Raises:
    UserError: if a name does not fit the others, or a number is missing or doubled.
  """
  if len(paths) < 2:
    return list(paths)
  parts = {p: _NUMBER.split(p.stem.lower()) for p in paths}
  texts = {p: tuple(split[::2]) for p, split in parts.items()}
  common = max(set(texts.values()), key=lambda text: (list(texts.values()).count(text), text))
  for path in sorted(paths):
    if texts[path] != common:
      example = next(p.name for p in sorted(paths) if texts[p] == common)
      raise UserError(
        f"{path}: does not fit names like {example}; move files that are no slices of this stack "
        "elsewhere"
      )
  numbers = {p: [int(n) for n in split[1::2]] for p, split in parts.items()}
  ordered = sorted(paths, key=lambda p: numbers[p])
  columns = list(zip(*(numbers[p] for p in ordered)))
  steps = [set(np.diff(column).tolist()) for column in columns]
  if any(len(step) == 1 and min(step) > 0 for step in steps):
    return ordered
  varying = [c for c, step in zip(columns, steps) if step != {0}]
  if not varying:
    raise UserError(f"{ordered[1]}: no number tells its place in the stack; number the files")
  raise _gap(ordered, varying[-1])


def _gap(ordered: Sequence[pathlib.Path], column: Sequence[int]) -> UserError:
  steps = np.diff(column)
  usual = int(np.median(steps))
  at = next((i for i, step in enumerate(steps) if step != usual), 0)
  what = f"number {column[at] + usual} is missing" if steps[at] > usual else "a number is doubled"
  return UserError(
    f"{ordered[at + 1]}: gap in numbering after {ordered[at].name} ({what}); restore the slice, "
    "or renumber the files if none was lost"
  )
