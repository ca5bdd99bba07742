"""DICOM, single- or multi-frame, above all the Confocal Microscopy Image (PS3.3, A.90)."""

from __future__ import annotations

from collections.abc import Generator, Sequence
import pathlib

import numpy as np
import pydicom
from pydicom import pixels as pydicom_pixels
from pydicom import uid

from tfds_rcm.errors import UserError
from tfds_rcm.formats import dicom_order
from tfds_rcm.formats.dicom_order import nested
from tfds_rcm.formats.images import in_natural_order
from tfds_rcm.formats.raw import RawStack, check_count, check_path, check_size, decoding

SUFFIXES = frozenset({".dcm", ".dicom"})
DIRECTORY = "DICOMDIR"
_UM_PER_MM = 1000.0
_CODECS = (
  (uid.JPEG2000TransferSyntaxes, "pylibjpeg pylibjpeg-openjpeg"),
  (uid.JPEGLSTransferSyntaxes, "pyjpegls"),
  (uid.JPEGTransferSyntaxes, "pylibjpeg pylibjpeg-libjpeg"),
)
_INVERTED = "MONOCHROME1"
_PALETTE = "PALETTE COLOR"
# What pydicom hands out as gray or RGB.
_COLOURS = (
  "MONOCHROME2",
  _INVERTED,
  _PALETTE,
  "RGB",
  "YBR_FULL",
  "YBR_FULL_422",
  "YBR_RCT",
  "YBR_ICT",
)


def is_dicom(path: pathlib.Path) -> bool:
  """True for a file with DICOM's suffix, or without any suffix but with DICOM's magic."""
  if path.suffix.lower() in SUFFIXES:
    return True
  if path.suffix or path.name.upper() == DIRECTORY or not path.is_file():
    return False
  try:
    with path.open("rb") as stream:
      return stream.read(132)[128:] == b"DICM"
  except OSError as error:
    raise UserError(f"{path}: cannot be opened ({error.strerror}); mend the rights") from error


def open_dicom(path: pathlib.Path) -> RawStack:
  """One file: its frames in the order of `dicom_order.arrange`, else as stored.

  The pixel's side is Pixel Spacing (0028,0030), else Field of View Dimension(s)
  (0018,1149), in mm, over the matrix.

  Raises:
    UserError: if the file is damaged, empty or no image, its frames contradict each
      other, or it needs a codec that is not installed.
  """
  header = _header(path)
  with decoding(path):
    count = int(header.get("NumberOfFrames", 1) or 1)
    check_count(path, count, path.stat().st_size)
    slices = dicom_order.slices_of(path, header, count)
    found = dicom_order.arrange(slices, fallback=range(count))
    _check_rescale(slices)
    pixel_um = _pixel_um(slices[0])
  stacks = {s.get("StackID") for s in slices}
  if len(stacks) > 1:
    raise UserError(f"{path}: holds {len(stacks)} stacks (Stack ID); export each on its own")
  frames = _Frames(path, header, found.order)
  return RawStack(
    names=[f"{path} frame {frame + 1}" for frame in found.order],
    read=frames.read,
    depth_um=found.depth_um,
    no_depth=found.no_depth,
    pixel_um=pixel_um,
    inverted=header.PhotometricInterpretation == _INVERTED,
    close=frames.close,
  )


class _Frames:
  """A file's frames; those that are read one after the other have its header parsed once."""

  def __init__(self, path: pathlib.Path, header: pydicom.Dataset, order: list[int]):
    self._path, self._header, self._order = path, header, order
    self._next: int | None = None
    self._frames: Generator | None = None

  def read(self, t: int) -> np.ndarray:
    with decoding(f"{self._path} frame {self._order[t] + 1}"):
      if t != self._next:
        self.close()
        self._frames = pydicom_pixels.iter_pixels(self._path, indices=self._order[t:])
      self._next = None  # should this one fail
      try:
        pixels = next(self._frames)
      except AttributeError as error:
        if "'Pixel Data'" not in str(error):
          raise
        raise _no_pixels(self._path, self._header.get("SOPClassUID")) from error
      self._next = t + 1
      if self._header.PhotometricInterpretation == _PALETTE:
        return _looked_up(pixels, self._header)
      return _spread(pixels, int(self._header.BitsStored))

  def close(self) -> None:
    if self._frames is not None:
      self._frames.close()


def _looked_up(pixels: np.ndarray, header: pydicom.Dataset) -> np.ndarray:
  colours = pydicom_pixels.apply_color_lut(pixels, header)[..., :3]
  # Tables of 16 bits are most often eight bits twice.
  return colours if colours.dtype == np.uint8 else (colours >> 8).astype(np.uint8)


def _spread(pixels: np.ndarray, bits: int) -> np.ndarray:
  """Fewer than 8 bits over 0 to 255, as in other formats."""
  if pixels.dtype != np.uint8 or bits >= 8:
    return pixels
  return np.rint(pixels * (255 / ((1 << bits) - 1))).clip(0, 255).astype(np.uint8)


def open_dicoms(paths: Sequence[pathlib.Path]) -> RawStack:
  """A folder of single-frame files in the order of `dicom_order.arrange`, else by name.

  Raises:
    UserError: as `open_dicom`; or if files have several frames, belong to several
      series, leave a gap, share a place, or contradict each other.
  """
  if len(paths) == 1:
    return open_dicom(paths[0])
  slices, series, kinds = [], set(), set()
  for path in paths:
    header = _header(path)
    with decoding(path):
      if int(header.get("NumberOfFrames", 1) or 1) != 1:
        raise UserError(f"{path}: has several frames; give a multi-frame file's own path")
      slices += dicom_order.slices_of(path, header, 1)
      series.add(header.get("SeriesInstanceUID"))
      kinds.add(header.PhotometricInterpretation == _INVERTED)
  folder = paths[0].parent
  if len(series) > 1:
    raise UserError(f"{folder}: holds {len(series)} series; give each a folder of its own")
  if len(kinds) > 1:
    raise UserError(f"{folder}: 0 is white in some slices and black in others; export all alike")
  with decoding(folder):
    found, warnings = dicom_order.arrange(slices), ()
    if found.order is None:
      named = in_natural_order(paths)
      found = dicom_order.arrange(slices, fallback=[paths.index(path) for path in named])
      warnings = (
        f"{folder}: neither a position nor Instance Number orders its slices; taken in the order "
        "of their names",
      )
    _check_rescale(slices)
    pixel_um = _pixel_um(slices[found.order[0]])
  ordered = [paths[i] for i in found.order]
  return RawStack(
    names=[str(p) for p in ordered],
    read=lambda t: open_dicom(ordered[t]).read(0),
    depth_um=found.depth_um,
    no_depth=found.no_depth,
    pixel_um=pixel_um,
    inverted=kinds.pop(),
    warnings=warnings,
  )


def _header(path: pathlib.Path) -> pydicom.Dataset:
  check_path(path)
  with decoding(path):
    header = pydicom.dcmread(path, stop_before_pixels=True)
    _check_image(path, header)
    check_size(path, int(header.Rows), int(header.Columns))
    syntax = header.file_meta.TransferSyntaxUID
    if syntax.is_encapsulated:
      _check_codec(path, syntax)
  return header


def _check_image(path: pathlib.Path, header: pydicom.Dataset) -> None:
  """Says what a DICOM file without pixels is, and refuses colours that would be read wrong."""
  kind = header.get("SOPClassUID") or header.file_meta.get("MediaStorageSOPClassUID")
  if kind == uid.MediaStorageDirectoryStorage:
    raise UserError(
      f"{path}: is a table of contents ({DIRECTORY}), no image; give the folder or the file of "
      "one series"
    )
  if "Rows" not in header and "Columns" not in header and len(header):
    raise _no_pixels(path, kind)
  colours = header.get("PhotometricInterpretation")
  if colours not in _COLOURS:
    raise UserError(
      f"{path}: its colours are stored as {colours!s:.40}, expected gray, palette, RGB or YBR_FULL; "
      "export it as gray"
    )


def _no_pixels(path: pathlib.Path, kind: uid.UID | None) -> UserError:
  name = kind.name if kind else "DICOM of an unknown kind"
  return UserError(
    f"{path}: holds no pixels ({name}); move it elsewhere, or export it again if it is an image"
  )


def _check_codec(path: pathlib.Path, syntax: uid.UID) -> None:
  decoder = pydicom_pixels.get_decoder(syntax)
  if not decoder.is_available:
    package = next((name for syntaxes, name in _CODECS if syntax in syntaxes), "python-gdcm")
    raise UserError(
      f"{path}: compressed as {syntax.name}, whose codec is missing: pip install {package}"
    )


def _check_rescale(slices: Sequence[dicom_order.Slice]) -> None:
  """Refuses stored values that do not stand for brightness in the same way in all slices."""
  rescale = [
    (float(s.get("RescaleSlope") or 1), float(s.get("RescaleIntercept") or 0)) for s in slices
  ]
  for s, this in zip(slices, rescale):
    if this != rescale[0] or this[0] <= 0:
      raise UserError(
        f"{s.place}: Rescale Slope and Intercept {this[0]:g}, {this[1]:g}, expected a slope above "
        "0 and the same in all slices; export the stack anew"
      )


def _pixel_um(first: dicom_order.Slice) -> float | None:
  header = first.header
  spacing = first.get("PixelSpacing") or nested(header, "PixelSpacing")
  field = nested(header, "FieldOfViewDimensions")
  if spacing is not None:
    return float(spacing[0]) * _UM_PER_MM
  if field is not None:
    # One number or two in an order that writers swap: a square pixel makes both irrelevant.
    sides = np.broadcast_to(np.atleast_1d(np.asarray(field, np.float64)), 2)
    return float(np.sqrt(sides.prod() / (header.Rows * header.Columns))) * _UM_PER_MM
  return None
