"""TIFF: a folder with one page a file, or all slices as pages of one file."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
import os
import pathlib

import numpy as np
import tifffile

from tfds_rcm.errors import UserError
from tfds_rcm.formats import tiff_metadata, tiff_pixels
from tfds_rcm.formats.raw import RawStack, check_count, check_path, decoding

SUFFIXES = frozenset({".tif", ".tiff"})
_REDUCED_OR_MASK = 1 | 4  # of NewSubfileType


def open_tiff(path: pathlib.Path, channel: int | None = None) -> RawStack:
  """All pages of one file, shallow first; spacing from ImageJ's or OME's metadata.

  Args:
    path: the file.
    channel: takes one of several channels that have pages of their own, counted from 1.

  Raises:
    UserError: if the file is damaged or empty, has several channels and none is chosen,
      or holds what `tiff_pixels.check_page` refuses.
  """
  tif = _opened(path)
  try:
    pages = _checked_pages(path, tif)
    with decoding(path):
      planes = tiff_metadata.count_planes(tif) if len(pages) == 1 else 1
      count = planes if planes > 1 else len(pages)
      check_count(path, count, tif.filehandle.size)
      order, channels = tiff_metadata.slices_in_order(path, tif, count, channel)
      step_um, pixel_um = tiff_metadata.spacing_um(tif)
    inverted = tiff_pixels.is_inverted(pages[0])
    if any(tiff_pixels.is_inverted(page) != inverted for page in pages):
      raise _mixed(path)
    if planes > 1:
      read = _planes_of_one_page(path, tif, pages[0], planes, order)
    else:
      read = lambda t: tiff_pixels.read_page(f"{path} page {order[t]}", pages[order[t]])
  except BaseException:
    tif.close()
    raise
  return RawStack(
    names=[f"{path} page {i}" for i in order],
    read=read,
    depth_um=None if step_um is None else step_um * np.arange(len(order)),
    pixel_um=pixel_um,
    inverted=inverted,
    has_channels=channels == 1,
    close=tif.close,
  )


def open_tiffs(paths: Sequence[pathlib.Path]) -> RawStack:
  """A stack of single-page files, in the order given.

  Raises:
    UserError: as `open_tiff` for the first file; of the others when they are read, and
      if one has several pages, or 0 is white in some files and black in others.
  """

  def read_one(path: pathlib.Path) -> tuple[np.ndarray, bool]:
    tif = _opened(path)
    try:
      pages = _checked_pages(path, tif)
      with decoding(path):
        slices = max(len(pages), tiff_metadata.count_planes(tif))
      if slices != 1:
        raise UserError(
          f"{path}: has {slices} pages, expected one page a file in a folder of several files; "
          "give a multi-page file's own path"
        )
      return tiff_pixels.read_page(str(path), pages[0]), tiff_pixels.is_inverted(pages[0])
    finally:
      tif.close()

  _, inverted = read_one(paths[0])

  def read(t: int) -> np.ndarray:
    pixels, this = read_one(paths[t])
    if this != inverted:
      raise _mixed(paths[t])
    return pixels

  return RawStack(names=[str(p) for p in paths], read=read, inverted=inverted)


def _mixed(place: str | os.PathLike[str]) -> UserError:
  return UserError(
    f"{place}: 0 is white in some slices and black in others; export all slices alike"
  )


def _opened(path: pathlib.Path) -> tifffile.TiffFile:
  check_path(path)
  with decoding(path):
    return tifffile.TiffFile(path)


def _checked_pages(path: pathlib.Path, tif: tifffile.TiffFile) -> list[tifffile.TiffPage]:
  """The file's pages without previews and masks."""
  with decoding(path):
    pages = [page.aspage() for page in _chain(path, tif) if not page.subfiletype & _REDUCED_OR_MASK]
    _check_last_page(path, tif)
    for number, page in enumerate(pages):
      tiff_pixels.check_page(f"{path} page {number}", page, tif.filehandle.size)
  if not pages:
    raise UserError(f"{path}: holds no slices, only previews or masks; export it again")
  return pages


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


def _planes_of_one_page(
  path: pathlib.Path,
  tif: tifffile.TiffFile,
  page: tifffile.TiffPage,
  planes: int,
  order: Sequence[int],
):
  """Reads slices that lie one behind the other after a page that tells of the first alone."""
  with decoding(path):
    dtype = page.dtype.newbyteorder(tif.byteorder)
    size = dtype.itemsize * page.size
    if page.compression != tifffile.COMPRESSION.NONE or page.bitspersample != 8 * dtype.itemsize:
      raise UserError(f"{path}: {planes} packed slices in one page; export them as pages")
    start = page.dataoffsets[0]
  if not page.is_contiguous or start + planes * size > tif.filehandle.size:
    raise UserError(f"{path}: the file is truncated; copy or export it again")

  def read(t: int) -> np.ndarray:
    place = f"{path} page {order[t]}"
    with decoding(place):
      tif.filehandle.seek(start + order[t] * size)
      stored = np.frombuffer(tif.filehandle.read(size), dtype).reshape(page.shape)
      return tiff_pixels.finished(place, page, stored.astype(page.dtype))

  return read
