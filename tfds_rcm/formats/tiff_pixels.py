"""The gray levels or colours of one TIFF page, whatever its photometric interpretation."""

from __future__ import annotations

import logging

import numpy as np
import tifffile

from tfds_rcm.errors import UserError
from tfds_rcm.formats.raw import check_size, decoding, oriented, without_alpha

# What it would log about a damaged file is told once, by the error that we raise.
logging.getLogger("tifffile").setLevel(logging.CRITICAL)
_Kind = tifffile.PHOTOMETRIC
_GRAY = (_Kind.MINISWHITE, _Kind.MINISBLACK)
_ALPHA = (tifffile.EXTRASAMPLE.ASSOCALPHA, tifffile.EXTRASAMPLE.UNASSALPHA)
_JPEG = (tifffile.COMPRESSION.JPEG, tifffile.COMPRESSION.JPEG_LOSSY)
_ORIENTATION = 274


def is_inverted(page: tifffile.TiffPage) -> bool:
  """True if 0 is white."""
  return page.photometric == _Kind.MINISWHITE


def check_page(place: str, page: tifffile.TiffPage, file_bytes: int) -> None:
  """Refuses, before anything is decoded, what would not be decoded to the right values.

  Gray, palettes and RGB of any depth are read, YCbCr where JPEG packs it. Inks, CIE Lab,
  masks and raw sensor data are refused, because their gray needs a profile.

  Raises:
    UserError: if the page is of another kind, volumetric, or lies beyond the file's end.
  """
  check_size(place, page.imagelength, page.imagewidth)
  kind, samples = page.photometric, page.samplesperpixel
  jpeg = kind == _Kind.YCBCR and page.compression in _JPEG
  if kind not in (*_GRAY, _Kind.PALETTE, _Kind.RGB) and not jpeg:
    name = getattr(kind, "name", kind)
    raise UserError(
      f"{place}: its colours are stored as {name!s:.40}, expected gray, palette or RGB; export it as gray"
    )
  if not isinstance(page.bitspersample, int):
    raise UserError(
      f"{place}: channels of {page.bitspersample!s:.40} bits, expected the same for all; export it as "
      "gray"
    )
  if kind == _Kind.PALETTE and 320 not in page.tags:
    raise UserError(f"{place}: a palette image without its ColorMap; export it as gray")
  if (kind == _Kind.RGB and samples < 3) or page.imagedepth != 1:
    raise UserError(
      f"{place}: {samples} channels and a depth of {page.imagedepth} in a page of kind "
      f"{kind.name}; export it as gray"
    )
  # tifffile fills what lies past the end of the file, or was never written, with zeros.
  pieces = list(zip(page.dataoffsets, page.databytecounts))
  if not pieces or any(o + n > file_bytes or not n for o, n in pieces):
    raise UserError(f"{place}: the file is truncated; copy or export it again")


def read_page(place: str, page: tifffile.TiffPage) -> np.ndarray:
  """Decodes a page that `check_page` let pass to [height, width] or [height, width, channels].

  Fewer than 8 bits are spread over 0 to 255; a palette's colours come as 8 bits. An alpha
  channel that is the same everywhere is dropped, and the tag Orientation obeyed.

  Raises:
    UserError: if the page is damaged, or transparent in part.
  """
  with decoding(place):
    pixels = page.asarray()
    if page.planarconfig == tifffile.PLANARCONFIG.SEPARATE and pixels.ndim == 3:
      pixels = np.moveaxis(pixels, 0, -1)
    return finished(place, page, pixels)


def finished(place: str, page: tifffile.TiffPage, pixels: np.ndarray) -> np.ndarray:
  """What a page's tags say of its stored values, applied to them; as `read_page`."""
  palette = page.photometric == _Kind.PALETTE
  if _has_alpha(page):
    pixels = without_alpha(place, pixels)
    if pixels.shape[-1] == 1:
      pixels = pixels[..., 0]
  if palette:
    pixels = _looked_up(place, page, pixels)
  elif pixels.dtype == np.uint8 and page.bitspersample < 8:
    levels = (1 << page.bitspersample) - 1
    pixels = np.rint(np.arange(256) * (255 / levels)).clip(0, 255).astype(np.uint8)[pixels]
  tag = page.tags.get(_ORIENTATION)
  return oriented(pixels, int(tag.value) if tag else 1)


def _has_alpha(page: tifffile.TiffPage) -> bool:
  colours = 3 if page.photometric in (_Kind.RGB, _Kind.YCBCR) else 1
  if page.samplesperpixel != colours + 1:
    return False
  # A fourth sample beside RGB that says nothing of itself is padding or alpha.
  return page.extrasamples[:1] in [(kind,) for kind in _ALPHA] or colours == 3


def _looked_up(place: str, page: tifffile.TiffPage, pixels: np.ndarray) -> np.ndarray:
  colors = np.asarray(page.colormap)
  indices = pixels.astype(np.int64)
  if indices.ndim != 2 or not 0 <= indices.min() <= indices.max() < colors.shape[1]:
    raise UserError(
      f"{place}: pixels up to {indices.max()}, expected less than the {colors.shape[1]} colours "
      "of its ColorMap; export it as gray"
    )
  # The standard has 16 bits a colour; some writers fill 8 of them.
  eight = colors if colors.max() < 256 else colors >> 8
  return np.moveaxis(eight.astype(np.uint8)[:, indices], 0, -1)
