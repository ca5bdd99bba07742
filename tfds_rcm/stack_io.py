"""One way to read a stack, whatever wrote it.

A stack is a folder of BMP, PNG, TIFF or JPEG slices (VivaStack: v0000000.bmp, …), a
multi-page TIFF, a single- or multi-frame DICOM file or a folder of them, or an
.npy or .npz volume. Rules that hold for all of them:

- Slices run from shallow to deep: by position where the files tell it, else by the
  number in their names (v2 before v10), else as stored. A gap in numbering is an error.
- 8-bit values stay bit for bit; fewer bits are spread over 0 to 255. All others (9 to
  64 bit, floating point) are scaled linearly, by a given range or the stack's own: the
  thousandth of its pixels that is darkest and the one that is brightest are left out,
  the lowest value of the rest → 0, the highest → 255, so that hot pixels do not count.
- Colour saved by mistake becomes gray by luma; equal channels stay exact.
- Rows below a square of the image's width hold a caption and are dropped.
- A given `step_um` or `pixel_um` overrules what the files say.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
import dataclasses
import functools
import math
import os
import pathlib

from jaxtyping import Float, Shaped, UInt8
import numpy as np

from tfds_rcm import lengths
from tfds_rcm.errors import UserError
from tfds_rcm.formats import dicom, images, tiff, volume
from tfds_rcm.formats.raw import RawStack, check_path, crop_caption, to_gray

SUFFIXES = images.SUFFIXES | tiff.SUFFIXES | dicom.SUFFIXES | volume.SUFFIXES
_OUTLIERS = 1000  # one pixel in so many is left out at either end of a deep stack's range
Number = float | int
Range = tuple[Number, Number]


@dataclasses.dataclass(frozen=True)
class Stack:
  """A stack in memory.

  Attributes:
    slices: gray levels, shallow first.
    depth_um: depth of each slice in µm.
    pixel_um: side of a pixel in µm, None if nobody told it.
  """

  slices: UInt8[np.ndarray, "T height width"]
  depth_um: Float[np.ndarray, " T"]
  pixel_um: Number | None


class StackReader:
  """A stack on disk whose slices are decoded one at a time.

  A sequence of uint8 [height, width] slices and a context manager. Memory holds the
  slice in hand. Deep slices (16 bit, floating point) without a given range are read
  once more, before the first one is handed out, to find the stack's own range.

  Attributes:
    path: folder or file.
    names: where each slice comes from.
    depth_um: depth of each slice in µm, [T].
    pixel_um: side of a pixel in µm or None.
    shape: slices, height and width after the caption is dropped.
    warnings: what is odd but allowed, a line each.
    deep: True if values are scaled to 8 bit because they have more.
  """

  def __init__(
    self,
    path: pathlib.Path,
    raw: RawStack,
    depth_um: Float[np.ndarray, " T"],
    pixel_um: Number | None,
    value_range: Range | None,
    channel: int | None = None,
    warnings: tuple[str, ...] = (),
  ):
    self.path = path
    self.names = raw.names
    self.warnings = warnings
    self.depth_um = depth_um
    self.pixel_um = pixel_um
    self._raw = raw
    self._channel = channel if raw.has_channels else None
    self._given_range = value_range
    self._first = crop_caption(to_gray(raw.names[0], raw.read(0), self._channel))
    self.deep = self._first.dtype != np.uint8
    self.shape = (len(raw.names), *self._first.shape)

  def __len__(self) -> int:
    return self.shape[0]

  def __getitem__(self, t: int) -> UInt8[np.ndarray, "height width"]:
    if not 0 <= t < len(self):
      raise IndexError(f"{self.path}: slice {t} of {len(self)}")
    return self._scale(self._values(t))

  def __iter__(self) -> Iterator[UInt8[np.ndarray, "height width"]]:
    return (self[t] for t in range(len(self)))

  def __enter__(self) -> StackReader:
    return self

  def __exit__(self, *_) -> None:
    self._raw.close()

  def once(self) -> Iterator[UInt8[np.ndarray, "height width"]]:
    """All slices, each decoded once; memory holds a deep stack without a given range.

    Raises:
      UserError: as `read_stack`.
    """
    if not self.deep or self._given_range:
      return iter(self)
    values = [self._values(t) for t in range(len(self))]
    self.__dict__["_range"] = _own_range(values, self.shape)
    return map(self._scale, values)

  def read_all(self) -> UInt8[np.ndarray, "T height width"]:
    """All slices at once, each decoded once.

    Raises:
      UserError: as `read_stack`.
    """
    return np.stack(list(self.once()))

  @functools.cached_property
  def _range(self) -> Range:
    """The values that become 0 and 255."""
    if self._given_range:
      return self._given_range
    return _own_range(map(self._values, range(len(self))), self.shape)

  def _values(self, t: int) -> Shaped[np.ndarray, "height width"]:
    """Stored gray values of slice t, without caption, checked against the first."""
    name = self.names[t]
    values = self._first
    if t:
      values = crop_caption(to_gray(name, self._raw.read(t), self._channel))
    if values.shape != self._first.shape:
      raise UserError(
        f"{name}: {' x '.join(map(str, values.shape))} pixels, expected "
        f"{' x '.join(map(str, self._first.shape))} as the first slice; the slices of a stack "
        "must be of one size"
      )
    if values.dtype != self._first.dtype:
      raise UserError(
        f"{name}: stored as {values.dtype}, expected {self._first.dtype} as the first slice; "
        "export all slices alike"
      )
    if np.issubdtype(values.dtype, np.floating) and not np.isfinite(values).all():
      raise UserError(f"{name}: holds NaN or infinity; replace these pixels and save again")
    return values

  def _scale(self, values: Shaped[np.ndarray, "height width"]) -> UInt8[np.ndarray, "height width"]:
    if self.deep:
      low, high = self._range
      scale = 255.0 / (high - low) if high > low else 0.0
      real = np.float32 if values.dtype.itemsize <= 2 else np.float64
      values = np.rint(np.clip((values.astype(real) - real(low)) * real(scale), 0, 255))
      values = values.astype(np.uint8)
    return 255 - values if self._raw.inverted else values


def _own_range(
  slices: Iterable[Shaped[np.ndarray, "height width"]], shape: tuple[int, int, int]
) -> Range:
  """A stack's lowest and highest value but for outliers, or of all if these are the same.

  A thousandth of the pixels, at least one, is left out at each end: detectors have hot
  and dead pixels, and one of them would make all others black or white.
  """
  outliers = max(1, math.prod(shape) // _OUTLIERS)
  lowest = highest = None
  for values in slices:
    # Of each end, only as many values as may be left out, and the next, are kept.
    flat = values.reshape(-1)
    lowest = flat if lowest is None else np.concatenate([lowest, flat])
    highest = flat if highest is None else np.concatenate([highest, flat])
    if lowest.size > outliers + 1:
      lowest = np.partition(lowest, outliers)[: outliers + 1]
      highest = np.partition(highest, -outliers - 1)[-outliers - 1 :]
  low, high = float(lowest.max()), float(highest.min())
  return (low, high) if low < high else (float(lowest.min()), float(highest.max()))


def open_stack(
  path: str | os.PathLike[str],
  *,
  step_um: Number | None = None,
  pixel_um: Number | None = None,
  value_range: Range | None = None,
  channel: int | None = None,
) -> StackReader:
  """Opens a stack to be read slice by slice.

  Args:
    path: folder or file, see the module's docstring.
    step_um: distance between slices in µm; the first one lies at 0. Needed where the
      files do not tell their depth.
    pixel_um: side of a pixel in µm.
    value_range: stored values that become 0 and 255 in pixels deeper than 8 bit, which alone
      are scaled; the stack's own if None.
    channel: which of several channels is read, counted from 1.

  Raises:
    UserError: with one line that names the file, if anything is wrong with it. What
      lies in a slice's pixels is found when the slice is read.
  """
  path = pathlib.Path(path)
  if step_um is not None:
    lengths.check_step_um(path, step_um)
  if pixel_um is not None:
    lengths.check_pixel_um(path, pixel_um)
  if value_range is not None and not value_range[0] < value_range[1]:
    raise UserError(f"{path}: value_range={value_range}, expected (lowest, highest)")
  raw = _open_raw(path, channel)
  try:
    if not raw.names:
      raise UserError(f"{path}: holds no slices; copy or export it again")
    depth_um, warnings = _depths(path, raw, step_um)
    if pixel_um is None:
      pixel_um = raw.pixel_um
      _check_pixel(path, pixel_um)
    return StackReader(path, raw, depth_um, pixel_um, value_range, channel, warnings)
  except BaseException:
    raw.close()
    raise


def read_stack(
  path: str | os.PathLike[str],
  *,
  step_um: Number | None = None,
  pixel_um: Number | None = None,
  value_range: Range | None = None,
  channel: int | None = None,
) -> Stack:
  """Reads a whole stack from disk.

  A folder of BMP, PNG, TIFF or JPEG slices, a multi-page TIFF, DICOM files, or an .npy or .npz
  volume. What is deeper than 8 bit is scaled to it.

  Args:
    path: folder or file.
    step_um: distance between slices in µm; the first one lies at 0. Needed where the
      files do not tell their depth.
    pixel_um: side of a pixel in µm, where the files do not tell it or are wrong.
    value_range: stored values that become 0 and 255 in pixels deeper than 8 bit, which alone
      are scaled; the stack's own if None.
    channel: which of several channels is read, counted from 1.

  Returns:
    Slices, shallow first, with their depths.

  Raises:
    UserError: with one line that names the file, if anything is wrong with it.

  Examples:
    >>> stack = rcm_jax.read_stack("stack.npy", step_um=3.0)
    >>> stack.slices.shape, stack.slices.dtype
    ((5, 80, 80), dtype('uint8'))
    >>> stack.depth_um.tolist()
    [0.0, 3.0, 6.0, 9.0, 12.0]
  """
  with open_stack(
    path, step_um=step_um, pixel_um=pixel_um, value_range=value_range, channel=channel
  ) as reader:
    return Stack(reader.read_all(), reader.depth_um, reader.pixel_um)


def _depths(
  path: pathlib.Path, raw: RawStack, step_um: Number | None
) -> tuple[np.ndarray, tuple[str, ...]]:
  """Depth of each slice, and the warnings: the files' own, and that a given step is another."""
  count = len(raw.names)
  told = None if raw.depth_um is None else np.asarray(raw.depth_um, np.float64)
  if step_um is None:
    if told is None:
      raise UserError(f"{path}: {raw.no_depth}; give step_um")
    lengths.check_depths_um(path, told, count)
    return told, raw.warnings
  depth_um = step_um * np.arange(count, dtype=np.float64)
  if told is None or told.shape != (count,) or count < 2:
    return depth_um, raw.warnings
  steps = np.diff(told)
  if (np.abs(steps - step_um) < step_um / 2).all():
    return depth_um, raw.warnings
  other = f"{path}: its tags put slices {steps.min():.4g} to {steps.max():.4g} µm apart, "
  return depth_um, (*raw.warnings, other + f"step_um={step_um:g} is used")


def _check_pixel(path: pathlib.Path, pixel_um: Number | None) -> None:
  low, high = lengths.PIXEL_UM
  if pixel_um is not None and not low <= pixel_um <= high:
    raise UserError(
      f"{path}: its tags make a pixel {pixel_um:g} µm wide, expected {low:g} to {high:g}; give "
      "pixel_um"
    )


def _open_raw(path: pathlib.Path, channel: int | None) -> RawStack:
  check_path(path)
  if path.is_dir():
    return _open_folder(path, channel)
  suffix = path.suffix.lower()
  if suffix in images.SUFFIXES:
    return images.open_images([path], keep_colour=channel is not None)
  if suffix in tiff.SUFFIXES:
    return tiff.open_tiff(path, channel)
  if suffix in volume.SUFFIXES:
    return volume.open_npy(path) if suffix == ".npy" else volume.open_npz(path)
  if dicom.is_dicom(path):
    return dicom.open_dicom(path)
  if path.name.upper() == dicom.DIRECTORY:
    return dicom.open_dicom(path)  # which says what it is
  raise UserError(f"{path}: unknown kind of file, expected one of {', '.join(sorted(SUFFIXES))}")


def _open_folder(folder: pathlib.Path, channel: int | None) -> RawStack:
  paths = [p for p in folder.iterdir() if not p.name.startswith(".") and not p.is_dir()]
  kinds = {
    "BMP": [p for p in paths if p.suffix.lower() == ".bmp"],
    "PNG": [p for p in paths if p.suffix.lower() == ".png"],
    "JPEG": [p for p in paths if p.suffix.lower() in (".jpg", ".jpeg")],
    "TIFF": [p for p in paths if p.suffix.lower() in tiff.SUFFIXES],
    "DICOM": [p for p in paths if dicom.is_dicom(p)],
    "NumPy": [p for p in paths if p.suffix.lower() in volume.SUFFIXES],
  }
  kinds = {kind: found for kind, found in kinds.items() if found}
  if not kinds:
    raise UserError(f"{folder}: no slices in it, expected {', '.join(sorted(SUFFIXES))} files")
  if len(kinds) > 1:
    raise UserError(f"{folder}: holds both {' and '.join(kinds)} files; keep one kind in a folder")
  [(kind, found)] = kinds.items()
  if len(found) == 1:
    return _open_raw(found[0], channel)
  if kind == "NumPy":
    raise UserError(f"{folder}: holds {len(found)} volumes; give the path of one")
  if kind == "DICOM":
    return dicom.open_dicoms(sorted(found))
  ordered = images.in_natural_order(found)
  if kind == "TIFF":
    return tiff.open_tiffs(ordered)
  return images.open_images(ordered, keep_colour=channel is not None)
