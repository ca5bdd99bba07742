"""Folders with one image a slice, and the order of their names."""

from __future__ import annotations

from collections.abc import Sequence
import itertools
import pathlib
import re
import statistics

import imagecodecs
import numpy as np
from PIL import Image

from tfds_rcm.errors import UserError
from tfds_rcm.formats.raw import (
  RawStack,
  check_path,
  check_size,
  decoding,
  oriented,
  without_alpha,
)

SUFFIXES = frozenset({".bmp", ".png", ".jpg", ".jpeg"})
_FORMATS = ("BMP", "DIB", "PNG", "JPEG")  # a JPEG of several pictures is found among these
_NUMBER = re.compile(r"(\d+)")
_ORIENTATION = 274
# Pillow's conversion from I;16 to L clips at 255: deep modes are scaled by the caller.
_AS_STORED = ("L", "LA", "RGBA", "I", "F")
_COLOURED = ("RGB", "RGBX", "P", "YCbCr")


def read_image(path: pathlib.Path, *, keep_colour: bool = False) -> np.ndarray:
  """Decodes a BMP, PNG or JPEG; 16-bit values stay as stored.

  1, 2 and 4 bits are spread over 0 to 255, palettes looked up, and the orientation in
  EXIF is obeyed. An alpha channel that is the same everywhere is dropped. Colour of 8
  bits becomes gray by luma unless it is to be kept.

  Raises:
    UserError: if the file is damaged, empty or too large, animated, transparent in
      part, or stored in printing inks.
  """
  check_path(path)
  with decoding(path), Image.open(path, formats=_FORMATS) as image:
    check_size(path, image.height, image.width)
    frames = getattr(image, "n_frames", 1)
    if frames > 1:
      raise UserError(f"{path}: holds {frames} images, expected one slice; save each on its own")
    # Pillow keeps 8 of the 16 bits of a coloured PNG.
    pixels = _deep_png(path) if image.format == "PNG" else None
    if pixels is None:
      pixels = _pixels(path, image, keep_colour)
    if pixels.ndim == 3 and pixels.shape[-1] in (2, 4):
      pixels = without_alpha(str(path), pixels)
    return oriented(pixels, image.getexif().get(_ORIENTATION, 1))


def _pixels(path: pathlib.Path, image: Image.Image, keep_colour: bool) -> np.ndarray:
  mode = image.mode
  if mode == "PA" or ("transparency" in image.info and mode in ("1", "L", "P", "RGB")):
    return np.asarray(image.convert("RGBA"))
  if mode == "1" or (mode in _COLOURED and not keep_colour):
    return np.asarray(image.convert("L"))
  if mode in _COLOURED:
    return np.asarray(image.convert("RGB"))
  if mode in _AS_STORED or mode.startswith("I;16"):
    return np.asarray(image)
  raise UserError(
    f"{path}: its colours are stored as {mode}, expected gray, palette, RGB or YCbCr; export it "
    "as gray"
  )


def _deep_png(path: pathlib.Path) -> np.ndarray | None:
  """A PNG of 16 bits a channel with several channels, None if it is another."""
  with path.open("rb") as stream:
    header = stream.read(26)
  bits, kind = header[24:]
  if bits != 16 or kind not in (2, 4, 6):
    return None
  return imagecodecs.png_decode(path.read_bytes())


def open_images(paths: Sequence[pathlib.Path], *, keep_colour: bool = False) -> RawStack:
  """A stack of BMP, PNG or JPEG files, in the order given; colour as `read_image`."""
  return RawStack(
    names=[str(p) for p in paths],
    read=lambda t: read_image(paths[t], keep_colour=keep_colour),
  )


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
  steps = [set(_steps(column)) for column in columns]
  if any(len(step) == 1 and min(step) > 0 for step in steps):
    return ordered
  varying = [c for c, step in zip(columns, steps) if step != {0}]
  if not varying:
    raise UserError(f"{ordered[1]}: no number tells its place in the stack; number the files")
  raise _gap(ordered, varying[-1])


def _steps(column: Sequence[int]) -> list[int]:
  """Differences of whole numbers of any size: a name may hold a time stamp of 20 digits."""
  return [after - before for before, after in itertools.pairwise(column)]


def _gap(ordered: Sequence[pathlib.Path], column: Sequence[int]) -> UserError:
  steps = _steps(column)
  usual = statistics.median_low(steps)
  at = next((i for i, step in enumerate(steps) if step != usual), 0)
  what = f"number {column[at] + usual} is missing" if steps[at] > usual else "a number is doubled"
  return UserError(
    f"{ordered[at + 1]}: gap in numbering after {ordered[at].name} ({what}); restore the slice, "
    "or renumber the files if none was lost"
  )
