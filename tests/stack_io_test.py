"""Stacks written by the well-kept libraries come back as they were, and bad files say why."""

import io
import os
import zipfile

import numpy as np
from PIL import Image
import pydicom
from pydicom import dataset as pydicom_dataset
from pydicom import uid
import pytest
import tifffile

from tfds_rcm import stack_io
from tfds_rcm.errors import UserError
from tfds_rcm.formats import images

T, SIDE, STEP_UM, PIXEL_UM = 12, 24, 1.7, 0.5


@pytest.fixture(name="volume")
def _volume():
  rng = np.random.default_rng(7)
  volume = rng.integers(0, 256, (T, SIDE, SIDE)).astype(np.uint8)
  volume[0, 0, :2] = 0, 255
  return volume


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


@pytest.mark.parametrize("suffix", ["bmp", "png", "tif"])
def test_folder_of_images_round_trip(tmp_path, volume, suffix):
  folder = write_images(tmp_path / "VivaStack #1", volume, suffix)
  (folder / "Thumbs.db").write_bytes(b"x")
  (folder / "._v0000000.bmp").write_bytes(b"")
  stack = stack_io.read_stack(folder, step_um=STEP_UM, pixel_um=PIXEL_UM)
  np.testing.assert_array_equal(stack.slices, volume)
  np.testing.assert_allclose(stack.depth_um, STEP_UM * np.arange(T), rtol=0, atol=1e-6)
  assert stack.pixel_um == PIXEL_UM
  assert stack.slices.dtype == np.uint8


@pytest.mark.parametrize("compression", [None, "zlib", "lzw"])
def test_multi_page_tiff_round_trip(tmp_path, volume, compression):
  path = tmp_path / "stack.tif"
  if compression == "lzw":
    pages = [Image.fromarray(p) for p in volume]
    pages[0].save(path, save_all=True, append_images=pages[1:], compression="tiff_lzw")
  else:
    tifffile.imwrite(path, volume, photometric="minisblack", compression=compression)
  np.testing.assert_array_equal(stack_io.read_stack(path, step_um=3).slices, volume)


@pytest.mark.parametrize("kind", ["imagej", "ome"])
def test_tiff_spacing_from_metadata(tmp_path, volume, kind):
  path = tmp_path / f"stack.{'ome.' if kind == 'ome' else ''}tif"
  if kind == "imagej":
    tifffile.imwrite(
      path, volume, imagej=True, resolution=(2.0, 2.0),
      metadata={"axes": "ZYX", "spacing": STEP_UM, "unit": "um"},
    )
  else:
    metadata = {"axes": "ZYX", "PhysicalSizeZ": STEP_UM, "PhysicalSizeX": 0.5, "PhysicalSizeY": 0.5}
    tifffile.imwrite(path, volume, metadata=metadata)
  stack = stack_io.read_stack(path)
  np.testing.assert_array_equal(stack.slices, volume)
  np.testing.assert_allclose(stack.depth_um, STEP_UM * np.arange(T), atol=1e-6)
  assert stack.pixel_um == pytest.approx(0.5)


@pytest.mark.parametrize("kind", ["npy", "npz", "npz compressed"])
def test_numpy_round_trip(tmp_path, volume, kind):
  depth = np.cumsum(np.linspace(1, 2, T))
  if kind == "npy":
    np.save(tmp_path / "s.npy", volume)
    stack = stack_io.read_stack(tmp_path / "s.npy", step_um=STEP_UM)
    depth = STEP_UM * np.arange(T)
  else:
    save = np.savez if kind == "npz" else np.savez_compressed
    save(tmp_path / "s.npz", slices=volume, depth_um=depth, pixel_um=PIXEL_UM)
    stack = stack_io.read_stack(tmp_path / "s.npz")
    assert stack.pixel_um == PIXEL_UM
  np.testing.assert_array_equal(stack.slices, volume)
  np.testing.assert_allclose(stack.depth_um, depth, rtol=0, atol=1e-6)


def test_multi_frame_dicom_is_sorted_by_depth(tmp_path, volume):
  depth_mm = 0.0015 * np.arange(T)
  path = write_dicom(
    tmp_path / "s.dcm", volume[::-1], depth_mm[::-1], PixelSpacing=[0.0005, 0.0005]
  )
  stack = stack_io.read_stack(path)
  np.testing.assert_array_equal(stack.slices, volume)
  np.testing.assert_allclose(stack.depth_um, 1000 * depth_mm, rtol=0, atol=1e-6)
  assert stack.pixel_um == pytest.approx(0.5)


def test_multi_frame_dicom_with_spacing_and_field_of_view(tmp_path, volume):
  path = write_dicom(
    tmp_path / "IM1", volume, SpacingBetweenSlices=0.003, FieldOfViewDimensions=[1, 1]
  )
  stack = stack_io.read_stack(path)
  np.testing.assert_allclose(stack.depth_um, 3.0 * np.arange(T), rtol=0, atol=1e-6)
  assert stack.pixel_um == pytest.approx(1000 / SIDE)
  assert stack_io.read_stack(path, step_um=5, pixel_um=0.5).depth_um[1] == 5


def test_folder_of_dicoms_by_depth_then_by_instance_number(tmp_path, volume):
  for t in range(T):
    write_dicom(tmp_path / f"x{T - t}.dcm", volume[t : t + 1], depth_mm=0.002 * t, number=t + 1)
  stack = stack_io.read_stack(tmp_path)
  np.testing.assert_array_equal(stack.slices, volume)
  np.testing.assert_allclose(stack.depth_um, 2.0 * np.arange(T), rtol=0, atol=1e-6)
  for t in range(T):
    write_dicom(tmp_path / f"x{T - t}.dcm", volume[t : t + 1], number=t + 1)
  np.testing.assert_array_equal(stack_io.read_stack(tmp_path, step_um=2).slices, volume)


def test_rle_dicom_and_monochrome1(tmp_path, volume):
  path = write_dicom(tmp_path / "s.dcm", volume, PhotometricInterpretation="MONOCHROME1")
  ds = pydicom.dcmread(path)
  ds.compress(uid.RLELossless)
  ds.save_as(path)
  np.testing.assert_array_equal(stack_io.read_stack(path, step_um=3).slices, 255 - volume)


def _deep_folder(tmp_path, values, suffix):
  folder = tmp_path / suffix
  folder.mkdir()
  for t, pixels in enumerate(values):
    if suffix == "tif":
      tifffile.imwrite(folder / f"{t}.tif", pixels)
    else:
      Image.fromarray(pixels).save(folder / f"{t}.png")
  return folder


@pytest.mark.parametrize("suffix", ["tif", "png"])
def test_sixteen_bits_are_scaled_by_the_stacks_range_never_wrapped(tmp_path, suffix):
  values = np.linspace(1000, 61000, 3 * SIDE * SIDE).astype(np.uint16).reshape(3, SIDE, SIDE)
  folder = _deep_folder(tmp_path, values, suffix)
  stack = stack_io.read_stack(folder, step_um=3)
  expected = np.rint((values - 1000.0) * 255 / 60000)
  assert np.abs(stack.slices - expected).max() <= 1
  assert stack.slices[0, 0, 0] == 0
  assert (np.diff(stack.slices.reshape(-1).astype(int)) >= 0).all()  # order is kept: no wrap
  given = stack_io.read_stack(folder, step_um=3, value_range=(0, 65535))
  assert np.abs(given.slices - values / 257.0).max() <= 1
  with stack_io.open_stack(folder, step_um=3) as reader:
    np.testing.assert_array_equal(np.stack(list(reader)), stack.slices)


def test_float_volume_is_scaled_and_clipped(tmp_path):
  values = np.linspace(-2.0, 2.0, 2 * SIDE * SIDE).reshape(2, SIDE, SIDE)
  np.save(tmp_path / "f.npy", values)
  own = stack_io.read_stack(tmp_path / "f.npy", step_um=3).slices
  assert own.min() == 0
  assert own.max() == 255
  clipped = stack_io.read_stack(tmp_path / "f.npy", step_um=3, value_range=(0, 1)).slices
  assert (clipped[values < 0] == 0).all()
  assert (clipped[values > 1] == 255).all()


@pytest.mark.parametrize(("suffix", "mode"), [
  ("png", "RGB"), ("png", "RGBA"), ("bmp", "RGB"), ("png", "P"), ("tif", "RGB"), ("png", "LA"),
])
def test_colour_saved_by_mistake_becomes_the_same_gray(tmp_path, volume, suffix, mode):
  folder = write_images(tmp_path / "s", volume, suffix, mode)
  np.testing.assert_array_equal(stack_io.read_stack(folder, step_um=3).slices, volume)


def test_captions_below_the_square_are_dropped(tmp_path, volume):
  tall = np.concatenate([volume, np.full((T, 5, SIDE), 255, np.uint8)], axis=1)
  folder = write_images(tmp_path / "s", list(tall[:4]) + list(volume[4:]))  # only on some slices
  np.testing.assert_array_equal(stack_io.read_stack(folder, step_um=3).slices, volume)


def test_streamed_slices_are_those_of_the_whole_stack(tmp_path, volume):
  folder = write_images(tmp_path / "s", volume)
  with stack_io.open_stack(folder, step_um=3) as reader:
    assert reader.shape == volume.shape
    assert len(reader) == T
    np.testing.assert_array_equal(reader[7], volume[7])
    np.testing.assert_array_equal(np.stack(list(reader)), volume)
    with pytest.raises(IndexError):
      reader[T]


@pytest.mark.parametrize("names", [
  ["v8", "v9", "v10", "v11"], ["s2_z008", "s2_z009", "s2_z010"], ["z0", "z3", "z6"],
  ["08-59_v1", "09-00_v2", "09-03_v3"],
])
def test_natural_order(tmp_path, names):
  paths = [tmp_path / f"{name}.bmp" for name in names]
  assert images.in_natural_order(sorted(paths, reverse=True)) == paths


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
    tmp_path / "planar.tif", np.stack([volume[:3]] * 2, -1), photometric="minisblack",
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


@pytest.mark.parametrize(("syntax", "package"), [
  (uid.JPEG2000Lossless, "pylibjpeg-openjpeg"), (uid.JPEGLosslessSV1, "pylibjpeg-libjpeg"),
  (uid.JPEGLSLossless, "pyjpegls"),
])
def test_compressed_dicom_without_its_codec_names_the_package(
  tmp_path, volume, syntax, package, monkeypatch
):
  path = write_dicom(tmp_path / "s.dcm", volume[:1])
  ds = pydicom.dcmread(path)
  ds.file_meta.TransferSyntaxUID = syntax
  ds.PixelData = pydicom.encaps.encapsulate([b"\xff\x4f\xff\x51"])
  ds["PixelData"].VR = "OB"
  ds["PixelData"].is_undefined_length = True
  ds.save_as(path)
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
