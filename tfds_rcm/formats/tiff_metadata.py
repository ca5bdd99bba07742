"""What ImageJ, OME and tifffile say beside the pages of a TIFF: spacing, and which page is what."""

from __future__ import annotations

from collections.abc import Iterator
import dataclasses
import itertools
import math
import os
import xml.etree.ElementTree

import tifffile

from tfds_rcm import lengths
from tfds_rcm.errors import UserError
from tfds_rcm.formats.raw import check_channel

# tifffile calls the one axis of an ImageJ stack channels unless it is told otherwise.
_MAX_CHANNELS = 4
_Element = xml.etree.ElementTree.Element


@dataclasses.dataclass(frozen=True, order=True)
class _Plane:
  """Which slice of a file a page is."""

  time: int = 0
  slice: int = 0
  channel: int = 0


def spacing_um(tif: tifffile.TiffFile) -> tuple[float | None, float | None]:
  """Step and pixel in µm from ImageJ's or OME's metadata, None where they are silent."""
  if tif.is_imagej and tif.imagej_metadata:
    return _imagej_um(tif, tif.imagej_metadata)
  if (pixels := _ome_pixels(tif)) is not None:
    return _ome_um(pixels, "Z"), _ome_um(pixels, "X")
  return None, None


def count_planes(tif: tifffile.TiffFile) -> int:
  """Slices that the one page of a file stands for.

  ImageJ beyond 4 GB, and tifffile with `truncate=True`, write one page and all slices
  behind its first.
  """
  if tif.is_imagej and tif.imagej_metadata:
    return int(tif.imagej_metadata.get("images", 1))
  if tif.is_shaped and (tif.shaped_metadata[0] or {}).get("truncated"):
    return math.prod(tif.shaped_metadata[0]["shape"]) // math.prod(tif.pages[0].shape)
  return 1


def slices_in_order(
  place: str | os.PathLike[str], tif: tifffile.TiffFile, count: int, channel: int | None
) -> tuple[list[int], int]:
  """The numbers of the pages that are a channel's slices, and how many channels pages hold.

  Args:
    place: for messages.
    tif: the file.
    count: its pages, or the planes in its one page.
    channel: one of several channels, counted from 1.

  Returns:
    The pages in the order of the metadata, and the number of channels that lie in pages
    of their own.

  Raises:
    UserError: if there are several channels and none is chosen, a time series of
      stacks, or other planes than the metadata tells.
  """
  planes = _planes(place, tif, count)
  if len({p.time for p in planes}) > 1 and len({p.slice for p in planes}) > 1:
    raise UserError(
      f"{place}: its slices run over {len({p.slice for p in planes})} depths and "
      f"{len({p.time for p in planes})} points of time or positions; export one stack alone"
    )
  channels = len({p.channel for p in planes})
  if channels > 1:
    check_channel(place, channels, channel)
  wanted = 0 if channel is None or channels == 1 else channel - 1
  found = sorted((i for i in range(count) if planes[i].channel == wanted), key=planes.__getitem__)
  return found, channels


def _planes(place: str | os.PathLike[str], tif: tifffile.TiffFile, count: int) -> list[_Plane]:
  if tif.is_imagej and tif.imagej_metadata:
    meta = tif.imagej_metadata
    channels, slices, times = (int(meta.get(k, 1)) for k in ("channels", "slices", "frames"))
    if slices == times == 1 and channels > _MAX_CHANNELS and meta.get("mode") != "composite":
      channels = 1
    if channels == 1 and (slices == 1 or times == 1):
      return [_Plane(slice=i) for i in range(count)]
    _check_count(place, channels * slices * times, count)
    return [_Plane(t, z, c) for t in range(times) for z in range(slices) for c in range(channels)]
  if (pixels := _ome_pixels(tif)) is not None:
    return _ome_planes(place, pixels, tif.pages[0].samplesperpixel, count)
  if tif.is_shaped:
    return _shaped_planes(place, tif, count)
  return [_Plane(slice=i) for i in range(count)]


def _shaped_planes(
  place: str | os.PathLike[str], tif: tifffile.TiffFile, count: int
) -> list[_Plane]:
  series, page = tif.series[0], tif.pages[0]
  leading = len(series.shape) - len(page.shape)
  axes = [(name, n) for name, n in zip(series.axes[:leading], series.shape) if n > 1]
  if math.prod(n for _, n in axes) != count:
    return [_Plane(slice=i) for i in range(count)]  # pages were added or removed since
  names = ["channel" if name == "C" else "slice" for name, _ in axes]
  if len(names) != len(set(names)):
    raise UserError(
      f"{place}: its pages run over {' x '.join(str(n) for _, n in axes)} places, expected the "
      "slices of one stack; export it alone"
    )
  places = itertools.product(*(range(n) for _, n in axes))
  return [_Plane(**dict(zip(names, at))) for at in places]


def _check_count(place: str | os.PathLike[str], told: int, count: int) -> None:
  if told != count:
    raise UserError(
      f"{place}: its metadata tells of {told} slices, the file holds {count}; export the stack as "
      "one file"
    )


def _imagej_um(tif: tifffile.TiffFile, meta: dict) -> tuple[float | None, float | None]:
  um = lengths.um_per(str(meta.get("unit", "")))
  z_um = lengths.um_per(str(meta["zunit"])) if "zunit" in meta else um
  step = float(meta.get("spacing", 0)) or None
  resolution = tif.pages[0].tags.get("XResolution")
  numerator, denominator = resolution.value if resolution else (0, 1)
  return (
    step * z_um if step and z_um else None,
    denominator / numerator * um if numerator and um else None,
  )


def _ome_pixels(tif: tifffile.TiffFile) -> _Element | None:
  if not (tif.is_ome and tif.ome_metadata):
    return None
  return xml.etree.ElementTree.fromstring(tif.ome_metadata).find(".//{*}Pixels")


def _ome_um(pixels: _Element, axis: str) -> float | None:
  um = lengths.um_per(pixels.get(f"PhysicalSize{axis}Unit", "µm"))
  size = float(pixels.get(f"PhysicalSize{axis}", 0))
  return size * um if size and um else None


def _ome_planes(
  place: str | os.PathLike[str], pixels: _Element, samples: int, count: int
) -> list[_Plane]:
  """The plane of each page as the elements TiffData tell."""
  order = pixels.get("DimensionOrder", "XYZCT")[2:]
  sizes = {axis: int(pixels.get(f"Size{axis}", 1)) for axis in "ZCT"}
  sizes["C"] = max(sizes["C"] // samples, 1)  # the samples of RGB lie in one page
  _check_count(place, math.prod(sizes.values()), count)
  names = {"Z": "slice", "C": "channel", "T": "time"}
  places = itertools.product(*(range(sizes[axis]) for axis in reversed(order)))
  planes = [_Plane(**{names[a]: i for a, i in zip(reversed(order), at)}) for at in places]
  found: dict[int, _Plane] = {}
  for ifd, first, number in _tiff_data(pixels, len(planes)):
    start = planes.index(_Plane(**{names[axis]: first[axis] for axis in "ZCT"}))
    for i, plane in enumerate(planes[start : start + number]):
      if ifd + i in found:
        raise UserError(
          f"{place}: the stack is spread over several OME-TIFF files; export it as one"
        )
      found[ifd + i] = plane
  _check_count(place, len(found), count)
  return [found[i] for i in range(count)]


def _tiff_data(pixels: _Element, planes: int) -> Iterator[tuple[int, dict[str, int], int]]:
  elements = list(pixels.iterfind("{*}TiffData"))
  if not elements:
    yield 0, dict.fromkeys("ZCT", 0), planes
  for element in elements:
    first = {axis: int(element.get(f"First{axis}", 0)) for axis in "ZCT"}
    # Without IFD and PlaneCount all planes are meant, with IFD alone one.
    number = int(element.get("PlaneCount", 1 if "IFD" in element.attrib else planes))
    yield int(element.get("IFD", 0)), first, number
