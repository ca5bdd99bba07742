"""Random views: their geometry, and that labels stay with their slices."""

import jax
import jax.numpy as jnp
import numpy as np
import precision
import pytest

from rcm_jax.cnn.augmentation import Augmentation, augment, view_matrix

STILL = Augmentation(
  rotate_degrees=0.0, shear=0.0, zoom=1.0, stretch=1.0, flip=False, resampled=1.0
)
KEYS = jax.random.split(jax.random.key(0), 500)


def matrices(**change):
  ranges = Augmentation(**{**vars(STILL), **change})
  return np.asarray(jax.vmap(lambda key: view_matrix(key, ranges))(KEYS))


def test_without_ranges_a_view_is_the_slice_itself():
  slices = jax.random.randint(KEYS[0], (3, 8, 9, 2), 0, 256).astype(jnp.uint8)
  precision.assert_close(augment(KEYS[1], slices, STILL), slices)


def test_flips_are_exact_and_come_four_ways():
  image = jax.random.randint(KEYS[0], (1, 6, 6, 1), 0, 256).astype(jnp.uint8)
  flip = Augmentation(**{**vars(STILL), "flip": True})
  views = augment(KEYS[2], jnp.repeat(image, 64, axis=0), flip)[..., 0]
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
  views = augment(KEYS[3], both, Augmentation())
  alone = augment(KEYS[3], image, Augmentation())
  precision.assert_close(views[..., channel], np.float64(alone[..., 0]))


def test_views_that_are_not_resampled_are_flipped_alone():
  m = matrices(rotate_degrees=180.0, zoom=2.0, flip=True, resampled=0.25)
  exact = np.all(np.abs(m) == np.eye(2), axis=(1, 2))
  assert 0.68 < exact.mean() < 0.82
