"""Every slice that a model sees shows one field in µm, whatever stacks were recorded with."""

from __future__ import annotations

from data_test import LENGTHS, builder, record
import numpy as np
from PIL import Image
import pytest

from rcm_jax.data import records as records_lib
from rcm_jax.data import scale as scale_lib
from rcm_jax.data import slices as slices_lib
from rcm_jax.data.scale import Scale
from tfds_rcm.errors import UserError


def tissue(side: int, pixel_um: float, wavelength_um: float = 24.0, top: float = 0.0) -> np.ndarray:
  """A wave as a microscope of this pixel size sees it; `top` moves the field down, in µm."""
  y = top + (np.arange(side) + 0.5) * pixel_um
  waves = np.sin(2 * np.pi * y / wavelength_um)[:, None] * np.ones(side)
  return np.round(127 + 100 * waves).astype(np.uint8)


@pytest.mark.parametrize(("side", "pixel_um"), [(200, 1.0), (400, 0.5), (100, 2.0), (480, 0.5)])
def test_one_tissue_looks_the_same_at_every_pixel_size_and_field(side, pixel_um):
  scale = Scale(image_size=80, field_um=200.0)
  margin = (side * pixel_um - 200) / 2
  [seen] = scale_lib.tiles(tissue(side, pixel_um, top=-margin), pixel_um, scale)
  expected = tissue(80, 2.5)
  # Bilinear filters of 2.5 µm and the pixels' own width take some of a wave of 24 µm.
  inside = slice(4, -4)
  assert np.abs(seen[inside, inside].astype(int) - expected[inside, inside]).max() <= 15


def test_a_field_of_the_right_size_is_what_it_was_without_scale():
  image = np.random.default_rng(0).integers(0, 256, (120, 100), dtype=np.uint8)
  cut = Image.fromarray(image[10:110])
  expected = np.asarray(cut.resize((50, 50), Image.Resampling.BILINEAR))
  for pixel_um, scale in (
    (None, Scale(50, None)),
    (2.0, Scale(50, 200.0)),
    (2.0, Scale(50, 208.0)),
  ):
    [seen] = scale_lib.tiles(image, pixel_um, scale)
    np.testing.assert_array_equal(seen, expected)


def test_tiles_are_the_parts_of_the_field():
  image = np.random.default_rng(0).integers(0, 256, (80, 80), dtype=np.uint8)
  found = scale_lib.tiles(image, 1.0, Scale(40, 40.0), a_side=2)
  parts = [image[y : y + 40, x : x + 40] for y in (0, 40) for x in (0, 40)]
  np.testing.assert_array_equal(found, parts)


@pytest.mark.parametrize(
  ("field", "most", "expected"), [(500, 9, 2), (192, 9, 1), (384, 9, 2), (370, 9, 2), (960, 3, 3)]
)
def test_tiles_do_not_overlap(field, most, expected):
  assert scale_lib.tile_grid(field, 192.0, most) == expected


def test_a_smaller_field_is_mirrored_down_to_half():
  image = np.random.default_rng(0).integers(0, 256, (60, 60), dtype=np.uint8)
  [seen] = scale_lib.tiles(image, 1.0, Scale(100, 100.0))
  np.testing.assert_array_equal(seen[20:80, 20:80], image)
  np.testing.assert_array_equal(seen[:20], seen[39:19:-1])
  with pytest.raises(UserError, match="a field of 49 µm is less than 50% of the 100 µm"):
    scale_lib.tiles(image[:49], 1.0, Scale(100, 100.0))


def stacks(pixels: dict[str, tuple[float, ...]], size=(20, 20)) -> dict[str, list]:
  made = {s: [record(s, i, n, size) for i, n in enumerate(ns)] for s, ns in LENGTHS.items()}
  for split, values in pixels.items():
    for stack, value in zip(made[split], values, strict=True):
      stack["pixel_um"] = np.float32(value)
  return made


def decode(tmp_path, made, **options) -> dict[str, slices_lib.Slices]:
  records_lib.decode([builder(made)], tmp_path, **options)
  return slices_lib.load_slices(tmp_path)


KNOWN = {"train": (1.0,) * 3, "validation": (1.0,), "test": (1.0,) * 2}


def test_a_run_knows_the_field_that_its_stacks_share(tmp_path):
  splits = decode(tmp_path, stacks(KNOWN), image_size=10)
  assert {split.scale for split in splits.values()} == {Scale(10, 20.0)}
  assert str(splits["test"].scale) == "10 px on 20 µm"
  assert splits["train"].first(1).scale == Scale(10, 20.0)


def test_a_run_without_pixel_sizes_has_none(tmp_path):
  assert decode(tmp_path, stacks({}), image_size=10)["test"].scale == Scale(10, None)


@pytest.mark.parametrize(
  ("pixels", "options", "message"),
  [
    ({"train": (1.0, np.nan, 1.0)}, {}, "stack 'train1' does not tell its pixel size, others do"),
    ({**KNOWN, "test": (1.0, 2.0)}, {}, r"field of 40 µm, 'train0' one of 20 µm; .*field_um=20"),
    (KNOWN, {"field_um": 50.0}, "stack 'train0': a field of 20 µm is less than 50%"),
    ({}, {"field_um": 50.0}, "field_um: 50, but stack 'train0' does not tell its pixel size"),
    (KNOWN, {"field_um": 1e9}, "field_um: .* outside 1 to 100,000 µm"),
    (KNOWN, {"field_um": 9.0, "image_size": None}, "field_um needs config.data.image_size"),
  ],
)
def test_scales_that_do_not_go_together_are_refused(tmp_path, pixels, options, message):
  with pytest.raises(UserError, match=message):
    decode(tmp_path, stacks(pixels), **{"image_size": 10, **options})


def test_stacks_of_two_fields_are_brought_to_one_and_training_may_use_all_of_the_larger(tmp_path):
  made = stacks({**KNOWN, "train": (1.0, 2.0, 1.0), "test": (2.0, 1.0)})
  splits = decode(tmp_path, made, image_size=20, field_um=20.0, train_tiles=3)
  train, test = splits["train"], splits["test"]
  assert train.stack_id == ("train0", *(f"train1 tile {i}" for i in (1, 2, 3, 4)), "train2")
  assert test.stack_id == ("test0", "test1")
  assert set(train.patient_id) == {"patient-train"}
  original = np.stack(made["train"][1]["slices"])[..., 0]
  wanted = [scale_lib.tiles(image, 2.0, Scale(20, 20.0), a_side=2) for image in original]
  for number in range(4):
    rows = train.rows(1 + number)
    np.testing.assert_array_equal(train.slices[rows], [views[number] for views in wanted])
    np.testing.assert_array_equal(train.depth_um[rows], made["train"][1]["depth_um"])
  [centre] = scale_lib.tiles(made["test"][0]["slices"][0][..., 0], 2.0, Scale(20, 20.0))
  np.testing.assert_array_equal(test.slices[test.rows(0)][0], centre)
