"""Lengths in µm: the units that files state them in, and which steps and pixels there can be."""

from __future__ import annotations

import os
import re

from jaxtyping import Float
import numpy as np

from tfds_rcm.errors import UserError

STEP_UM = (0.1, 100.0)  # a confocal section is some µm thick, the skin that it sees 200 µm
PIXEL_UM = (0.01, 100.0)

# SI prefixes as powers of ten, case counts: Mm is not mm.
_PREFIXES = {
  "Y": 24, "Z": 21, "E": 18, "P": 15, "T": 12, "G": 9, "M": 6, "k": 3, "h": 2, "da": 1, "": 0,
  "d": -1, "c": -2, "m": -3, "µ": -6, "u": -6, "n": -9, "p": -12, "f": -15, "a": -18, "z": -21,
  "y": -24,
}  # fmt: skip
_INCH_UM = 25_400.0
# The lengths of OME's UnitsLength, by their symbols. Its "pixel" and "reference frame" are none.
_SYMBOLS = {prefix + "m": 10.0 ** (power + 6) for prefix, power in _PREFIXES.items()} | {
  "Å": 1e-4,
  "thou": _INCH_UM / 1000,
  "li": _INCH_UM / 12,
  "in": _INCH_UM,
  "ft": 12 * _INCH_UM,
  "yd": 36 * _INCH_UM,
  "mi": 63_360 * _INCH_UM,
  "ua": 149_597_870_700e6,
  "ly": 9_460_730_472_580_800e6,
  "pc": 3.0856775814913673e22,
  "pt": _INCH_UM / 72,
}
# What people write into ImageJ's free field, in any case, singular.
_WORDS = {
  "micron": 1.0,
  "micrometer": 1.0,
  "nanometer": 1e-3,
  "angstrom": 1e-4,
  "millimeter": 1e3,
  "centimeter": 1e4,
  "decimeter": 1e5,
  "meter": 1e6,
  "kilometer": 1e9,
  "inch": _INCH_UM,
  "inche": _INCH_UM,
  '"': _INCH_UM,
  "mil": _INCH_UM / 1000,
  "foot": 12 * _INCH_UM,
  "feet": 12 * _INCH_UM,
}


def um_per(unit: str | None) -> float | None:
  """µm in one unit of length as OME and ImageJ write it, None if it is no known length.

  Symbols are taken as they stand, then in lower case; both characters for µ and for Å, and
  the escape in which ImageJ writes them, are read.
  """
  text = re.sub(r"\\u([0-9a-fA-F]{4})", lambda m: chr(int(m[1], 16)), unit or "").strip()
  text = text.replace("\N{GREEK SMALL LETTER MU}", "µ").replace("\N{ANGSTROM SIGN}", "Å")
  if text in _SYMBOLS:
    return _SYMBOLS[text]
  text = text.lower().replace("metre", "meter")
  return _WORDS.get(text.removesuffix("s"), _SYMBOLS.get(text, _WORDS.get(text)))


def check_step_um(place: str | os.PathLike[str], step_um: float | int) -> None:
  """Refuses a distance between slices that no confocal stack has.

  Raises:
    UserError: if it is not a number of µm from 0.1 to 100.
  """
  _check(place, "step_um", step_um, STEP_UM)


def check_pixel_um(place: str | os.PathLike[str], pixel_um: float | int) -> None:
  """Refuses a pixel that no confocal image has.

  Raises:
    UserError: if its side is not a number of µm from 0.01 to 100.
  """
  _check(place, "pixel_um", pixel_um, PIXEL_UM)


def check_depths_um(
  place: str | os.PathLike[str], depth_um: Float[np.ndarray, " T"], count: int
) -> None:
  """Refuses depths that are not one number a slice, do not rise, or rise by too little or much.

  They must rise in float32 too, with which networks calculate.

  Raises:
    UserError: with the first slice that is wrong.
  """
  if depth_um.shape != (count,):
    raise UserError(
      f"{place}: tells {depth_um.size} depths of {count} slices, expected one a slice; mend them "
      "or give step_um"
    )
  with np.errstate(over="ignore", invalid="ignore"):
    single = depth_um.astype(np.float32)
    good = np.isfinite(single)
    good[1:] &= np.diff(single) > 0
  if not good.all():
    t = int(np.argmin(good))
    after = f" after {depth_um[t - 1]:.9g} µm" if t else ""
    raise UserError(
      f"{place}: depth {depth_um[t]:.9g} µm of slice {t}{after}: expected rising numbers of µm "
      "that float32 can tell apart; mend the depths or give step_um"
    )
  low, high = STEP_UM
  if count > 1 and not low <= (step := float(np.median(np.diff(depth_um)))) <= high:
    raise UserError(
      f"{place}: its tags put the slices {step:g} µm apart, expected {low:g} to {high:g}; give "
      "step_um"
    )


def _check(
  place: str | os.PathLike[str], name: str, value: float | int, bounds: tuple[float, float]
) -> None:
  low, high = bounds
  if not low <= value <= high:  # which a NaN does not either
    raise UserError(f"{place}: {name}={value:g}, expected {low:g} to {high:g} µm")
