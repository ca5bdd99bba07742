"""Small studies on disk for the tests of everything that reads a user's files."""

from __future__ import annotations

import contextlib
import csv
import io
import pathlib

import numpy as np
from PIL import Image
import pydicom
from pydicom import dataset as pydicom_dataset
from pydicom import uid

from tfds_rcm import prepare as command_line

SIDE = 12


def volume(index: int, num_slices: int = 6) -> np.ndarray:
  rng = np.random.default_rng(index)
  return rng.integers(0, 256, (num_slices, SIDE, SIDE)).astype(np.uint8)


def write_table(path: pathlib.Path, header, rows, encoding="utf-8", delimiter=",", end="\n"):
  path.parent.mkdir(parents=True, exist_ok=True)
  with path.open("w", newline="", encoding=encoding) as stream:
    writer = csv.writer(stream, delimiter=delimiter, lineterminator=end)
    writer.writerows([header, *rows])
  return path


def write_study(folder: pathlib.Path, num_stacks: int = 6, num_patients: int = 3):
  """Stacks s0, s1, … of patients p0, p1, …, of 6 slices: corneum, epidermis, 2 dej, 2 dermis."""
  rows, labels = [], []
  for index in range(num_stacks):
    patient = f"p{index % num_patients}"
    where = pathlib.Path(patient, "arm", f"VivaStack #{index}")
    (folder / where).mkdir(parents=True)
    for t, pixels in enumerate(volume(index)):
      Image.fromarray(pixels).save(folder / where / f"v{t:07d}.bmp")
      name = ("stratum_corneum", "epidermis", "dej", "dej", "dermis", "dermis")[t]
      labels.append((f"s{index}", t, name))
    rows.append((f"s{index}", patient, where, 3, 0.5, "arm", "AB"[index % 2]))
  header = ("stack_id", "patient_id", "path", "step_um", "pixel_um", "site", "source")
  write_table(folder / "manifest.csv", header, rows)
  write_table(folder / "labels.csv", ("stack_id", "slice", "label"), labels)
  return folder


def write_images(folder, volume, suffix="bmp", mode=None):
  folder.mkdir(parents=True, exist_ok=True)
  for t, pixels in enumerate(volume):
    image = Image.fromarray(pixels)
    (image.convert(mode) if mode else image).save(folder / f"v{t:07d}.{suffix}")
  return folder


def write_dicom(path, frames, depth_mm=None, number=None, **tags):
  """A file of the Confocal Microscopy Image kind; per-frame depths if there are several frames."""
  ds = pydicom.Dataset()
  ds.file_meta = pydicom_dataset.FileMetaDataset()
  ds.file_meta.TransferSyntaxUID = tags.pop("syntax", uid.ExplicitVRLittleEndian)
  ds.SOPClassUID = ds.file_meta.MediaStorageSOPClassUID = "1.2.840.10008.5.1.4.1.1.77.1.8"
  ds.SOPInstanceUID = ds.file_meta.MediaStorageSOPInstanceUID = uid.generate_uid()
  ds.SeriesInstanceUID = tags.pop("series", "1.2.3")
  frames = np.asarray(frames)
  bits = frames.dtype.itemsize * 8
  ds.Rows, ds.Columns = frames.shape[1:3]
  ds.SamplesPerPixel, ds.PixelRepresentation = 1, 0
  ds.BitsAllocated, ds.BitsStored, ds.HighBit = bits, bits, bits - 1
  ds.PhotometricInterpretation = "MONOCHROME2"
  if len(frames) > 1:
    ds.NumberOfFrames = len(frames)
  if depth_mm is not None and len(frames) > 1:
    ds.PerFrameFunctionalGroupsSequence = [pydicom.Dataset() for _ in frames]
    for item, depth in zip(ds.PerFrameFunctionalGroupsSequence, depth_mm):
      inner = pydicom.Dataset()
      inner.ImageAcquisitionDepth = float(depth)
      item.FrameContentSequence = [inner]
  elif depth_mm is not None:
    ds.ImageAcquisitionDepth = float(depth_mm)
  if number is not None:
    ds.InstanceNumber = number
  for keyword, value in tags.items():
    setattr(ds, keyword, value)
  ds.PixelData = frames.tobytes()
  ds.save_as(path, enforce_file_format=True)
  return path


def compress_badly(path: pathlib.Path, syntax: uid.UID) -> uid.UID:
  """Has a DICOM file claim a compression whose codec may be missing; returns which."""
  ds = pydicom.dcmread(path)
  ds.file_meta.TransferSyntaxUID = syntax
  ds.PixelData = pydicom.encaps.encapsulate([b"\xff\x4f\xff\x51"])
  ds["PixelData"].VR = "OB"
  ds["PixelData"].is_undefined_length = True
  ds.save_as(path)
  return syntax


def edit(path: pathlib.Path, old: str, new: str, count: int = 1):
  text = path.read_text(encoding="utf-8")
  assert old in text
  path.write_text(text.replace(old, new, count), encoding="utf-8")


def prepare(name: str, source: pathlib.Path, data_dir: pathlib.Path, *options: str):
  """Runs the command line, on one core unless told otherwise: exit code, output, errors."""
  out, err = io.StringIO(), io.StringIO()
  with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
    code = command_line.main(
      [name, f"--source={source}", f"--data_dir={data_dir}", "--workers=1", *options]
    )
  return code, out.getvalue(), err.getvalue()


def succeed(*args) -> str:
  """Output of a command line that works."""
  code, out, err = prepare(*args)
  assert code == 0, err
  return out


def fail(*args) -> str:
  """The one line of a command line that does not."""
  code, _, err = prepare(*args)
  assert code == 1
  [line] = err.splitlines()
  assert line.startswith("error: ")
  return line
