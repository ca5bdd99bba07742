"""Figures by which simulated slices are set beside real ones, against fields of known structure."""

from __future__ import annotations

import numpy as np
from PIL import Image
import pytest

from tfds_rcm.rcm_phantom import image_statistics, realism, waves

PIXEL_UM = 500 / 299


def field(wavelength_um, contrast, seed=0, mean=100.0):
  """A square of 500 µm whose standard deviation over mean is about `contrast`."""
  axis = np.arange(299) * PIXEL_UM
  noise = waves.evaluate(waves.draw(np.random.default_rng(seed), wavelength_um, 60), axis, axis)
  return mean * (1 + contrast * noise / noise.std())


def test_contrast_is_found_in_its_band():
  coarse = image_statistics.measure(field(250.0, 0.2), PIXEL_UM)
  medium = image_statistics.measure(field(46.0, 0.2), PIXEL_UM)
  assert coarse.coarse == pytest.approx(0.2, abs=0.06)
  assert coarse.medium < 0.02
  assert medium.coarse < 0.03
  assert 0.07 < medium.medium < 0.2  # a part of it lies in the band
  assert medium.mean == pytest.approx(100, abs=1)


def test_correlation_is_longer_in_coarser_fields():
  lengths = [
    image_statistics.measure(field(w, 0.2), PIXEL_UM).length_um for w in (30.0, 60.0, 120.0)
  ]
  assert lengths[0] < lengths[1] < lengths[2]
  # Of plane waves J0(k r), which falls to 1/e at k r = 1.75.
  assert lengths[1] == pytest.approx(1.75 * 60 / (2 * np.pi), rel=0.35)


def test_slope_is_that_of_the_power_law():
  rng = np.random.default_rng(3)
  number = np.hypot(*np.ix_(np.fft.fftfreq(299), np.fft.fftfreq(299)))
  number[0, 0] = 1
  for exponent in (-1.5, -2.5):
    spectrum = np.fft.fft2(rng.normal(size=(299, 299))) * number ** (exponent / 2)
    image = np.fft.ifft2(spectrum).real
    found = image_statistics.measure(100 + 10 * image / image.std(), PIXEL_UM)
    # Averaging to 5.5 µm takes some power from the finest wavelengths.
    assert found.slope == pytest.approx(exponent, abs=0.35)


def test_skewness_has_its_sign_and_a_flat_image_has_none():
  bright_tail = np.random.default_rng(0).gamma(2.0, 20.0, (299, 299))
  assert image_statistics.measure(bright_tail, 6.0).skewness == pytest.approx(2 / 2**0.5, abs=0.2)
  flat = image_statistics.measure(np.full((50, 50), 7), 6.0)
  assert (flat.mean, flat.coarse) == (7.0, 0.0)
  assert np.isnan(flat.skewness)


def test_figures_do_not_depend_on_the_pixel():
  fine = field(70.0, 0.25)
  pooled = fine[:298, :298].reshape(149, 2, 149, 2).mean((1, 3))
  a = image_statistics.measure(fine, PIXEL_UM)
  b = image_statistics.measure(pooled, 2 * PIXEL_UM)
  for name in ("coarse", "medium", "length_um", "skewness", "mean"):
    assert getattr(a, name) == pytest.approx(getattr(b, name), rel=0.08, abs=0.02)


def test_a_folder_of_images_is_measured_and_drawn(tmp_path, capsys):
  (tmp_path / "dej").mkdir()
  for seed in range(3):
    image = np.clip(field(150.0, 0.3, seed), 0, 255).astype(np.uint8)
    Image.fromarray(image).save(tmp_path / "dej" / f"{seed}.png")
  sheet = tmp_path / "sheet.png"
  arguments = [str(tmp_path), f"--pixel_um={PIXEL_UM}", f"--sheet={sheet}", "--field_um=125"]
  assert realism.main(arguments) == 0
  out = capsys.readouterr().out
  assert "dej" in out
  assert "contrast above 125 µm" in out
  with Image.open(sheet) as drawn:
    assert drawn.size[0] > 1000


@pytest.mark.parametrize("what", ["empty", "demoo"])
def test_bad_input_is_told_in_one_line(tmp_path, capsys, what):
  (tmp_path / "empty").mkdir()
  argument = str(tmp_path / what) if what == "empty" else what
  assert realism.main([argument]) == 1
  err = capsys.readouterr().err
  assert err.startswith("error: ")
  assert err.count("\n") == 1


def test_an_unreadable_image_is_named(tmp_path, capsys):
  (tmp_path / "a.png").write_bytes(b"no image")
  assert realism.main([str(tmp_path)]) == 1
  assert "a.png" in capsys.readouterr().err
