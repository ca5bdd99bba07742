"""Random views: their geometry, and that labels stay with their slices."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import precision
import pytest

from rcm_jax.cnn.augmentation import Augmentation, augment, augmentation_of, view_matrix
from rcm_jax.cnn.photometry import Photometry, disturb

STILL = Augmentation(
  rotate_degrees=0.0, shear=0.0, zoom=1.0, stretch=1.0, flip=False, resampled=1.0
)
KEYS = jax.random.split(jax.random.key(0), 500)


def matrices(**change):
  ranges = Augmentation(**{**vars(STILL), **change})
  return np.asarray(jax.jit(jax.vmap(lambda key: view_matrix(key, ranges)))(KEYS))


views_of = jax.jit(augment, static_argnums=2)


def test_without_ranges_a_view_is_the_slice_itself():
  slices = jax.random.randint(KEYS[0], (3, 8, 9, 2), 0, 256).astype(jnp.uint8)
  precision.assert_close(views_of(KEYS[1], slices, STILL), slices)


def test_flips_are_exact_and_come_four_ways():
  image = jax.random.randint(KEYS[0], (1, 6, 6, 1), 0, 256).astype(jnp.uint8)
  flip = Augmentation(**{**vars(STILL), "flip": True})
  views = views_of(KEYS[2], jnp.repeat(image, 64, axis=0), flip)[..., 0]
  plain = np.asarray(image[0, ..., 0])
  expected = [plain, plain[::-1], plain[:, ::-1], plain[::-1, ::-1]]
  found = [int(np.argmin([np.abs(v - e).max() for e in expected])) for v in np.asarray(views)]
  assert set(found) == {0, 1, 2, 3}
  for view, which in zip(np.asarray(views), found, strict=True):
    precision.assert_close(view, expected[which])


def test_rotation_keeps_lengths():
  m = matrices(rotate_degrees=180.0)
  precision.assert_close(m @ m.transpose(0, 2, 1), np.broadcast_to(np.eye(2), m.shape))
  assert m[:, 0, 0].min() < -0.9
  assert m[:, 0, 0].max() > 0.9


def test_zoom_only_magnifies():
  scale = matrices(zoom=1.5)[:, 0, 0]
  assert scale.max() <= 1 + 1e-6
  assert scale.min() >= 1 / 1.5 - 1e-6
  assert scale.max() - scale.min() > 0.25


def test_stretch_keeps_area_and_shear_keeps_rows():
  stretched = matrices(stretch=1.3)
  precision.assert_close(np.linalg.det(stretched), np.ones(500))
  ratio = stretched[:, 0, 0] / stretched[:, 1, 1]
  assert 1.2 < ratio.max() <= 1.3 + 1e-5
  assert 1 / 1.3 - 1e-5 <= ratio.min() < 1 / 1.2
  sheared = matrices(shear=0.2)
  precision.assert_close(sheared[:, 0], np.broadcast_to([1.0, 0.0], (500, 2)))
  assert 0.15 < np.abs(sheared[:, 1, 0]).max() <= 0.2


@pytest.mark.parametrize("channel", [0, 1])
def test_channels_move_together(channel):
  image = jax.random.randint(KEYS[0], (4, 10, 10, 1), 0, 256).astype(jnp.uint8)
  both = jnp.concatenate([image, image], axis=-1)
  views = views_of(KEYS[3], both, Augmentation())
  alone = views_of(KEYS[3], image, Augmentation())
  precision.assert_close(views[..., channel], np.float64(alone[..., 0]))


def test_views_that_are_not_resampled_are_flipped_alone():
  m = matrices(rotate_degrees=180.0, zoom=2.0, flip=True, resampled=0.25)
  exact = np.all(np.abs(m) == np.eye(2), axis=(1, 2))
  assert 0.68 < exact.mean() < 0.82


GRAY = jnp.asarray(np.random.default_rng(0).uniform(60, 120, (24, 20, 2)), jnp.float32)


def disturbed(count=200, image=GRAY, **ranges):
  keys = jax.random.split(jax.random.key(1), count)
  photometry = Photometry(**{"share": 1.0, **ranges})
  return np.asarray(jax.jit(jax.vmap(lambda key: disturb(key, image, photometry)))(keys))


def test_without_ranges_gray_levels_stay():
  np.testing.assert_allclose(disturbed(4), np.broadcast_to(GRAY, (4, *GRAY.shape)), rtol=1e-5)
  changed = disturbed(share=0.25, gain=2.0) != np.asarray(GRAY)
  assert 0.15 < changed.any((1, 2, 3)).mean() < 0.35


def test_gain_and_gamma_stay_in_their_ranges():
  ratio = disturbed(gain=1.5) / np.asarray(GRAY)
  assert np.ptp(ratio, axis=(1, 2, 3)).max() < 1e-4
  assert 1 / 1.5 <= ratio.min() < 0.75
  assert 1.4 < ratio.max() <= 1.5 + 1e-5
  exponent = np.log(disturbed(gamma=1.3) / 255) / np.log(np.asarray(GRAY) / 255)
  assert np.ptp(exponent, axis=(1, 2, 3)).max() < 1e-3
  assert 1 / 1.3 - 1e-3 <= exponent.min() < 0.8
  assert 1.25 < exponent.max() <= 1.3 + 1e-3


def test_noise_has_the_deviation_that_is_drawn_and_is_each_channels_own():
  flat = jnp.full((40, 40, 2), 100.0)
  for ranges, most in (({"noise": 20.0}, 20.0), ({"speckle": 0.2}, 20.0)):
    found = disturbed(image=flat, **ranges)
    deviation = found.std((1, 2))
    assert deviation.min() < 0.1 * most
    assert 0.9 * most < deviation.max() < 1.1 * most
    loudest = found[deviation[:, 0].argmax()]
    assert abs(np.corrcoef(loudest[..., 0].ravel(), loudest[..., 1].ravel())[0, 1]) < 0.15


def test_blur_smooths_and_keeps_the_mean_and_shading_is_smooth():
  blurred = disturbed(blur_px=1.2)
  assert blurred.std((1, 2, 3)).min() < 0.5 * float(GRAY.std())
  np.testing.assert_allclose(blurred.mean((1, 2, 3)), float(GRAY.mean()), rtol=0.02)
  flat = disturbed(image=jnp.full((40, 40, 1), 100.0), shading=0.5)[..., 0]
  assert np.log(flat / 100).std((1, 2)).max() > 0.2
  assert np.abs(np.diff(np.log(flat), axis=1)).max() < 0.2


def test_gray_levels_stay_in_range_and_white_stays_white():
  loud = disturbed(noise=200.0, speckle=1.0, gain=4.0)
  assert loud.min() >= 0
  assert loud.max() <= 255


def test_ranges_are_read_back_from_their_fields():
  ranges = Augmentation(zoom=2.0, photometry=Photometry(share=0.5, noise=3.0))
  assert augmentation_of(dataclasses.asdict(ranges)) == ranges
