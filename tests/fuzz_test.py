"""Damaged files: a valid stack or one line that names the file, whatever bytes are hit."""

import os
import random
import warnings
import zipfile

import numpy as np
import pydicom
import pytest
import tifffile

from tests import studies
from tfds_rcm import stack_io
from tfds_rcm.errors import UserError
from tfds_rcm.formats import zip_archive
from tfds_rcm.study import manifest as manifest_lib
from tfds_rcm.study import plan as plan_lib

DAMAGED = 40  # files of each kind; thousands were tried when the readers were written
VOLUME = studies.volume(0, 4)


def _images(suffix, mode=None, volume=VOLUME):
  def write(folder):
    studies.write_images(folder / "stack", volume, suffix, mode)
    return folder / "stack" / f"v0000002.{suffix}"

  return write


def _tiff(volume=VOLUME, **options):
  def write(folder):
    tifffile.imwrite(folder / "stack.tif", volume, photometric="minisblack", **options)
    return folder / "stack.tif"

  return write


def _lzw(folder):
  studies.write_images(folder / "stack", VOLUME, "tif")
  pages = [studies.Image.fromarray(pixels) for pixels in VOLUME]
  path = folder / "lzw.tif"
  pages[0].save(path, compression="tiff_lzw", save_all=True, append_images=pages[1:])
  return path


def _dicom(folder, *, rle=False):
  path = studies.write_dicom(folder / "stack.dcm", VOLUME, depth_mm=0.003 * np.arange(4))
  if rle:
    file = pydicom.dcmread(path)
    file.compress(pydicom.uid.RLELossless)
    file.save_as(path)
  return path


def _numpy(save, name):
  def write(folder):
    save(folder / name, VOLUME)
    return folder / name

  return write


STACKS = {
  "bmp": _images("bmp"),
  "bmp, colour": _images("bmp", "RGB"),
  "png": _images("png"),
  "png, 16 bit": _images("png", volume=VOLUME.astype(np.uint16) * 257),
  "jpg": _images("jpg"),
  "tif, folder": _images("tif"),
  "tif": _tiff(),
  "tif, zlib": _tiff(compression="zlib"),
  "tif, ImageJ": _tiff(imagej=True, metadata={"spacing": 3.0, "unit": "um"}, resolution=(2, 2)),
  "tif, LZW": _lzw,
  "tif, JPEG": _tiff(compression="jpeg"),
  "tif, 12 bit": _tiff(volume=VOLUME.astype(np.uint16) * 16, bitspersample=12),
  "tif, one page": _tiff(imagej=True, truncate=True, metadata={"axes": "ZYX"}),
  "tif, OME": _tiff(ome=True, metadata={"axes": "ZYX", "PhysicalSizeZ": 3.0}),
  "png, palette": _images("png", "P"),
  "dicom": _dicom,
  "dicom, RLE": lambda folder: _dicom(folder, rle=True),
  "npy": _numpy(np.save, "stack.npy"),
  "npz": _numpy(np.savez_compressed, "stack.npz"),
}
TABLES = ("manifest.csv", "labels.csv", "splits.csv")


def damaged(data: bytes, rng: random.Random) -> bytes:
  """One to three bits, bytes or pieces changed, most of them where headers are."""
  data = bytearray(data)
  for _ in range(rng.randint(1, 3)):
    at = rng.randrange(min(len(data), rng.choice((400, len(data)))) or 1)
    piece = bytes(data[at : at + rng.randint(1, 16)])
    match rng.randrange(6):
      case 0:
        data[at : at + 1] = bytes([rng.randrange(256)])
      case 1:
        del data[at:]
      case 2:
        del data[at : at + len(piece)]
      case 3:
        data[at:at] = rng.choice((piece, b"\0", b";", b'"', b"-1", b"\xe9", b"nan"))
      case 4:
        data[at : at + 4] = rng.choice((b"\xff" * 4, bytes(4), b"\x7f\xff\xff\xff"))
      case _:
        other = rng.randrange(len(data) + 1)
        data[other : other + len(piece)] = piece
  return bytes(data)


def check_damaged(path, read, capfd, recwarn, *, named):
  """Damages a file again and again, and checks what comes of it."""
  rng, original = random.Random(0), path.read_bytes()
  messages = []
  for _ in range(DAMAGED):
    path.write_bytes(damaged(original, rng))
    try:
      with warnings.catch_warnings():
        warnings.simplefilter("error")
        read()
    except UserError as error:
      messages.append(str(error))
    assert capfd.readouterr() == ("", "")
  assert not recwarn.list
  assert messages
  for message in messages:
    assert message.isprintable()
    assert named in message
    assert len(message) < 700


@pytest.mark.parametrize("kind", STACKS)
def test_a_damaged_stack(tmp_path, capfd, recwarn, kind):
  path = STACKS[kind](tmp_path)
  stack = path.parent if path.parent != tmp_path else path

  def read():
    found = stack_io.read_stack(stack, step_um=3)
    assert found.slices.dtype == np.uint8
    assert found.slices.ndim == 3
    assert len(found.slices) == len(found.depth_um) > 0

  check_damaged(path, read, capfd, recwarn, named=path.name)


def _plan(folder):
  labels = folder / "labels.csv"
  plan = plan_lib.make_plan(
    plan_lib.Options(folder, folder / "manifest.csv", labels, folder / "splits.csv"), workers=1
  )
  for problem in plan.problems:
    assert os.fspath(folder) in problem
  plan.raise_problems()


@pytest.mark.parametrize("table", TABLES)
def test_a_damaged_table(tmp_path, capfd, recwarn, table):
  folder = studies.write_study(tmp_path / "study", num_stacks=3)
  given = zip(("s0", "s1", "s2"), ("train", "validation", "test"))
  studies.write_table(folder / "splits.csv", ("stack_id", "split"), given)
  check_damaged(folder / table, lambda: _plan(folder), capfd, recwarn, named=".csv")


def test_a_damaged_utf_16_table(tmp_path, capfd, recwarn):
  folder = studies.write_study(tmp_path / "study", num_stacks=3)
  path = folder / "manifest.csv"
  path.write_bytes(path.read_text().encode("utf-16"))
  check_damaged(path, lambda: _plan(folder), capfd, recwarn, named=".csv")


def test_a_quote_that_is_never_closed_and_utf_16_without_its_mark(tmp_path):
  folder = studies.write_study(tmp_path / "study", num_stacks=3)
  path = folder / "manifest.csv"
  text = path.read_text()
  path.write_text(text.replace("p0/arm", '"p0/arm', 1))
  with pytest.raises(UserError, match=r"manifest.csv, row 4: not CSV .*; save it again"):
    _plan(folder)
  path.write_bytes(text.encode("utf-16-le"))
  with pytest.raises(UserError, match=r"manifest.csv: holds bytes that are no text"):
    _plan(folder)
  path.write_text(text.replace("site", '"site\nof the body"', 1))
  _plan(folder)


def test_a_digit_that_is_no_number(tmp_path):
  folder = studies.write_study(tmp_path / "study", num_stacks=3)
  studies.edit(folder / "labels.csv", "s0,3,", "s0,³,")
  with pytest.raises(UserError, match=r"labels.csv, row 5: slice '³' is neither a number"):
    _plan(folder)


def test_a_damaged_zip(tmp_path, capfd, recwarn):
  folder = studies.write_study(tmp_path / "study", num_stacks=3)
  packed = tmp_path / "study.zip"
  with zipfile.ZipFile(packed, "w", zipfile.ZIP_DEFLATED) as zipped:
    for path in sorted(folder.rglob("*")):
      zipped.write(path, path.relative_to(folder))

  def read():
    found = zip_archive.source_folder(packed, tmp_path / "unpacked")
    _plan(manifest_lib.find_manifest(found).parent)

  check_damaged(packed, read, capfd, recwarn, named="study")


def test_tiff_pages_in_a_circle(tmp_path):
  path = _tiff()(tmp_path)
  data = path.read_bytes()
  with tifffile.TiffFile(path) as file:
    last = file.pages.next_page_offset
  path.write_bytes(data[:last] + data[4:8] + data[last + 4 :])
  with pytest.raises(UserError, match=r"stack.tif: its pages run in a circle"):
    stack_io.read_stack(path, step_um=3)


@pytest.mark.parametrize("frames", [10**9, -3, 1500])
def test_frames_that_a_file_cannot_hold(tmp_path, frames):
  path = _dicom(tmp_path)
  file = pydicom.dcmread(path)
  file.NumberOfFrames = frames
  file.save_as(path)
  with pytest.raises(UserError, match=rf"stack.dcm: the header claims {frames} slices"):
    stack_io.read_stack(path)


def test_a_volume_that_its_archive_cannot_hold(tmp_path):
  header = {"descr": "|u1", "fortran_order": False, "shape": (10**12, 1, 1)}
  path = tmp_path / "stack.npz"
  with zipfile.ZipFile(path, "w") as zipped, zipped.open("volume.npy", "w") as stream:
    np.lib.format.write_array_header_1_0(stream, header)
  with pytest.raises(UserError, match=r"stack.npz: the header claims 1000000000000 slices"):
    stack_io.read_stack(path, step_um=3)


@pytest.mark.parametrize("dtype", ["U4", "complex64", "M8[s]", "V3"])
def test_values_that_are_no_gray_levels(tmp_path, dtype):
  np.save(tmp_path / "stack.npy", np.zeros((2, 5, 5), dtype))
  with pytest.raises(UserError, match=r"stack.npy slice 0: stored as .*, expected real numbers"):
    stack_io.read_stack(tmp_path / "stack.npy", step_um=3)


def test_a_nonsense_pixel_size_is_overruled_by_a_given_one(tmp_path):
  path = studies.write_dicom(tmp_path / "stack.dcm", VOLUME[:1], depth_mm=0, PixelSpacing=[9, 9])
  with pytest.raises(UserError, match=r"make a pixel 9000 µm wide.*give pixel_um"):
    stack_io.read_stack(path)
  assert stack_io.read_stack(path, pixel_um=0.5).pixel_um == 0.5
