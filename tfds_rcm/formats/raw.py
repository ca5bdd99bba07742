"""What every format reader hands over, and the checks that all of them share."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
import contextlib
import dataclasses
import os
import pathlib
import warnings

from jaxtyping import Float, Shaped
import numpy as np

from tfds_rcm.errors import UserError

# A slice of a VivaScope has 1 Mpx. A header that claims 50 times as much is damaged or hostile,
# and would fill the memory before a decoder noticed.
MAX_SLICE_PIXELS = 50_000_000
_MAX_REASON = 200  # characters; pydicom and zipfile quote the damaged bytes
_LUMA = np.array([0.299, 0.587, 0.114])


@dataclasses.dataclass(frozen=True)
class RawStack:
  """A stack as its files store it, shallow first, nothing decoded yet.

  Attributes:
    names: where each slice comes from, for messages.
    read: stored values of one slice, [height, width] or [height, width, channels].
    depth_um: depth of each slice in µm if the files tell it.
    no_depth: why they do not, the end of a message.
    pixel_um: side of a pixel in µm if the files tell it.
    inverted: True if the lowest value is the brightest (DICOM MONOCHROME1, TIFF WhiteIsZero).
    has_channels: False if `read` hands out the channel that was chosen, not all.
    warnings: what is odd but allowed.
    close: releases the files.
  """

  names: Sequence[str]
  read: Callable[[int], Shaped[np.ndarray, "height width *channels"]]
  depth_um: Float[np.ndarray, " T"] | None = None
  no_depth: str = "the files do not tell their depth"
  pixel_um: float | None = None
  inverted: bool = False
  has_channels: bool = True
  warnings: tuple[str, ...] = ()
  close: Callable[[], None] = lambda: None


@contextlib.contextmanager
def decoding(place: str | os.PathLike[str]) -> Iterator[None]:
  """Turns whatever a decoder raises into one line that names the file, and hides its warnings.

  Raises:
    UserError: in place of any exception raised inside the block.
  """
  try:
    with warnings.catch_warnings():
      warnings.simplefilter("ignore")
      yield
  except UserError:
    raise
  except Exception as error:  # Decoders raise SyntaxError, struct.error, zlib.error and more.
    reason = " ".join(str(error).split()) or type(error).__name__
    if len(reason) > _MAX_REASON:
      reason = reason[:_MAX_REASON] + "…"
    raise UserError(
      f"{place}: cannot be decoded ({reason}); the file is damaged or cut short: copy or export "
      "it again"
    ) from error


def check_path(path: pathlib.Path) -> os.stat_result:
  """Follows links to a file or folder.

  Raises:
    UserError: if there is nothing, a loop of links, no permission, or an empty file.
  """
  try:
    status = path.stat()
  except FileNotFoundError as error:
    raise UserError(f"{path}: no such file or folder; check the path") from error
  except (OSError, RuntimeError, ValueError) as error:  # A loop before Python 3.13; a NUL.
    reason = getattr(error, "strerror", None) or str(error)
    raise UserError(f"{path}: cannot be opened ({reason}); mend the link or the rights") from error
  if path.is_file() and status.st_size == 0:
    raise UserError(f"{path}: the file is empty (0 bytes); copy or export it again")
  return status


def check_size(place: str | os.PathLike[str], height: int, width: int) -> None:
  """Refuses a decompression bomb before it is decoded.

  Raises:
    UserError: if a slice would have no pixels or more than MAX_SLICE_PIXELS.
  """
  if height < 1 or width < 1 or height * width > MAX_SLICE_PIXELS:
    raise UserError(
      f"{place}: the header claims {height} x {width} pixels, expected at most "
      f"{MAX_SLICE_PIXELS:,} in all; this is not a slice of a stack (decompression bomb?)"
    )


def check_count(place: str | os.PathLike[str], slices: int, num_bytes: int) -> None:
  """Refuses a header that claims more slices than there are bytes, which would fill the memory.

  Raises:
    UserError: if there are no slices or more than `num_bytes`.
  """
  if not 0 < slices <= num_bytes:
    raise UserError(
      f"{place}: the header claims {slices} slices, but the file has {num_bytes:,} bytes; it is "
      "damaged or cut short: copy or export it again"
    )


def to_gray(
  place: str,
  pixels: Shaped[np.ndarray, "height width *channels"],
  channel: int | None = None,
) -> Shaped[np.ndarray, "height width"]:
  """One channel from gray, or from colour saved by mistake (equal channels stay exact).

  Args:
    place: for messages.
    pixels: gray, RGB, or RGB with an alpha channel.
    channel: takes this one of several channels, counted from 1, instead of the luma.

  Raises:
    UserError: if there are two or more than four channels and none is chosen, if
      transparency varies, or if there is anything but real numbers.
  """
  if pixels.dtype == bool:
    pixels = pixels.astype(np.uint8) * 255
  if pixels.dtype.kind not in "uif":
    raise UserError(f"{place}: stored as {pixels.dtype}, expected real numbers; export it anew")
  # Files of one stack may differ in the order of bytes.
  pixels = pixels.astype(pixels.dtype.newbyteorder("="), copy=False)
  channels = pixels.shape[-1] if pixels.ndim == 3 else 1
  if channel is not None:
    check_channel(place, channels, channel)
    return pixels if pixels.ndim == 2 else pixels[..., channel - 1]
  if pixels.ndim == 2:
    return pixels
  if pixels.ndim != 3 or channels not in (1, 3, 4):
    check_channel(place, pixels.shape[-1], None)
  if channels == 1:
    return pixels[..., 0]
  if channels == 4:
    pixels = without_alpha(place, pixels)
  luma = pixels @ _LUMA
  if np.issubdtype(pixels.dtype, np.integer):
    luma = np.rint(luma)
  return luma.astype(pixels.dtype)


def check_channel(place: str | os.PathLike[str], channels: int, channel: int | None) -> None:
  """Refuses several channels of which none is chosen, and the choice of one that is not there.

  Raises:
    UserError: with the channels that there are.
  """
  if channel is None and channels != 1:
    raise UserError(
      f"{place}: has {channels} channels, expected gray or RGB; choose the reflectance channel "
      f"with --channel=1 to --channel={channels}, or export it alone"
    )
  if channel is not None and not 1 <= channel <= channels:
    raise UserError(f"{place}: channel={channel}, expected 1 to {channels}, the channels it has")


def without_alpha(
  place: str, pixels: Shaped[np.ndarray, "height width channels"]
) -> Shaped[np.ndarray, "height width colours"]:
  """Drops a last channel that tells transparency and is the same everywhere.

  Raises:
    UserError: if it varies, since then what is seen depends on what lies below.
  """
  alpha = pixels[..., -1]
  if (alpha != alpha.flat[0]).any():
    raise UserError(f"{place}: is transparent in part; export it without an alpha channel")
  return pixels[..., :-1]


def oriented(
  pixels: Shaped[np.ndarray, "height width *channels"], orientation: int
) -> Shaped[np.ndarray, "side other *channels"]:
  """Turns stored rows and columns as the tag Orientation (274) of TIFF and EXIF tells.

  Writers' mistakes, 0 and what lies above 8, count as 1: as stored.
  """
  if 5 <= orientation <= 8:
    pixels = np.swapaxes(pixels, 0, 1)
  flips = {2: (1,), 3: (0, 1), 4: (0,), 6: (1,), 7: (0, 1), 8: (0,)}
  return np.flip(pixels, flips.get(orientation, ()))


def crop_caption(
  pixels: Shaped[np.ndarray, "height width"],
) -> Shaped[np.ndarray, "side width"]:
  """Drops the rows below a square of the image's width.

  VivaStack burns file name and position in below row 1000 of its 1000 x 1000 px
  images (saved 1000 wide and, say, 1020 high). A caption tells the study and must
  never be trained on.
  """
  return pixels[: pixels.shape[1]]
