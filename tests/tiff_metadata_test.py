"""TIFF files that say more than their pages: planes in one page, channels, times, orders."""

import numpy as np
import pytest
import tifffile

from tests.studies import volume
from tfds_rcm import stack_io
from tfds_rcm.errors import UserError

T = 6
VOLUME = volume(8, T)
PAIR = np.stack([VOLUME, 255 - VOLUME], 1)  # slices, channels


def error(path, **kwargs):
  with pytest.raises(UserError) as raised:
    stack_io.read_stack(path, step_um=3, **kwargs)
  message = str(raised.value)
  assert "\n" not in message
  assert path.name in message
  return message


@pytest.mark.parametrize("imagej", [True, False])
@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
@pytest.mark.parametrize("photometric", ["minisblack", "rgb"])
def test_all_slices_behind_one_page(tmp_path, imagej, dtype, photometric):
  if imagej and photometric == "rgb" and dtype == np.uint16:
    dtype = np.uint8  # ImageJ's RGB has 8 bits
  volume_ = VOLUME.astype(dtype) * (257 if dtype == np.uint16 else 1)
  if photometric == "rgb":
    volume_ = np.stack([volume_] * 3, -1)
  path = tmp_path / "s.tif"
  metadata = {"spacing": 3.0, "unit": "um"} if imagej else {}
  tifffile.imwrite(
    path, volume_, imagej=imagej, truncate=True, photometric=photometric, metadata=metadata
  )
  with tifffile.TiffFile(path) as file:
    assert len(file.pages) == 1
  ends = {} if dtype == np.uint8 else {"value_range": (0, 65535)}
  stack = stack_io.read_stack(path, step_um=None if imagej else 3, **ends)
  np.testing.assert_array_equal(stack.slices, VOLUME)
  np.testing.assert_array_equal(stack.depth_um, 3.0 * np.arange(T))
  path.write_bytes(path.read_bytes()[:-200])
  assert "truncated" in error(path)


@pytest.mark.parametrize("kind", ["imagej", "imagej, one page", "ome", "shaped", "npy", "samples"])
def test_one_of_several_channels_is_chosen_by_its_number(tmp_path, kind):
  path = tmp_path / {"ome": "s.ome.tif", "npy": "s.npy"}.get(kind, "s.tif")
  if kind == "npy":
    np.save(path, np.moveaxis(PAIR, 1, -1))
  elif kind == "samples":
    tifffile.imwrite(path, PAIR, photometric="minisblack", planarconfig="separate")
  else:
    tifffile.imwrite(
      path,
      PAIR,
      imagej=kind.startswith("imagej"),
      truncate=kind.endswith("one page"),
      photometric="minisblack",
      metadata={"axes": "ZCYX"},
    )
  message = error(path)
  assert "has 2 channels" in message
  assert "--channel=1 to --channel=2" in message
  for channel in (1, 2):
    slices = stack_io.read_stack(path, step_um=3, channel=channel).slices
    np.testing.assert_array_equal(slices, PAIR[:, channel - 1])
  for channel in (0, 3):
    assert f"channel={channel}, expected 1 to 2" in error(path, channel=channel)


def test_a_few_channels_at_one_depth_are_channels_and_many_are_slices(tmp_path):
  path = tmp_path / "s.tif"
  tifffile.imwrite(path, VOLUME[:3], imagej=True, metadata={"axes": "CYX"})
  assert "has 3 channels" in error(path)
  tifffile.imwrite(path, VOLUME, imagej=True, metadata={"axes": "CYX", "mode": "composite"})
  assert "has 6 channels" in error(path)
  tifffile.imwrite(path, VOLUME, imagej=True)  # which calls them channels
  np.testing.assert_array_equal(stack_io.read_stack(path, step_um=3).slices, VOLUME)


def test_one_channel_is_the_first(tmp_path):
  path = tmp_path / "s.tif"
  tifffile.imwrite(path, VOLUME)
  np.testing.assert_array_equal(stack_io.read_stack(path, step_um=3, channel=1).slices, VOLUME)
  assert "channel=2, expected 1 to 1" in error(path, channel=2)


@pytest.mark.parametrize("axes", ["CZYX", "ZCYX"])
def test_ome_planes_in_either_order(tmp_path, axes):
  stored = PAIR if axes == "ZCYX" else PAIR.transpose(1, 0, 2, 3)
  tifffile.imwrite(tmp_path / "s.ome.tif", stored, metadata={"axes": axes})
  slices = stack_io.read_stack(tmp_path / "s.ome.tif", step_um=3, channel=2).slices
  np.testing.assert_array_equal(slices, PAIR[:, 1])


def _rewritten(path, data):
  """Other TiffData in an OME file."""
  tifffile.imwrite(path, VOLUME, metadata={"axes": "ZYX"})
  xml = tifffile.TiffFile(path).ome_metadata
  start = xml.index("<TiffData")
  end = xml.index("/>", start) + 2
  path.unlink()
  tifffile.imwrite(path, VOLUME, description=xml[:start] + data + xml[end:], metadata=None)


def test_ome_names_the_slice_of_each_page(tmp_path):
  path = tmp_path / "s.ome.tif"
  order = (2, 0, 5, 1, 4, 3)
  _rewritten(path, "".join(f'<TiffData IFD="{i}" FirstZ="{z}"/>' for i, z in enumerate(order)))
  np.testing.assert_array_equal(
    stack_io.read_stack(path, step_um=3).slices, VOLUME[np.argsort(order)]
  )
  _rewritten(path, "<TiffData/>")
  np.testing.assert_array_equal(stack_io.read_stack(path, step_um=3).slices, VOLUME)
  _rewritten(path, "".join(f'<TiffData IFD="0" FirstZ="{z}"/>' for z in range(T)))
  assert "spread over several OME-TIFF files" in error(path)
  _rewritten(path, '<TiffData IFD="0" FirstZ="0" PlaneCount="3"/>')
  assert "tells of 3 slices, the file holds 6" in error(path)


@pytest.mark.parametrize("kind", ["imagej", "ome", "shaped"])
def test_a_time_series_of_stacks_is_refused(tmp_path, kind):
  path = tmp_path / ("s.ome.tif" if kind == "ome" else "s.tif")
  tifffile.imwrite(
    path,
    np.stack([VOLUME] * 3),
    imagej=kind == "imagej",
    photometric="minisblack",
    metadata={"axes": "TZYX"},
  )
  assert "one stack alone" in error(path) or "export it alone" in error(path)


@pytest.mark.parametrize("kind", ["imagej", "ome"])
def test_slices_that_were_saved_as_points_of_time_are_slices(tmp_path, kind):
  path = tmp_path / ("s.ome.tif" if kind == "ome" else "s.tif")
  tifffile.imwrite(path, VOLUME, imagej=kind == "imagej", metadata={"axes": "TYX"})
  np.testing.assert_array_equal(stack_io.read_stack(path, step_um=3).slices, VOLUME)


def test_a_volume_in_one_page_is_refused(tmp_path):
  tifffile.imwrite(
    tmp_path / "s.tif", np.zeros((2, 32, 32, 32), np.uint8), volumetric=True, tile=(16, 16, 16)
  )
  assert "depth of 32" in error(tmp_path / "s.tif")
