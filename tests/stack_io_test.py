"""Stacks written by the well-kept libraries come back as they were."""

import numpy as np
from PIL import Image
import pydicom
from pydicom import uid
import pytest
import tifffile

from tests.studies import write_dicom, write_images
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
      path,
      volume,
      imagej=True,
      resolution=(2.0, 2.0),
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


def test_frames_of_a_dicom_file_in_any_order(tmp_path, volume):
  path = write_dicom(tmp_path / "s.dcm", volume[::-1], 0.003 * np.arange(T)[::-1])
  with stack_io.open_stack(path) as reader:
    for t in (3, 4, 5, 1, 1, 0, T - 1, 2):
      np.testing.assert_array_equal(reader[t], volume[t])


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


@pytest.mark.parametrize("dtype", [np.uint16, np.int32, np.float64])
def test_hot_and_dead_pixels_make_no_stack_black(tmp_path, dtype):
  values = np.random.default_rng(1).integers(1000, 3001, (8, SIDE, SIDE)).astype(dtype)
  np.save(tmp_path / "clean.npy", values)
  clean = stack_io.read_stack(tmp_path / "clean.npy", step_um=3).slices.astype(int)
  values[3, 5, 7], values[6, 1, 1], values[1, 2, 3] = 65535, 65535, 0
  np.save(tmp_path / "hot.npy", values)
  with stack_io.open_stack(tmp_path / "hot.npy", step_um=3) as reader:
    assert reader.deep
    hot = np.stack(list(reader)).astype(int)
    np.testing.assert_array_equal(reader.read_all(), hot)
  assert hot[3, 5, 7] == hot[6, 1, 1] == 255
  assert hot[1, 2, 3] == 0
  good = (values >= 1000) & (values <= 3000)
  # One end may move by the distance between neighbours among 4,608 sorted values.
  assert np.abs(hot - clean)[good].max() <= 2
  assert 100 < hot.mean() < 155


@pytest.mark.parametrize("outliers", [0, 4, 5])
def test_a_thousandth_of_the_pixels_is_left_out_at_each_end(tmp_path, outliers):
  values = np.full((4, 25, 50), 2000, np.uint16)  # 5,000 pixels
  values[:, ::2] = 1000
  values.reshape(-1)[:outliers] = 40000
  values.reshape(-1)[-outliers or len(values.reshape(-1)) :] = 7
  np.save(tmp_path / "s.npy", values)
  slices = stack_io.read_stack(tmp_path / "s.npy", step_um=3).slices
  assert set(np.unique(slices[1:3])) == {0, 255}
  assert slices[0].max() == 255
  assert slices[3].min() == 0


def test_eight_bits_stay_and_a_stack_of_one_value_is_black(tmp_path):
  values = np.full((2, SIDE, SIDE), 9, np.uint8)
  values[0, 0, 0] = 255
  np.save(tmp_path / "s.npy", values)
  with stack_io.open_stack(tmp_path / "s.npy", step_um=3) as reader:
    assert not reader.deep
    np.testing.assert_array_equal(reader.read_all(), values)
  # In a study of both, the range is that of the deeper stacks.
  given = stack_io.read_stack(tmp_path / "s.npy", step_um=3, value_range=(0, 4095))
  np.testing.assert_array_equal(given.slices, values)
  np.save(tmp_path / "s.npy", np.full((2, SIDE, SIDE), 9.0))
  assert not stack_io.read_stack(tmp_path / "s.npy", step_um=3).slices.any()


ODD_NAMES = ("M\udcfcller", "a" * 247, "µ β 皮", "tab\there", "quote'\"%s{}", "\u202eright to left")


@pytest.mark.parametrize("stem", ODD_NAMES)
@pytest.mark.parametrize("suffix", ["bmp", "png", "jpg", "tif", "npy", "npz", "dcm"])
def test_any_name_that_the_file_system_allows_is_read_and_told(tmp_path, volume, stem, suffix):
  folder = tmp_path / stem[:200]
  folder.mkdir()
  path = folder / f"{stem}.{suffix}"
  plain = tmp_path / f"plain.{suffix}"
  if suffix in ("npy", "npz"):
    (np.save if suffix == "npy" else np.savez)(plain, volume[:1])
  elif suffix == "dcm":
    write_dicom(plain, volume[:1])
  else:
    Image.fromarray(volume[0]).save(plain)
  plain.rename(path)
  assert stack_io.read_stack(path, step_um=3).slices.shape == (1, SIDE, SIDE)
  for t in range(2):  # a folder of several, numbered before what is odd
    (folder / f"{t}{stem[:240]}.{suffix}").write_bytes(path.read_bytes())
  path.write_bytes(path.read_bytes()[:150])
  with pytest.raises(UserError) as error:
    stack_io.read_stack(path, step_um=3)
  str(error.value).encode()  # no surrogate is left
  assert str(error.value).isprintable()
  path.unlink()
  if suffix not in ("npy", "npz", "dcm"):
    assert len(stack_io.read_stack(folder, step_um=3).slices) == 2


def test_float_volume_is_scaled_and_clipped(tmp_path):
  values = np.linspace(-2.0, 2.0, 2 * SIDE * SIDE).reshape(2, SIDE, SIDE)
  np.save(tmp_path / "f.npy", values)
  own = stack_io.read_stack(tmp_path / "f.npy", step_um=3).slices
  assert own.min() == 0
  assert own.max() == 255
  clipped = stack_io.read_stack(tmp_path / "f.npy", step_um=3, value_range=(0, 1)).slices
  assert (clipped[values < 0] == 0).all()
  assert (clipped[values > 1] == 255).all()


@pytest.mark.parametrize(
  ("suffix", "mode"),
  [
    ("png", "RGB"),
    ("png", "RGBA"),
    ("bmp", "RGB"),
    ("png", "P"),
    ("tif", "RGB"),
    ("png", "LA"),
  ],
)
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


@pytest.mark.parametrize(
  "names",
  [
    ["v8", "v9", "v10", "v11"],
    ["s2_z008", "s2_z009", "s2_z010"],
    ["z0", "z3", "z6"],
    ["08-59_v1", "09-00_v2", "09-03_v3"],
    ["20240131235959999998", "20240131235959999999", "20240131235960000000"],
  ],
)
def test_natural_order(tmp_path, names):
  paths = [tmp_path / f"{name}.bmp" for name in names]
  assert images.in_natural_order(sorted(paths, reverse=True)) == paths
