"""Units of length as OME, ImageJ and DICOM write them, and lengths that no stack has."""

import numpy as np
import pytest
import tifffile

from tests.studies import volume, write_dicom, write_images
from tfds_rcm import lengths, stack_io
from tfds_rcm.errors import UserError

T = 4
VOLUME = volume(0, T)
# OME's UnitsLength, in metres: SI prefixes, and the values of the international definitions.
METRES = {
  "Ym": 1e24, "Zm": 1e21, "Em": 1e18, "Pm": 1e15, "Tm": 1e12, "Gm": 1e9, "Mm": 1e6, "km": 1e3,
  "hm": 100, "dam": 10, "m": 1, "dm": 0.1, "cm": 0.01, "mm": 1e-3, "µm": 1e-6, "nm": 1e-9,
  "pm": 1e-12, "fm": 1e-15, "am": 1e-18, "zm": 1e-21, "ym": 1e-24, "Å": 1e-10, "thou": 2.54e-5,
  "li": 0.0254 / 12, "in": 0.0254, "ft": 0.3048, "yd": 0.9144, "mi": 1609.344,
  "ua": 149597870700.0, "ly": 9460730472580800.0, "pc": 3.0856775814913673e16, "pt": 0.0254 / 72,
}  # fmt: skip
IMAGEJ_UM = {
  "micron": 1, "microns": 1, "um": 1, "µm": 1, "\u03bcm": 1, "\\u00B5m": 1, "\\u00b5m": 1,
  "Micrometer": 1, "micrometres": 1, "nm": 1e-3, "nanometers": 1e-3, "NM": 1e-3, "mm": 1e3,
  "millimeter": 1e3, "MM": 1e3, "cm": 1e4, "centimetre": 1e4, "m": 1e6, "meter": 1e6,
  "inch": 25400, "inches": 25400, "in": 25400, '"': 25400, "mil": 25.4, "feet": 304800,
  "foot": 304800, "\u212b": 1e-4, "angstroms": 1e-4,
}  # fmt: skip


@pytest.mark.parametrize("unit", METRES)
def test_ome_units(tmp_path, unit):
  assert lengths.um_per(unit) == pytest.approx(METRES[unit] * 1e6, rel=1e-12)
  step, pixel = (um * 1e-6 / METRES[unit] for um in (3.0, 0.5))
  metadata = {
    "axes": "ZYX",
    "PhysicalSizeZ": step,
    "PhysicalSizeZUnit": unit,
    "PhysicalSizeX": pixel,
    "PhysicalSizeXUnit": unit,
  }
  tifffile.imwrite(tmp_path / "s.ome.tif", VOLUME, metadata=metadata)
  stack = stack_io.read_stack(tmp_path / "s.ome.tif")
  np.testing.assert_allclose(stack.depth_um, 3.0 * np.arange(T), rtol=1e-9)
  assert stack.pixel_um == pytest.approx(0.5)


@pytest.mark.parametrize("unit", IMAGEJ_UM)
def test_imagej_units(tmp_path, unit):
  um = IMAGEJ_UM[unit]
  assert lengths.um_per(unit) == pytest.approx(um, rel=1e-12)
  per_pixel = (int(um * 10), 5) if um >= 1 else (1, int(0.5 / um))
  tifffile.imwrite(
    tmp_path / "s.tif",
    VOLUME,
    imagej=True,
    resolution=(per_pixel, per_pixel),
    metadata={
      "axes": "ZYX",
      "spacing": 3 / um,
      "unit": "".join(c if c.isascii() else f"\\u{ord(c):04X}" for c in unit),
    },
  )
  stack = stack_io.read_stack(tmp_path / "s.tif")
  np.testing.assert_allclose(stack.depth_um, 3.0 * np.arange(T), rtol=1e-4)
  assert stack.pixel_um == pytest.approx(0.5, rel=1e-2)


@pytest.mark.parametrize("unit", ["pixel", "pixels", "", "reference frame", "slices", None])
def test_what_is_no_unit_of_length_tells_no_depth(tmp_path, unit):
  assert lengths.um_per(unit) is None
  tifffile.imwrite(
    tmp_path / "s.tif", VOLUME, imagej=True, metadata={"axes": "ZYX", "spacing": 3.0, "unit": unit}
  )
  with pytest.raises(UserError, match="do not tell their depth; give step_um"):
    stack_io.read_stack(tmp_path / "s.tif")


def test_imagej_names_a_unit_of_depth_alone(tmp_path):
  tifffile.imwrite(
    tmp_path / "s.tif",
    VOLUME,
    imagej=True,
    resolution=(2000, 2000),
    metadata={"axes": "ZYX", "spacing": 3.0, "unit": "mm", "zunit": "micron"},
  )
  stack = stack_io.read_stack(tmp_path / "s.tif")
  assert stack.depth_um[1] == pytest.approx(3)
  assert stack.pixel_um == pytest.approx(0.5)


def test_dicom_counts_in_millimetres(tmp_path):
  path = write_dicom(
    tmp_path / "s.dcm", VOLUME, SpacingBetweenSlices=0.0015, PixelSpacing=[0.0005, 0.0005]
  )
  stack = stack_io.read_stack(path)
  np.testing.assert_allclose(stack.depth_um, 1.5 * np.arange(T))
  assert stack.pixel_um == pytest.approx(0.5)


BAD = [np.nan, np.inf, -np.inf, 1e38, 1e308, 1e-320, 0, -3, 0.09, 101]


@pytest.mark.parametrize("bad", BAD)
def test_a_step_or_pixel_that_no_stack_has_is_refused_before_anything_is_read(tmp_path, bad):
  folder = write_images(tmp_path / "s", VOLUME)
  with pytest.raises(UserError, match=r"s: step_um=\S+, expected 0.1 to 100 µm$"):
    stack_io.open_stack(folder, step_um=bad)
  with pytest.raises(UserError, match=r"^--step_um: step_um=\S+, expected"):
    lengths.check_step_um("--step_um", bad)
  if bad != 0.09:
    with pytest.raises(UserError, match=r"s: pixel_um=\S+, expected 0.01 to 100 µm$"):
      stack_io.open_stack(folder, step_um=3, pixel_um=bad)
  for good in lengths.STEP_UM:
    lengths.check_step_um("", good)


@pytest.mark.parametrize(
  ("depths", "message"),
  [
    ([0, 3, 3, 6], "depth 3 µm of slice 2 after 3 µm: expected rising"),
    ([0, 3, 2, 6], "depth 2 µm of slice 2 after 3 µm"),
    ([1e9, 1e9 + 3, 1e9 + 6, 1e9 + 9], "float32 can tell apart"),
    ([0, 3, np.nan, 9], "depth nan µm of slice 2"),
    ([np.inf, 3, 6, 9], "depth inf µm of slice 0"),
    ([0, 3, 6, 1e39], r"depth 1e\+39 µm of slice 3"),
    ([0, 1e-320, 2e-320, 3e-320], "of slice 1"),
    ([0, 3, 6], "tells 3 depths of 4 slices"),
    ([0, 1000, 2000, 3000], "put the slices 1000 µm apart, expected 0.1 to 100; give step_um"),
    ([0, 0.01, 0.02, 0.03], "put the slices 0.01 µm apart"),
  ],
)
def test_depths_in_a_file_rise_by_steps_that_can_be(tmp_path, depths, message):
  np.savez(tmp_path / "s.npz", slices=VOLUME, depth_um=np.array(depths, np.float64))
  with pytest.raises(UserError, match=rf"s.npz: .*{message}"):
    stack_io.read_stack(tmp_path / "s.npz")
  assert stack_io.read_stack(tmp_path / "s.npz", step_um=3).depth_um[1] == 3
