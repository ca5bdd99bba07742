"""NumPy volumes: .npy, and .npz with the volume beside its depths."""

from __future__ import annotations

from collections.abc import Mapping
import pathlib
import zipfile

import numpy as np

from tfds_rcm.errors import UserError
from tfds_rcm.formats.raw import RawStack, check_count, check_path, check_size, decoding

SUFFIXES = frozenset({".npy", ".npz"})
_Header = tuple[tuple[int, ...], np.dtype, int]  # shape, type, offset of the first value


def open_npy(path: pathlib.Path) -> RawStack:
  """A volume [T, height, width] or [T, height, width, channels], or one slice [height, width].

  Raises:
    UserError: if the file is damaged or empty, or the volume's shape is another.
  """
  check_path(path)
  with decoding(path):
    volume = np.load(path, mmap_mode="r", allow_pickle=False)
  if volume.ndim == 2:
    volume = volume[np.newaxis]
  return RawStack(
    names=_names(path, volume.shape),
    # Slices are copied so that none holds the file open after it is handed out.
    read=lambda t: np.array(volume[t]),
  )


def open_npz(path: pathlib.Path) -> RawStack:
  """An archive with one array of three or four axes, and `depth_um` [T] and `pixel_um` if known.

  Slices are read straight from the archive: memory holds one at a time.

  Raises:
    UserError: if the file is damaged or empty, or holds no volume, or several.
  """
  check_path(path)
  with decoding(path):
    archive = zipfile.ZipFile(path)
  try:
    with decoding(path):
      headers = {n.removesuffix(".npy"): _header(archive, n) for n in archive.namelist()}
    volumes = [key for key, (shape, _, _) in headers.items() if len(shape) > 2]
    if len(volumes) != 1:
      raise UserError(
        f"{path}: holds the arrays {', '.join(headers)}; expected one volume "
        "[slices, height, width] among them"
      )
    shape, dtype, offset = headers[volumes[0]]
    check_count(path, shape[0], archive.getinfo(volumes[0] + ".npy").file_size)
    names = _names(path, shape)
    with decoding(path):
      depth_um = _numbers(archive, headers, "depth_um")
      pixel_um = _numbers(archive, headers, "pixel_um")
      pixel_um = None if pixel_um is None else float(pixel_um[0])
      stream = archive.open(volumes[0] + ".npy")
  except BaseException:
    archive.close()
    raise
  slice_bytes = int(np.prod(shape[1:])) * dtype.itemsize

  def read(t: int) -> np.ndarray:
    with decoding(names[t]):
      stream.seek(offset + t * slice_bytes)
      return np.frombuffer(stream.read(slice_bytes), dtype).reshape(shape[1:])

  def close() -> None:
    stream.close()
    archive.close()

  return RawStack(
    names=names,
    read=read,
    depth_um=depth_um,
    pixel_um=pixel_um,
    close=close,
  )


def _names(path: pathlib.Path, shape: tuple[int, ...]) -> list[str]:
  if len(shape) not in (3, 4) or not shape[0]:
    raise UserError(f"{path}: shape {shape}, expected [slices, height, width]")
  check_size(path, shape[1], shape[2])
  return [f"{path} slice {t}" for t in range(shape[0])]


def _header(archive: zipfile.ZipFile, name: str) -> _Header:
  with archive.open(name) as stream:
    version = np.lib.format.read_magic(stream)
    read = getattr(np.lib.format, f"read_array_header_{version[0]}_{version[1]}")
    shape, fortran, dtype = read(stream)
    if dtype.hasobject:
      raise UserError(f"{archive.filename}: {name} holds Python objects, expected numbers")
    if fortran and len(shape) > 2:
      raise UserError(
        f"{archive.filename}: {name} is in Fortran order; save np.ascontiguousarray(volume)"
      )
    return shape, dtype, stream.tell()


def _numbers(
  archive: zipfile.ZipFile, headers: Mapping[str, _Header], key: str
) -> np.ndarray | None:
  if key not in headers:
    return None
  with archive.open(key + ".npy") as stream:
    array = np.lib.format.read_array(stream, allow_pickle=False)
  return np.asarray(array, np.float64).reshape(-1)
