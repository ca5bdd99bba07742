"""Physical scale: every slice that a model sees shows a square field of one size in µm.

A stack that tells its pixel size is cut and resampled to that field, with a filter against
aliasing. One that covers less is filled up by mirroring, down to half of the field. Without any
pixel size known the square of a slice is taken as it is, and nobody can tell whether it fits.
"""

from __future__ import annotations

import dataclasses
import math

from jaxtyping import UInt8
import numpy as np
from PIL import Image

from tfds_rcm.errors import UserError

SAME_FIELD = 0.05  # relative; fields that differ by less count as one scale (1000 and 1024 px)
LEAST_SHARE = 0.5  # of the field's side that a stack must cover
Number = float | int


@dataclasses.dataclass(frozen=True)
class Scale:
  """What a model sees of a slice.

  Attributes:
    image_size: side of the square in pixels.
    field_um: side of the square in µm; None if no stack told its pixel size.
  """

  image_size: int
  field_um: Number | None

  @property
  def pixel_um(self) -> Number | None:
    """Side of a pixel in µm."""
    return None if self.field_um is None else self.field_um / self.image_size

  def __str__(self) -> str:
    if self.field_um is None:
      return f"{self.image_size} px of unknown size"
    return f"{self.image_size} px on {self.field_um:.4g} µm"


def field_of(shape: tuple[int, int], pixel_um: Number) -> Number:
  """Returns the side in µm of the largest square in an image."""
  return min(shape) * pixel_um


def same_field(one: Number, other: Number) -> bool:
  """Whether two fields count as one scale."""
  return abs(one - other) <= SAME_FIELD * max(one, other)


def tile_grid(field_um: Number, wanted_um: Number, most: int) -> int:
  """Returns how many tiles a side fit into a field without overlap: 1 to `most`."""
  return max(1, min(most, math.floor(field_um * (1 + SAME_FIELD) / wanted_um)))


def tiles(
  image: UInt8[np.ndarray, "h w"], pixel_um: Number | None, scale: Scale, *, a_side: int = 1
) -> UInt8[np.ndarray, "n s s"]:
  """Cuts the central square into views of the model's scale, row by row.

  Args:
    image: a slice.
    pixel_um: of the slice; None takes its central square as it is.
    scale: of the model.
    a_side: tiles along a side, spread evenly; 1 is the centre.

  Raises:
    UserError: the slice covers less than half of the field.
  """
  side = min(image.shape)
  known = pixel_um is not None and scale.field_um is not None
  wanted = scale.field_um / pixel_um if known else side
  if known and same_field(side * pixel_um, scale.field_um):
    wanted = side
  if wanted > side:
    if side < LEAST_SHARE * wanted:
      raise UserError(
        f"a field of {side * pixel_um:.4g} µm is less than {LEAST_SHARE:.0%} of the "
        f"{scale.field_um:.4g} µm that the model sees; image a larger field"
      )
    image, side = _mirrored(image, math.ceil(wanted)), math.ceil(wanted)
  top, left = (image.shape[0] - side) // 2, (image.shape[1] - side) // 2
  square = image[top : top + side, left : left + side]
  starts = np.linspace(0, side - wanted, a_side) if a_side > 1 else [(side - wanted) / 2]
  return np.stack(
    [_resampled(square, x, y, wanted, scale.image_size) for y in starts for x in starts]
  )


def _resampled(square: np.ndarray, x: Number, y: Number, wanted: Number, size: int) -> np.ndarray:
  if square.shape == (size, size) and wanted == size:
    return square
  whole = Image.fromarray(square)
  box = (x, y, x + wanted, y + wanted)
  return np.asarray(whole.resize((size, size), Image.Resampling.BILINEAR, box=box))


def _mirrored(image: np.ndarray, side: int) -> np.ndarray:
  """Fills a central square up to `side` pixels."""
  small = min(image.shape)
  top, left = (image.shape[0] - small) // 2, (image.shape[1] - small) // 2
  before = (side - small) // 2
  return np.pad(
    image[top : top + small, left : left + small],
    [(before, side - small - before)] * 2,
    mode="symmetric",
  )


class FieldsOfRun:
  """Finds the one scale of all stacks of a run, told stack by stack.

  Args:
    field_um: that all are brought to; None asks that all have one.
  """

  def __init__(self, field_um: Number | None):
    if field_um is not None and not 1 <= field_um <= 1e5:
      raise UserError(f"config.data.field_um: {field_um} is outside 1 to 100,000 µm")
    self.field_um = field_um
    self._first: tuple[str, Number | None] | None = None

  def add(self, name: str, shape: tuple[int, int], pixel_um: Number | None) -> None:
    """Takes a stack's images and pixel size.

    Raises:
      UserError: it does not go together with those before, or with the field wanted.
    """
    field = None if pixel_um is None else field_of(shape, pixel_um)
    if self._first is None:
      self._first = name, field
    other, known = self._first
    if (field is None) != (known is None):
      silent = name if field is None else other
      raise UserError(
        f"stack '{silent}' does not tell its pixel size, others do; a model must see one scale: give "
        "pixel_um for it (--pixel_um, or the manifest's column) and prepare the dataset again"
      )
    if field is None and self.field_um is not None:
      raise UserError(
        f"config.data.field_um: {self.field_um:g}, but stack '{name}' does not tell its pixel size; "
        "give pixel_um when preparing the dataset, or leave the field empty"
      )
    if field is not None and self.field_um is None and not same_field(field, known):
      raise UserError(
        f"stack '{name}' shows a field of {field:.4g} µm, '{other}' one of {known:.4g} µm; set "
        f"config.data.field_um={min(field, known):.4g} to bring all to one scale"
      )

  def scale(self, image_size: int) -> Scale:
    """Returns the scale of images of this size."""
    found = self.field_um if self.field_um is not None else self._first[1]
    return Scale(image_size, found)
