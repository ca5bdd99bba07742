"""Studies on disk for the benchmarks, as large as real ones."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
import csv
import functools
import os
import pathlib

from array_record.python import array_record_module
import numpy as np
from PIL import Image
import pydicom
from pydicom import dataset as pydicom_dataset
from pydicom import pixels as pydicom_pixels
from pydicom import uid
import tifffile

from tfds_rcm import stack_io

SIDE, SLICES, STEP_UM = 1000, 70, 3.0


def synthetic_stack(number: int) -> np.ndarray:
  """Gray levels [SLICES, SIDE, SIDE] that compress about as badly as the microscope's speckle."""
  return np.roll(_speckle(SIDE), 37 * number, axis=2)


@functools.cache
def _speckle(side: int) -> np.ndarray:
  rng = np.random.default_rng(0)
  noise = rng.normal(128, 40, (SLICES + 1, side + 1, side + 1)).astype(np.float32)
  for axis in range(3):  # neighbours resemble each other
    noise = (np.delete(noise, 0, axis) + np.delete(noise, -1, axis)) / 2
  return np.clip(noise + 2 * (noise - 128), 0, 255).astype(np.uint8)


def _images(suffix: str) -> Callable[[pathlib.Path, np.ndarray], pathlib.Path]:
  def write(path: pathlib.Path, pixels: np.ndarray) -> pathlib.Path:
    path.mkdir()
    for t, image in enumerate(pixels):
      Image.fromarray(image).save(path / f"v{t:07d}.{suffix}")
    return path

  return write


def _tiff(path: pathlib.Path, pixels: np.ndarray) -> pathlib.Path:
  path = path.with_suffix(".tif")
  tifffile.imwrite(path, pixels, photometric="minisblack", metadata=None)
  return path


def _dicom(path: pathlib.Path, pixels: np.ndarray) -> pathlib.Path:
  path = path.with_suffix(".dcm")
  ds = pydicom.Dataset()
  ds.file_meta = pydicom_dataset.FileMetaDataset()
  ds.file_meta.TransferSyntaxUID = uid.ExplicitVRLittleEndian
  ds.SOPClassUID = ds.file_meta.MediaStorageSOPClassUID = uid.SecondaryCaptureImageStorage
  ds.SOPInstanceUID = ds.file_meta.MediaStorageSOPInstanceUID = uid.generate_uid()
  ds.NumberOfFrames, ds.Rows, ds.Columns = pixels.shape
  ds.SamplesPerPixel, ds.PixelRepresentation = 1, 0
  ds.BitsAllocated, ds.BitsStored, ds.HighBit = 8, 8, 7
  ds.PhotometricInterpretation = "MONOCHROME2"
  ds.PixelData = pixels.tobytes()
  ds.save_as(path, enforce_file_format=True)
  return path


WRITE: Mapping[str, Callable[[pathlib.Path, np.ndarray], pathlib.Path]] = {
  "BMP": _images("bmp"),
  "PNG": _images("png"),
  "TIFF": _tiff,
  "DICOM": _dicom,
}


def write_study(folder: pathlib.Path, kind: str, stacks: int, different: int | None = None) -> None:
  """Writes stacks in one of the formats of WRITE, and their manifest.

  Args:
    folder: made when missing.
    kind: a format.
    stacks: how many, each of a patient of its own.
    different: how many of them lie on disk; the others are links to these. All if None.
  """
  folder.mkdir(parents=True, exist_ok=True)
  different = stacks if different is None else min(different, stacks)
  written: list[pathlib.Path] = []
  with (folder / "manifest.csv").open("w", newline="", encoding="utf-8") as stream:
    table = csv.writer(stream)
    table.writerow(("stack_id", "patient_id", "path", "step_um", "dej_um", "dermis_um"))
    for i in range(stacks):
      path = folder / f"stack_{i:04d}"
      if i < different:
        written.append(WRITE[kind](path, synthetic_stack(i)))
        path = written[-1]
      else:
        original = written[i % different]
        path = path.with_suffix(original.suffix)
        os.symlink(original, path)
      table.writerow((f"s{i:04d}", f"p{i:04d}", path.name, STEP_UM, 60 + i % 30, 110 + i % 40))


def read(path: pathlib.Path) -> int:
  """Decodes a stack through our reader; returns a sum, so that nothing is left out."""
  with stack_io.open_stack(path, step_um=STEP_UM) as reader:
    return sum(int(pixels[0, 0]) for pixels in reader)


def decode(kind: str, path: pathlib.Path) -> int:
  """Decodes a stack by the format's library, slice by slice."""
  return sum(int(pixels[0, 0]) for pixels in _DECODED[kind](path))


def decode_and_write(kind: str, folder: pathlib.Path, path: pathlib.Path) -> int:
  """The same, written to an .npy file that is removed."""
  target = folder / f"{path.stem}.npy"
  with target.open("wb") as file:
    shape = (SLICES, SIDE, SIDE)
    header = {"descr": "|u1", "fortran_order": False, "shape": shape}
    np.lib.format.write_array_header_1_0(file, header)
    for pixels in _DECODED[kind](path):
      file.write(pixels)
  target.unlink()
  return 0


def decode_and_record(kind: str, folder: pathlib.Path, path: pathlib.Path) -> int:
  """The same, written by ArrayRecord as one record of the bare pixels, to a file that is removed."""
  target = folder / f"{path.stem}.array_record"
  writer = array_record_module.ArrayRecordWriter(str(target), "group_size:1,uncompressed")
  writer.write(b"".join(_DECODED[kind](path)))
  writer.close()
  target.unlink()
  return 0


def _decode_images(path: pathlib.Path) -> Iterator[np.ndarray]:
  for file in sorted(path.iterdir()):
    with Image.open(file) as image:
      yield np.asarray(image)


def _decode_tiff(path: pathlib.Path) -> Iterator[np.ndarray]:
  with tifffile.TiffFile(path) as tif:
    for page in tif.pages:
      yield page.asarray()


def _decode_dicom(path: pathlib.Path) -> Iterator[np.ndarray]:
  return pydicom_pixels.iter_pixels(path)


_DECODED = {
  "BMP": _decode_images,
  "PNG": _decode_images,
  "TIFF": _decode_tiff,
  "DICOM": _decode_dicom,
}
