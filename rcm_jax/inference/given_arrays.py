"""Slices and depths handed over as arrays, held to what `tfds_rcm.stack_io` asks of files."""

from __future__ import annotations

import pathlib
from typing import Any

from jaxtyping import Float, UInt8
import numpy as np

from tfds_rcm import lengths, stack_io
from tfds_rcm.errors import UserError
from tfds_rcm.formats.raw import RawStack

PLACE = "slices"


def gray_slices(
  slices: Any, value_range: stack_io.Range | None = None, first: int = 0
) -> UInt8[np.ndarray, "T height width"]:
  """Returns a stack's slices as a file's would be read: gray, 8 bit, without caption.

  Args:
    slices: [T, height, width], or with a last axis of colours.
    value_range: values that become 0 and 255; needed unless they are of 8 bit.
    first: number of the first one, for messages.

  Raises:
    UserError: there are none, they are not of one size and type, hold something else than gray
      levels, or need a range.
  """
  images = _as_array("slices", slices)
  if images.ndim not in (3, 4) or not images.size:
    raise UserError(
      f"slices: an array of shape {images.shape}, expected [slices, height, width] of one size"
    )
  if images.dtype not in (bool, np.uint8) and value_range is None:
    raise UserError(
      f"slices: stored as {images.dtype}, expected uint8; give value_range=(lowest, highest), the "
      "values that become 0 and 255, the same for all stacks of a device"
    )
  if value_range is not None:
    low, high = (float(x) for x in value_range)
    if not -np.inf < low < high < np.inf:
      raise UserError(f"slices: value_range={value_range}, expected (lowest, highest)")
  names = [f"slice {first + t}" for t in range(len(images))]
  raw = RawStack(names, images.__getitem__)
  reader = stack_io.StackReader(pathlib.Path(PLACE), raw, np.zeros(len(images)), None, value_range)
  return reader.read_all()


def depths_um(depths: Any, count: int) -> Float[np.ndarray, "T"]:
  """Returns a stack's depths in µm, one a slice.

  Raises:
    UserError: they are not `count` rising numbers, or rise by steps that no stack has.
  """
  values = _as_array("depth_um", depths)
  if values.dtype.kind not in "uif":
    raise UserError(f"depth_um: {_shown(depths)}, expected one number of µm a slice")
  if values.ndim != 1 or len(values) != count:
    shape = "one number" if values.ndim == 0 else f"an array of shape {values.shape}"
    raise UserError(f"depth_um: {shape} for {count} slices, expected one number of µm a slice")
  values = values.astype(np.float64)
  lengths.check_depths_um("depth_um", values, count)
  return values


def depth_um(depth: Any, number: int) -> float:
  """Returns the depth of one slice in µm.

  Args:
    depth: a number.
    number: of the slice, for messages.

  Raises:
    UserError: it is none, or is not finite.
  """
  value = _as_array("depth_um", depth)
  if value.dtype.kind not in "uif" or value.ndim != 0 or not np.isfinite(np.float32(value)):
    raise UserError(f"depth_um: {_shown(depth)} of slice {number}, expected a number of µm")
  return float(value)


def _as_array(name: str, value: Any) -> np.ndarray:
  try:
    return np.asarray(value)
  except ValueError as error:  # lists of several lengths
    raise UserError(f"{name}: {_shown(value)}, expected an array of numbers") from error


def _shown(value: Any) -> str:
  text = " ".join(repr(value).split())
  return text if len(text) <= 40 else f"{text[:40]}…"
