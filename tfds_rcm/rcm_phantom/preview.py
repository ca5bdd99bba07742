"""A contact sheet: the slices of one stack side by side, their strata marked in color."""

from __future__ import annotations

from collections.abc import Sequence
import pathlib

from jaxtyping import Float, Int, UInt8
import numpy as np
from PIL import Image, ImageDraw

from tfds_rcm import record as record_lib

# Colors that stay apart for color-blind readers (Okabe and Ito).
_COLORS = ((230, 159, 0), (86, 180, 233), (0, 158, 115), (204, 121, 167))
_PAGE_PX = 1500
_STRIP_PX = 16
_GAP_PX = 4


def contact_sheet(
  slices: Sequence[UInt8[np.ndarray, "height width"]],
  labels: Int[np.ndarray, " T"],
  depth_um: Float[np.ndarray, " T"],
  title: str,
) -> Image.Image:
  """Draws every slice with its depth over a strip in its stratum's color, row by row.

  Args:
    slices: T gray images, shallow first.
    labels: T indices into `features.LABELS`.
    depth_um: T depths in µm.
    title: written above, beside the legend.
  """
  columns = max(1, round(np.sqrt(1.25 * len(slices))))
  rows = -(-len(slices) // columns)
  side = _PAGE_PX // columns - _GAP_PX
  pitch = side + _STRIP_PX + _GAP_PX
  top = 2 * _STRIP_PX + _GAP_PX
  page = Image.new("RGB", (columns * (side + _GAP_PX) + _GAP_PX, top + rows * pitch), "white")
  draw = ImageDraw.Draw(page)
  draw.text((_GAP_PX, 2), title, "black")
  for index, (name, color) in enumerate(zip(record_lib.LABELS, _COLORS)):
    left = _GAP_PX + 130 * index
    draw.rectangle((left, _STRIP_PX + 3, left + 11, _STRIP_PX + 14), color)
    draw.text((left + 16, _STRIP_PX + 2), name, "black")
  for index, (gray, label, depth) in enumerate(zip(slices, labels, depth_um)):
    row, column = divmod(index, columns)
    left, upper = _GAP_PX + column * (side + _GAP_PX), top + row * pitch
    tile = Image.fromarray(gray).resize((side, side), Image.Resampling.LANCZOS)
    page.paste(tile.convert("RGB"), (left, upper))
    strip = (left, upper + side, left + side - 1, upper + side + _STRIP_PX - 1)
    draw.rectangle(strip, _COLORS[label])
    draw.text((left + 3, upper + side + 2), f"{depth:.0f} um", "black")
  return page


def tiles(
  images: Sequence[UInt8[np.ndarray, "height width"]], titles: Sequence[str], columns: int = 6
) -> Image.Image:
  """Draws images side by side, each with a line below it."""
  columns = min(columns, len(images))
  side = _PAGE_PX // columns - _GAP_PX
  pitch = side + _STRIP_PX + _GAP_PX
  rows = -(-len(images) // columns)
  page = Image.new("L", (columns * (side + _GAP_PX) + _GAP_PX, rows * pitch + _GAP_PX), 255)
  draw = ImageDraw.Draw(page)
  for index, (image, title) in enumerate(zip(images, titles, strict=True)):
    row, column = divmod(index, columns)
    left, upper = _GAP_PX + column * (side + _GAP_PX), _GAP_PX + row * pitch
    page.paste(Image.fromarray(image).resize((side, side), Image.Resampling.BICUBIC), (left, upper))
    draw.text((left + 2, upper + side + 2), title, 0)
  return page


def save_sheet(page: Image.Image, path: str | pathlib.Path) -> None:
  """Writes a contact sheet, in the format that the file's name tells."""
  pathlib.Path(path).parent.mkdir(parents=True, exist_ok=True)
  page.save(path)
