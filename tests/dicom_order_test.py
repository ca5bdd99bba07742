"""DICOM slices in any disorder: ordered by what tells their place, or one line that says why not."""

import itertools

import numpy as np
import pydicom
import pytest

from tests.studies import volume, write_dicom
from tfds_rcm import stack_io
from tfds_rcm.errors import UserError

T, STEP_UM = 6, 3.0
VOLUME = volume(4, T)
SHUFFLED = (3, 0, 5, 1, 4, 2)  # the place in the stack of the file of each name
PLANE = [1, 0, 0, 0, 1, 0]
TILTED = [0, 1, 0, 0.6, 0, 0.8]  # normal (0.8, 0, -0.6)


def write(folder, **of_place):
  """Files whose names tell nothing; attributes are functions of the place in the stack."""
  folder.mkdir(exist_ok=True)
  for name, place in enumerate(SHUFFLED):
    tags = {keyword: tag(place) for keyword, tag in of_place.items()}
    tags = {keyword: value for keyword, value in tags.items() if value is not None}
    write_dicom(folder / f"x{name}.dcm", VOLUME[place : place + 1], **tags)
  return folder


def error(path, **kwargs):
  with pytest.raises(UserError) as raised:
    stack_io.read_stack(path, **kwargs)
  assert "\n" not in str(raised.value)
  return str(raised.value)


POSITIONS = {
  "depth": {"ImageAcquisitionDepth": lambda i: 0.003 * i},
  "location": {"SliceLocation": lambda i: 0.02 + 0.003 * i},
  "position": {
    "ImagePositionPatient": lambda i: [5, -7, 0.003 * i - 1],
    "ImageOrientationPatient": lambda i: PLANE,
  },
  "tilted position": {
    "ImagePositionPatient": lambda i: [5 + 0.003 * 0.8 * i, -7, -0.003 * 0.6 * i],
    "ImageOrientationPatient": lambda i: TILTED,
  },
  "position without a plane": {"ImagePositionPatient": lambda i: [5, -7, 0.003 * i]},
  "offset on the slide": {"ZOffsetInSlideCoordinateSystem": lambda i: 3 * i},
}
NUMBERS = {
  "no number": {},
  "one number": {"InstanceNumber": lambda i: 1},
  "rising numbers": {"InstanceNumber": lambda i: i + 1},
}


@pytest.mark.parametrize("number", NUMBERS)
@pytest.mark.parametrize("position", POSITIONS)
def test_position_orders_with_or_without_a_number_and_tells_the_depth(tmp_path, position, number):
  folder = write(tmp_path / "s", **POSITIONS[position], **NUMBERS[number])
  for step_um in (None, STEP_UM):
    with stack_io.open_stack(folder, step_um=step_um) as reader:
      np.testing.assert_array_equal(reader.read_all(), VOLUME)
      np.testing.assert_allclose(reader.depth_um, STEP_UM * np.arange(T), atol=1e-6)
      assert not reader.warnings


def test_all_pairs_of_positions_may_stand_side_by_side(tmp_path):
  pairs = itertools.combinations(POSITIONS.values(), 2)
  pairs = [(one, other) for one, other in pairs if not one.keys() & other.keys()]
  assert len(pairs) == 12
  for i, (one, other) in enumerate(pairs):
    slices = stack_io.read_stack(write(tmp_path / str(i), **(one | other))).slices
    np.testing.assert_array_equal(slices, VOLUME)


def test_without_a_position_the_number_orders_and_spacing_tells_the_step(tmp_path):
  folder = write(
    tmp_path / "s",
    **NUMBERS["rising numbers"],
    SliceLocation=lambda i: 0,
    ImageAcquisitionDepth=lambda i: 0.01,
  )
  np.testing.assert_array_equal(stack_io.read_stack(folder, step_um=3).slices, VOLUME)
  assert "do not tell their depth" in error(folder)
  folder = write(tmp_path / "s", **NUMBERS["rising numbers"], SpacingBetweenSlices=lambda i: 0.003)
  np.testing.assert_allclose(stack_io.read_stack(folder).depth_um, STEP_UM * np.arange(T))


@pytest.mark.parametrize("number", ["no number", "one number"])
def test_names_are_the_last_resort_and_warned_of(tmp_path, number):
  folder = write(tmp_path / "s", **NUMBERS[number])
  with stack_io.open_stack(folder, step_um=3) as reader:
    np.testing.assert_array_equal(reader.read_all(), VOLUME[list(SHUFFLED)])
    [warning] = reader.warnings
  assert "in the order of their names" in warning
  assert str(folder) in warning


@pytest.mark.parametrize("wrong", [lambda i: (0, 2, 1, 3, 4, 5)[i], lambda i: T - i])
@pytest.mark.parametrize("position", ["location", "position"])
def test_a_number_that_contradicts_the_position_is_refused(tmp_path, position, wrong):
  folder = write(tmp_path / "s", **POSITIONS[position], InstanceNumber=wrong)
  for step_um in (None, 3):
    message = error(folder, step_um=step_um)
    name = "Slice Location" if position == "location" else "Image Position (Patient)"
    assert f"by {name}, before it by Instance Number" in message


def test_depth_below_the_surface_tells_its_own_direction(tmp_path):
  folder = write(
    tmp_path / "s",
    **POSITIONS["depth"],
    InstanceNumber=lambda i: T - i,  # taken from below
    SliceLocation=lambda i: -0.003 * i,  # the normal points out of the skin
  )
  np.testing.assert_array_equal(stack_io.read_stack(folder).slices, VOLUME)
  folder = write(folder, **POSITIONS["depth"], InstanceNumber=lambda i: (0, 2, 1, 3, 4, 5)[i])
  assert "by Image Acquisition Depth, before it by Instance Number" in error(folder)


def test_two_positions_that_disagree_are_refused(tmp_path):
  folder = write(tmp_path / "s", **POSITIONS["position"], SliceLocation=lambda i: -0.003 * i)
  assert "by Image Position (Patient), before it by Slice Location" in error(folder, step_um=3)
  folder = write(folder, **POSITIONS["depth"], SliceLocation=lambda i: 0.005 * i)
  message = error(folder)
  assert "Image Acquisition Depth tells a step of 3 µm, Slice Location one of 5 µm" in message
  np.testing.assert_array_equal(stack_io.read_stack(folder, step_um=3).slices, VOLUME)
  folder = write(folder, **POSITIONS["location"], SpacingBetweenSlices=lambda i: 0.005)
  assert "Spacing Between Slices one of 5 µm" in error(folder)


def test_a_position_that_some_slices_lack_must_fit_too(tmp_path):
  some = lambda i: 0.003 * i if i % 2 else None
  folder = write(tmp_path / "s", SliceLocation=some, **NUMBERS["rising numbers"])
  np.testing.assert_array_equal(stack_io.read_stack(folder, step_um=3).slices, VOLUME)
  folder = write(tmp_path / "t", SliceLocation=some)
  assert "before it by Slice Location" in error(folder, step_um=3)


def test_slices_at_one_place_and_gaps_in_numbers(tmp_path):
  folder = write(tmp_path / "s", SliceLocation=lambda i: 0.003 * max(i, 1))
  assert "same Slice Location as" in error(folder, step_um=3)
  folder = write(folder, InstanceNumber=lambda i: max(i, 1))
  assert "same Instance Number as" in error(folder, step_um=3)
  folder = write(folder, InstanceNumber=lambda i: i + (i > 3))
  assert "gap in Instance Number after" in error(folder, step_um=3)


def test_a_given_step_that_the_files_contradict_is_warned_of(tmp_path):
  folder = write(tmp_path / "s", **POSITIONS["location"])
  with stack_io.open_stack(folder, step_um=7) as reader:
    [warning] = reader.warnings
  assert "its tags put slices 3 to 3 µm apart, step_um=7 is used" in warning


def test_slices_of_other_planes_and_of_other_brightness_are_refused(tmp_path):
  folder = write(
    tmp_path / "s",
    ImagePositionPatient=lambda i: [0, 0, 0.003 * i],
    ImageOrientationPatient=lambda i: TILTED if i == 4 else PLANE,
  )
  assert "another plane" in error(folder, step_um=3)
  folder = write(tmp_path / "t", **POSITIONS["depth"], RescaleSlope=lambda i: 1 + i % 2)
  assert "Rescale Slope" in error(folder)
  kinds = lambda i: "MONOCHROME1" if i == 2 else "MONOCHROME2"
  folder = write(tmp_path / "u", **POSITIONS["depth"], PhotometricInterpretation=kinds)
  assert "0 is white in some slices" in error(folder)


def _frames(path, groups, **tags):
  write_dicom(path, VOLUME[list(SHUFFLED)], **tags)
  file = pydicom.dcmread(path)
  file.PerFrameFunctionalGroupsSequence = []
  for place in SHUFFLED:
    item = pydicom.Dataset()
    for sequence, attributes in groups.items():
      inner = pydicom.Dataset()
      for keyword, value in attributes.items():
        setattr(inner, keyword, value(place))
      setattr(item, sequence, [inner])
    file.PerFrameFunctionalGroupsSequence.append(item)
  file.save_as(path)
  return path


@pytest.mark.parametrize(
  "groups",
  [
    {"FrameContentSequence": {"ImageAcquisitionDepth": lambda i: 0.003 * i}},
    {
      "PlanePositionSequence": {"ImagePositionPatient": lambda i: [1, 2, 0.003 * i]},
      "PlaneOrientationSequence": {"ImageOrientationPatient": lambda i: PLANE},
    },
    {"PlanePositionSlideSequence": {"ZOffsetInSlideCoordinateSystem": lambda i: 3.0 * i}},
    {
      "FrameContentSequence": {"InStackPositionNumber": lambda i: i + 1},
      "PixelMeasuresSequence": {"SpacingBetweenSlices": lambda i: 0.003},
    },
  ],
)
def test_frames_of_one_file_are_ordered_by_their_functional_groups(tmp_path, groups):
  path = _frames(tmp_path / "s.dcm", groups)
  stack = stack_io.read_stack(path)
  np.testing.assert_array_equal(stack.slices, VOLUME)
  np.testing.assert_allclose(stack.depth_um, STEP_UM * np.arange(T), atol=1e-6)
  np.testing.assert_array_equal(stack_io.read_stack(path, step_um=3).slices, VOLUME)


def test_frames_that_contradict_each_other_or_belong_to_two_stacks(tmp_path):
  content = {
    "InStackPositionNumber": lambda i: (1, 3, 2, 4, 5, 6)[i],
    "ImageAcquisitionDepth": lambda i: 0.003 * i,
  }
  path = _frames(tmp_path / "s.dcm", {"FrameContentSequence": content})
  assert "before it by In-Stack Position Number" in error(path)
  two = {"InStackPositionNumber": lambda i: i + 1, "StackID": lambda i: "ab"[i // 3]}
  path = _frames(tmp_path / "t.dcm", {"FrameContentSequence": two})
  assert "holds 2 stacks" in error(path, step_um=3)
  path = write_dicom(
    tmp_path / "v.dcm", VOLUME[list(SHUFFLED)], SliceLocationVector=[0.003 * i for i in SHUFFLED]
  )
  np.testing.assert_array_equal(stack_io.read_stack(path).slices, VOLUME)


def test_dicom_without_pixels_says_what_it_is(tmp_path):
  path = write_dicom(tmp_path / "report.dcm", VOLUME[:1])
  file = pydicom.dcmread(path)
  del file.PixelData
  file.save_as(path)
  assert "report.dcm: holds no pixels (Confocal Microscopy Image Storage)" in error(path, step_um=3)
  del file.Rows, file.Columns
  file.SOPClassUID = file.file_meta.MediaStorageSOPClassUID = "1.2.840.10008.5.1.4.1.1.88.11"
  file.save_as(path)
  assert "holds no pixels (Basic Text SR Storage)" in error(path, step_um=3)
  file.SOPClassUID = file.file_meta.MediaStorageSOPClassUID = "1.2.840.10008.1.3.10"
  for name in ("DICOMDIR", "dicomdir", "index.dcm"):
    file.save_as(tmp_path / name)
    message = error(tmp_path / name, step_um=3)
    assert f"{name}: is a table of contents (DICOMDIR)" in message


def test_palettes_and_few_bits_in_dicom(tmp_path):
  grays = np.random.default_rng(0).permutation(256).astype(np.uint8)
  tags = {"PhotometricInterpretation": "PALETTE COLOR"}
  for colour in ("Red", "Green", "Blue"):
    tags[f"{colour}PaletteColorLookupTableDescriptor"] = [256, 0, 16]
    tags[f"{colour}PaletteColorLookupTableData"] = (grays.astype("<u2") * 257).tobytes()
  path = write_dicom(tmp_path / "p.dcm", VOLUME, **tags)
  np.testing.assert_array_equal(stack_io.read_stack(path, step_um=3).slices, grays[VOLUME])
  path = write_dicom(tmp_path / "b.dcm", VOLUME >> 4, BitsStored=4, HighBit=3)
  np.testing.assert_array_equal(stack_io.read_stack(path, step_um=3).slices, (VOLUME >> 4) * 17)
  path = write_dicom(tmp_path / "c.dcm", VOLUME, PhotometricInterpretation="CMYK")
  assert "stored as CMYK" in error(path, step_um=3)
