"""DICOM, single- or multi-frame, above all the Confocal Microscopy Image (PS3.3, A.90)."""

from __future__ import annotations

from collections.abc import Generator, Sequence
import pathlib

import numpy as np
import pydicom
from pydicom import pixels as pydicom_pixels
from pydicom import uid

from tfds_rcm.errors import UserError
from tfds_rcm.formats.images import in_natural_order
from tfds_rcm.formats.raw import RawStack, check_count, check_path, check_size, decoding

SUFFIXES = frozenset({".dcm", ".dicom"})
_UM_PER_MM = 1000.0
_CODECS = (
  (uid.JPEG2000TransferSyntaxes, "pylibjpeg pylibjpeg-openjpeg"),
  (uid.JPEGLSTransferSyntaxes, "pyjpegls"),
  (uid.JPEGTransferSyntaxes, "pylibjpeg pylibjpeg-libjpeg"),
)


def is_dicom(path: pathlib.Path) -> bool:
  """True for a file with DICOM's suffix, or without any suffix but with DICOM's magic."""
  if path.suffix.lower() in SUFFIXES:
    return True
  if path.suffix or path.name.upper() == "DICOMDIR" or not path.is_file():
    return False
  with path.open("rb") as stream:
    return stream.read(132)[128:] == b"DICM"


def open_dicom(path: pathlib.Path) -> RawStack:
  """One file: its frames sorted by depth where the file tells it.

  Depth in µm is Image Acquisition Depth (0048,0117), in mm from the tissue's surface,
  of each frame; failing that, frames are Spacing Between Slices (0018,0088) apart.
  The pixel's side is Pixel Spacing (0028,0030), else Field of View Dimension(s)
  (0018,1149), in mm, over the matrix.

  Raises:
    UserError: if the file is damaged or empty, or needs a codec that is not installed.
  """
  header = _header(path)
  with decoding(path):
    count = int(header.get("NumberOfFrames", 1) or 1)
    check_count(path, count, path.stat().st_size)
    depth_um = _frame_depths_um(header, count)
    pixel_um = _pixel_um(header)
    inverted = header.get("PhotometricInterpretation") == "MONOCHROME1"
  order = np.arange(count) if depth_um is None else np.argsort(depth_um, kind="stable")
  frames = _Frames(path, order.tolist())
  return RawStack(
    names=[f"{path} frame {frame + 1}" for frame in order],
    read=frames.read,
    depth_um=None if depth_um is None else depth_um[order],
    pixel_um=pixel_um,
    inverted=inverted,
    close=frames.close,
  )


class _Frames:
  """A file's frames; those that are read one after the other have its header parsed once."""

  def __init__(self, path: pathlib.Path, order: list[int]):
    self._path, self._order = path, order
    self._next: int | None = None
    self._frames: Generator | None = None

  def read(self, t: int) -> np.ndarray:
    with decoding(f"{self._path} frame {self._order[t] + 1}"):
      if t != self._next:
        self.close()
        self._frames = pydicom_pixels.iter_pixels(self._path, indices=self._order[t:])
      self._next = None  # should this one fail
      pixels = next(self._frames)
      self._next = t + 1
      return pixels

  def close(self) -> None:
    if self._frames is not None:
      self._frames.close()


def open_dicoms(paths: Sequence[pathlib.Path]) -> RawStack:
  """A folder of single-frame files, sorted by depth, else by Instance Number, else by name.

  Raises:
    UserError: as `open_dicom`; or if files have several frames, belong to several
      series, leave a gap, or two of them share a depth.
  """
  if len(paths) == 1:
    return open_dicom(paths[0])
  headers = {path: _header(path) for path in paths}
  series, depths = set(), {}
  for path, header in headers.items():
    with decoding(path):
      if int(header.get("NumberOfFrames", 1) or 1) != 1:
        raise UserError(f"{path}: has several frames; give a multi-frame file's own path")
      series.add(header.get("SeriesInstanceUID"))
      depths[path] = _frame_depths_um(header, 1)
  if len(series) > 1:
    raise UserError(f"{paths[0].parent}: holds {len(series)} series; give each a folder of its own")
  if all(depth is not None for depth in depths.values()):
    ordered = sorted(paths, key=lambda p: depths[p][0])
    depth_um = np.concatenate([depths[p] for p in ordered])
    for place in np.flatnonzero(np.diff(depth_um) == 0):
      raise UserError(
        f"{ordered[place + 1]}: same Image Acquisition Depth as {ordered[place].name}; remove one"
      )
  else:
    ordered, depth_um = _in_instance_order(headers), None
  first = headers[ordered[0]]
  with decoding(ordered[0]):
    pixel_um = _pixel_um(first)
    inverted = first.get("PhotometricInterpretation") == "MONOCHROME1"
  return RawStack(
    names=[str(p) for p in ordered],
    read=lambda t: open_dicom(ordered[t]).read(0),
    depth_um=depth_um,
    pixel_um=pixel_um,
    inverted=inverted,
  )


def _header(path: pathlib.Path) -> pydicom.Dataset:
  check_path(path)
  with decoding(path):
    header = pydicom.dcmread(path, stop_before_pixels=True)
    check_size(path, int(header.Rows), int(header.Columns))
    syntax = header.file_meta.TransferSyntaxUID
    if syntax.is_encapsulated:
      _check_codec(path, syntax)
  return header


def _check_codec(path: pathlib.Path, syntax: uid.UID) -> None:
  decoder = pydicom_pixels.get_decoder(syntax)
  if not decoder.is_available:
    package = next((name for syntaxes, name in _CODECS if syntax in syntaxes), "python-gdcm")
    raise UserError(
      f"{path}: compressed as {syntax.name}, whose codec is missing: pip install {package}"
    )


def _in_instance_order(headers: dict[pathlib.Path, pydicom.Dataset]) -> list[pathlib.Path]:
  paths, numbers = list(headers), {}
  for path, header in headers.items():
    with decoding(path):
      number = header.get("InstanceNumber")
      numbers[path] = None if number is None else int(number)
  if None in numbers.values() or len(set(numbers.values())) < len(numbers):
    return in_natural_order(paths)
  ordered = sorted(paths, key=numbers.__getitem__)
  steps = np.diff([numbers[p] for p in ordered])
  for place in np.flatnonzero(steps != np.median(steps)):
    raise UserError(
      f"{ordered[place + 1]}: gap in Instance Number after {ordered[place].name}; restore the slice"
    )
  return ordered


def _frame_depths_um(header: pydicom.Dataset, count: int) -> np.ndarray | None:
  frames = header.get("PerFrameFunctionalGroupsSequence") or []
  depths = [_nested(frame, "ImageAcquisitionDepth") for frame in frames]
  if len(depths) == count and None not in depths:
    return np.array(depths, np.float64) * _UM_PER_MM
  first = header.get("ImageAcquisitionDepth")
  if first is None and header.get("SharedFunctionalGroupsSequence"):
    first = _nested(header.SharedFunctionalGroupsSequence[0], "ImageAcquisitionDepth")
  if count == 1:
    return None if first is None else np.array([first], np.float64) * _UM_PER_MM
  step = _nested(header, "SpacingBetweenSlices")
  if not step:
    return None
  return (float(first or 0.0) + float(step) * np.arange(count)) * _UM_PER_MM


def _pixel_um(header: pydicom.Dataset) -> float | None:
  spacing, field = _nested(header, "PixelSpacing"), _nested(header, "FieldOfViewDimensions")
  if spacing is not None:
    return float(spacing[0]) * _UM_PER_MM
  if field is not None:
    # One number or two in an order that writers swap: a square pixel makes both irrelevant.
    sides = np.broadcast_to(np.atleast_1d(np.asarray(field, np.float64)), 2)
    return float(np.sqrt(sides.prod() / (header.Rows * header.Columns))) * _UM_PER_MM
  return None


def _nested(dataset: pydicom.Dataset, keyword: str):
  """The first value of an attribute in a dataset or the sequences inside it."""
  value = dataset.get(keyword)
  if value not in (None, ""):
    return value
  for element in dataset:
    if element.VR == "SQ" and element.keyword != "PerFrameFunctionalGroupsSequence":
      for item in element.value:
        value = _nested(item, keyword)
        if value is not None:
          return value
  return None
