"""TIFF: a folder with one page a file, or all slices as pages of one file."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
import contextlib
import logging
import os
import pathlib
import sys
import xml.etree.ElementTree

import numpy as np
from PIL import Image
import tifffile

from tfds_rcm.errors import UserError
from tfds_rcm.formats.raw import RawStack, check_path, check_size, decoding

SUFFIXES = frozenset({".tif", ".tiff"})
# What it would log about a damaged file is told once, by the error that we raise.
logging.getLogger("tifffile").setLevel(logging.CRITICAL)
_MICRONS = {"micron", "microns", "um", "µm", "μm", "\\u00b5m"}


def open_tiff(path: pathlib.Path) -> RawStack:
  """All pages of one file, shallow first; spacing from ImageJ's or OME's metadata.

  Raises:
    UserError: if the file is damaged or empty, or has several channels.
  """
  check_path(path)
  with decoding(path):
    tif = tifffile.TiffFile(path)
  try:
    with decoding(path):
      pages = [page.aspage() for page in _chain(path, tif) if not page.is_reduced]
      _check_last_page(path, tif)
      step_um, pixel_um = _spacing(path, tif)
      for number, page in enumerate(pages):
        _check_page(f"{path} page {number}", page, tif.filehandle.size)
  except BaseException:
    tif.close()
    raise
  depth_um = None if step_um is None else step_um * np.arange(len(pages))
  return RawStack(
    names=[f"{path} page {t}" for t in range(len(pages))],
    read=lambda t: _decode(path, pages[t]),
    depth_um=depth_um,
    pixel_um=pixel_um,
    close=tif.close,
  )


def open_tiffs(paths: Sequence[pathlib.Path]) -> RawStack:
  """A stack of single-page files, in the order given.

  Raises:
    UserError: when a slice is read whose file has several pages.
  """

  def read(t: int) -> np.ndarray:
    raw = open_tiff(paths[t])
    try:
      if len(raw.names) != 1:
        raise UserError(
          f"{paths[t]}: has {len(raw.names)} pages, expected one page a file in a folder of "
          "several files; give a multi-page file's own path"
        )
      return raw.read(0)
    finally:
      raw.close()

  return RawStack(names=[str(p) for p in paths], read=read)


def _chain(path: pathlib.Path, tif: tifffile.TiffFile) -> Iterator[tifffile.TiffPage]:
  """The file's pages; tifffile would follow one that points back for ever."""
  seen = set()
  for page in tif.pages:
    if page.offset in seen:
      raise UserError(f"{path}: its pages run in a circle; the file is damaged: export it again")
    seen.add(page.offset)
    yield page


def _check_last_page(path: pathlib.Path, tif: tifffile.TiffFile) -> None:
  """The chain of pages must end in 0: where it is broken, tifffile just finds fewer pages."""
  tif.filehandle.seek(tif.pages.next_page_offset)
  if tif.filehandle.read(tif.tiff.offsetsize) != bytes(tif.tiff.offsetsize):
    raise UserError(f"{path}: the file is truncated; copy or export it again")


def _check_page(place: str, page: tifffile.TiffPage, file_bytes: int) -> None:
  check_size(place, page.imagelength, page.imagewidth)
  if page.samplesperpixel not in (1, 3, 4):
    raise UserError(
      f"{place}: has {page.samplesperpixel} channels, expected gray or RGB; export the "
      "reflectance channel alone"
    )
  # tifffile fills what lies past the end of the file with zeros.
  if any(o + n > file_bytes for o, n in zip(page.dataoffsets, page.databytecounts)):
    raise UserError(f"{place}: the file is truncated; copy or export it again")


def _decode(path: pathlib.Path, page: tifffile.TiffPage) -> np.ndarray:
  place = f"{path} page {page.index}"
  with decoding(place):
    try:
      pixels = page.asarray()
    except ValueError as error:
      if "imagecodecs" not in str(error):
        raise
      pixels = _decode_with_pillow(path, page)
  if page.planarconfig == tifffile.PLANARCONFIG.SEPARATE and pixels.ndim == 3:
    pixels = np.moveaxis(pixels, 0, -1)
  if page.photometric == tifffile.PHOTOMETRIC.PALETTE:
    colors = np.asarray(page.colormap)[:, pixels]
    return (np.moveaxis(colors, 0, -1) >> 8).astype(np.uint8)
  if page.photometric == tifffile.PHOTOMETRIC.MINISWHITE and pixels.dtype == np.uint8:
    pixels = 255 - pixels
  return pixels


def _decode_with_pillow(path: pathlib.Path, page: tifffile.TiffPage) -> np.ndarray:
  """LZW and JPEG pages, which tifffile decodes only with the package imagecodecs."""
  if page.bitspersample != 8 and page.samplesperpixel != 1:
    raise UserError(f"{path}: compression {page.compression.name} needs: pip install imagecodecs")
  with _silent_libtiff(), Image.open(path) as image:
    image.seek(page.index)
    deep = image.mode.startswith(("I", "F"))
    return np.asarray(image if deep else image.convert("L"))


@contextlib.contextmanager
def _silent_libtiff() -> Iterator[None]:
  """Drops what libtiff, below Pillow, would print about a damaged file."""
  sys.stderr.flush()
  shown = os.dup(2)
  try:
    with open(os.devnull, "wb") as nowhere:
      os.dup2(nowhere.fileno(), 2)
    yield
  finally:
    os.dup2(shown, 2)
    os.close(shown)


def _spacing(path: pathlib.Path, tif: tifffile.TiffFile) -> tuple[float | None, float | None]:
  """Step and pixel in µm from ImageJ's or OME's metadata, None where they are silent."""
  if tif.is_imagej and tif.imagej_metadata:
    meta = tif.imagej_metadata
    _check_channels(path, int(meta.get("channels", 1)))
    if str(meta.get("unit", "")).lower() not in _MICRONS:
      return None, None
    spacing = float(meta.get("spacing", 0)) or None
    resolution = tif.pages[0].tags.get("XResolution")
    numerator, denominator = resolution.value if resolution else (0, 1)
    return spacing, denominator / numerator if numerator else None
  if tif.is_ome and tif.ome_metadata:
    pixels = xml.etree.ElementTree.fromstring(tif.ome_metadata).find(".//{*}Pixels")
    if pixels is None:
      return None, None
    samples = {c.get("SamplesPerPixel", "1") for c in pixels.iterfind("{*}Channel")}
    if samples <= {"1"}:
      _check_channels(path, int(pixels.get("SizeC", 1)))
    return _ome_um(pixels, "Z"), _ome_um(pixels, "X")
  return None, None


def _ome_um(pixels: xml.etree.ElementTree.Element, axis: str) -> float | None:
  unit = pixels.get(f"PhysicalSize{axis}Unit", "µm").lower()
  return float(pixels.get(f"PhysicalSize{axis}", 0)) or None if unit in _MICRONS else None


def _check_channels(path: pathlib.Path, channels: int) -> None:
  if channels != 1:
    raise UserError(
      f"{path}: has {channels} channels, expected gray or RGB; export the reflectance channel alone"
    )
