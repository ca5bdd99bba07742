"""What a model says of stacks at other scales than its own."""

from __future__ import annotations

import dataclasses

import bundles
import jax
import numpy as np
import pytest

from rcm_jax.data import scale as scale_lib
from rcm_jax.inference import predictor as predictor_lib
from tfds_rcm.errors import UserError

FIELD_UM = 3.0 * bundles.SIZE
DEPTH_UM = 3.0 * np.arange(9)


def knowing(field_um):
  made = bundles.made()
  return predictor_lib.Predictor(
    dataclasses.replace(made, description=dataclasses.replace(made.description, field_um=field_um))
  )


@pytest.fixture(scope="module")
def model():
  return knowing(FIELD_UM)


def codes(found):
  return [warning.code for warning in found.warnings]


def test_a_larger_field_is_seen_in_tiles_whose_logarithms_are_averaged(model):
  side = 2 * bundles.SIZE
  slices = bundles.slices(9, size=side)
  whole = model.predict(slices, DEPTH_UM, pixel_um=3.0)
  assert whole.tiles == 4
  half = bundles.SIZE
  parts = [slices[:, y : y + half, x : x + half] for y in (0, half) for x in (0, half)]
  alone = [model.predict(part, DEPTH_UM, pixel_um=3.0) for part in parts]
  assert all(part.tiles == 1 for part in alone)
  temperature = model.bundle.description.calibration.temperature
  # A tile's probabilities are tempered; their logarithms' mean is what is tempered of the whole.
  logs = np.mean([np.log(part.interpretation.probabilities) for part in alone], axis=0)
  expected = jax.nn.softmax(logs, axis=1)
  assert temperature != 1
  np.testing.assert_allclose(whole.interpretation.probabilities, expected, atol=1e-5)
  for boundary, name in enumerate(("epidermis_dej", "dej_dermis")):
    of_parts = [part.interpretation.boundary_um[boundary, 1] for part in alone]
    found = whole.boundaries[boundary]
    assert found.name == name
    if found.shown:
      assert found.lateral_um == pytest.approx(np.ptp(of_parts))
    assert all(part.boundaries[boundary].lateral_um is None for part in alone)


def test_a_field_within_the_models_own_is_what_it_was(model):
  slices = bundles.slices(9)
  plain = bundles.reader().predict(slices, DEPTH_UM)
  found = model.predict(slices, DEPTH_UM, pixel_um=3.0)
  np.testing.assert_array_equal(
    found.interpretation.probabilities, plain.interpretation.probabilities
  )
  assert "scale_unknown" not in codes(found)
  assert "small_field" not in codes(found)


def test_finer_pixels_are_brought_to_the_models_scale(model):
  fine = np.kron(bundles.slices(9), np.ones((1, 4, 4), np.uint8))
  found = model.predict(fine, DEPTH_UM, pixel_um=0.75)
  seen = model.prepare(fine[0], 0.75)
  [expected] = scale_lib.tiles(fine[0], 0.75, model.bundle.description.scale)
  np.testing.assert_array_equal(seen, expected[None])
  assert found.tiles == 1


def test_an_unknown_scale_is_told(model):
  assert codes(model.predict(bundles.slices(9), DEPTH_UM))[0] == "scale_unknown"
  other = knowing(None).predict(bundles.slices(9), DEPTH_UM, pixel_um=3.0)
  assert codes(other)[0] == "scale_unknown"


def test_a_smaller_field_is_told_or_refused(model):
  found = model.predict(bundles.slices(9), DEPTH_UM, pixel_um=2.0)
  assert codes(found)[0] == "small_field"
  with pytest.raises(UserError, match=r"a field of .* is less than 50% of"):
    model.predict(bundles.slices(9), DEPTH_UM, pixel_um=1.0)
  with pytest.raises(UserError, match="pixel_um"):
    model.predict(bundles.slices(9), DEPTH_UM, pixel_um=-1.0)


def test_a_stream_sees_the_centre_at_the_models_scale(model):
  slices = bundles.slices(9, size=2 * bundles.SIZE)
  stream = predictor_lib.StreamingPredictor(model, pixel_um=3.0)
  for image, depth in zip(slices, DEPTH_UM, strict=True):
    found = stream.add(image, depth)
  quarter = bundles.SIZE // 2
  centre = slices[:, quarter:-quarter, quarter:-quarter]
  expected = model.predict(centre, DEPTH_UM, pixel_um=3.0)
  np.testing.assert_allclose(
    found.interpretation.probabilities, expected.interpretation.probabilities, atol=1e-5
  )


def test_of_tissue_that_is_alike_everywhere_the_field_is_answered_as_its_centre(model):
  slices = bundles.slices(9)
  whole = model.predict(np.tile(slices, (1, 3, 3)), DEPTH_UM, pixel_um=3.0)
  centre = model.predict(slices, DEPTH_UM, pixel_um=3.0)
  assert (whole.tiles, centre.tiles) == (9, 1)
  assert any(b.shown for b in whole.boundaries)
  for found, expected in zip(whole.boundaries, centre.boundaries, strict=True):
    assert (found.depth_um, found.slice) == (expected.depth_um, expected.slice)
    if found.shown:
      assert found.lateral_um == 0
      assert found.low_um == pytest.approx(expected.low_um, abs=1e-3)
      assert found.high_um == pytest.approx(expected.high_um, abs=1e-3)
