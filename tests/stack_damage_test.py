"""Damaged, hostile and merely wrong files: each is refused in one line that names it."""

import io
import os
import zipfile

import numpy as np
from PIL import Image
import pydicom
from pydicom import uid
import pytest
import tifffile

from tests.studies import compress_badly, write_dicom, write_images
from tfds_rcm import stack_io
from tfds_rcm.errors import UserError

T, SIDE = 12, 24


@pytest.fixture(name="volume")
def _volume():
  rng = np.random.default_rng(7)
  volume = rng.integers(0, 256, (T, SIDE, SIDE)).astype(np.uint8)
  volume[0, 0, :2] = 0, 255
  return volume


def _error(path, step_um=3, **kwargs):
  with pytest.raises(UserError) as error:
    stack_io.read_stack(path, step_um=step_um, **kwargs)
  message = str(error.value)
  assert "\n" not in message
  return message


def _damage(path, keep):
  path.write_bytes(path.read_bytes()[:keep])


@pytest.mark.parametrize("suffix", ["bmp", "png", "tif"])
@pytest.mark.parametrize("keep", [0, 60, 300])
def test_truncated_slices(tmp_path, volume, suffix, keep):
  folder = write_images(tmp_path / "s", volume, suffix)
  _damage(folder / f"v0000003.{suffix}", keep)
  message = _error(folder)
  assert f"v0000003.{suffix}" in message
  assert "again" in message


def _write_pages(path, volume):
  pages = [Image.fromarray(p) for p in volume]
  pages[0].save(path, save_all=True, append_images=pages[1:])


WRITE_VOLUME = {
  "s.npy": np.save,
  "s.npz": np.savez_compressed,
  "tifffile.tif": lambda path, volume: tifffile.imwrite(path, volume, metadata=None),
  "pillow.tif": _write_pages,
  "s.dcm": lambda path, volume: write_dicom(path, volume, depth_mm=np.arange(T)),
}


@pytest.mark.parametrize("name", WRITE_VOLUME)
def test_wherever_a_volume_is_cut_short_no_slice_is_lost_in_silence(tmp_path, volume, name):
  path = tmp_path / name
  WRITE_VOLUME[name](path, volume)
  whole = path.read_bytes()
  messages = []
  for keep in [0, 100, *range(700, len(whole), 97), len(whole) - 1]:
    path.write_bytes(whole[:keep])
    try:
      slices = stack_io.read_stack(path, step_um=3).slices
      np.testing.assert_array_equal(slices, volume)  # some writers end in bytes without meaning
    except UserError as error:
      messages.append(str(error))
  assert len(messages) > 20
  assert all(name in message and "again" in message for message in messages)


def test_unequal_sizes_and_depths_of_bits(tmp_path, volume):
  folder = write_images(tmp_path / "s", volume)
  Image.fromarray(volume[0, :20, :20]).save(folder / "v0000005.bmp")
  assert "v0000005.bmp: 20 x 20 pixels, expected 24 x 24" in _error(folder)
  folder = write_images(tmp_path / "t", volume, "png")
  Image.fromarray(volume[0].astype(np.uint16)).save(folder / "v0000005.png")
  assert "v0000005.png: stored as uint16" in _error(folder)


def test_gaps_strangers_and_doubles_in_a_folder(tmp_path, volume):
  folder = write_images(tmp_path / "s", volume)
  (folder / "v0000005.bmp").unlink()
  assert "v0000006.bmp: gap in numbering after v0000004.bmp (number 5 is missing)" in _error(folder)
  Image.fromarray(volume[5]).save(folder / "v0000005.bmp")
  Image.fromarray(volume[5]).save(folder / "v05.bmp")
  assert "doubled" in _error(folder)
  (folder / "v05.bmp").rename(folder / "overview.bmp")
  assert "overview.bmp: does not fit names like v0000000.bmp" in _error(folder)
  (folder / "overview.bmp").rename(folder / "overview.png")
  assert "BMP and PNG" in _error(folder)


def test_decompression_bombs(tmp_path):
  header = io.BytesIO()
  Image.new("L", (8, 8)).save(header, "BMP")
  bomb = bytearray(header.getvalue())
  bomb[18:26] = (20_000).to_bytes(4, "little") * 2
  (tmp_path / "b.bmp").write_bytes(bomb)
  bomb[18:26] = (8_000).to_bytes(4, "little") * 2
  (tmp_path / "c.bmp").write_bytes(bomb)
  with zipfile.ZipFile(tmp_path / "b.npz", "w") as archive, archive.open("a.npy", "w") as stream:
    np.lib.format.write_array_header_1_0(
      stream, {"descr": "|u1", "fortran_order": False, "shape": (2, 90_000, 90_000)}
    )
  for name in ("b.bmp", "c.bmp", "b.npz"):
    message = _error(tmp_path / name)
    assert name in message
    assert "bomb" in message


def test_links_that_loop_and_lead_nowhere(tmp_path, volume):
  os.symlink(tmp_path / "b", tmp_path / "a")
  os.symlink(tmp_path / "a", tmp_path / "b")
  assert str(tmp_path / "a") in _error(tmp_path / "a")
  folder = write_images(tmp_path / "s", volume)
  (folder / "v0000003.bmp").unlink()
  os.symlink(folder / "v0000003.bmp", folder / "v0000003.bmp")
  assert "v0000003.bmp" in _error(folder)
  assert "no such file" in _error(tmp_path / "missing")
  (tmp_path / "empty").mkdir()
  assert "no slices" in _error(tmp_path / "empty")
  (tmp_path / "s.gif").write_bytes(b"GIF89a")
  assert "unknown kind of file" in _error(tmp_path / "s.gif")


def test_two_channels(tmp_path, volume):
  tifffile.imwrite(
    tmp_path / "planar.tif",
    np.stack([volume[:3]] * 2, -1),
    photometric="minisblack",
    planarconfig="contig",
  )
  tifffile.imwrite(
    tmp_path / "hyper.tif", np.stack([volume] * 2, 1), imagej=True, metadata={"axes": "ZCYX"}
  )
  tifffile.imwrite(tmp_path / "o.ome.tif", np.stack([volume] * 2, 1), metadata={"axes": "ZCYX"})
  np.save(tmp_path / "v.npy", np.stack([volume] * 2, -1))
  for name in ("planar.tif", "hyper.tif", "o.ome.tif", "v.npy"):
    message = _error(tmp_path / name)
    assert name in message
    assert "2 channels" in message


@pytest.mark.parametrize(
  ("syntax", "package"),
  [
    (uid.JPEG2000Lossless, "pylibjpeg-openjpeg"),
    (uid.JPEGLosslessSV1, "pylibjpeg-libjpeg"),
    (uid.JPEGLSLossless, "pyjpegls"),
  ],
)
def test_compressed_dicom_without_its_codec_names_the_package(
  tmp_path, volume, syntax, package, monkeypatch
):
  path = write_dicom(tmp_path / "s.dcm", volume[:1])
  compress_badly(path, syntax)
  decoder = type(pydicom.pixels.get_decoder(syntax))
  monkeypatch.setattr(decoder, "is_available", False)
  message = _error(path)
  assert "s.dcm" in message
  assert "pip install" in message
  assert message.endswith(package)


def test_dicom_gap_series_and_equal_depths(tmp_path, volume):
  for t in (0, 1, 2, 4, 5):
    write_dicom(tmp_path / f"{t}.dcm", volume[t : t + 1], number=t)
  assert "4.dcm: gap in Instance Number after 2.dcm" in _error(tmp_path)
  write_dicom(tmp_path / "4.dcm", volume[:1], number=3, series="9.9")
  assert "2 series" in _error(tmp_path)
  for t in (0, 1, 2, 4, 5):
    write_dicom(tmp_path / f"{t}.dcm", volume[t : t + 1], depth_mm=max(t, 1))
  assert "same Image Acquisition Depth" in _error(tmp_path)


def test_implausible_pixel_size_in_dicom(tmp_path, volume):
  path = write_dicom(tmp_path / "s.dcm", volume, FieldOfViewDimensions=[500, 500])
  assert "give pixel_um" in _error(path)


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_not_a_number(tmp_path, volume, bad):
  values = volume.astype(np.float32)
  values[4, 2, 2] = bad
  np.save(tmp_path / "s.npy", values)
  assert "s.npy slice 4: holds NaN" in _error(tmp_path / "s.npy")


def test_depth_must_be_told_once_and_rise(tmp_path, volume):
  folder = write_images(tmp_path / "s", volume)
  assert "give step_um" in _error(folder, step_um=None)
  assert "step_um=-1" in _error(folder, step_um=-1)
  assert "value_range" in _error(folder, value_range=(3, 3))
  np.savez(tmp_path / "s.npz", slices=volume, depth_um=np.zeros(T))
  assert "rising" in _error(tmp_path / "s.npz", step_um=None)


def test_pickled_and_flat_arrays_are_refused(tmp_path):
  np.save(tmp_path / "o.npy", np.array([{}], object), allow_pickle=True)
  assert "o.npy" in _error(tmp_path / "o.npy")
  np.save(tmp_path / "f.npy", np.zeros(5))
  assert "expected [slices, height, width]" in _error(tmp_path / "f.npy")
  np.savez(tmp_path / "n.npz", a=np.zeros((2, 3, 3)), b=np.zeros((2, 3, 3)))
  assert "one volume" in _error(tmp_path / "n.npz")
