"""Texture features: learned on training slices alone, white there, the same map for every split."""

from __future__ import annotations

import dataclasses

import jax
import numpy as np
import pytest

from rcm_jax.baselines import hames
from rcm_jax.data import slices as slices_lib
from rcm_jax.textures import dictionary
from rcm_jax.textures import encoder as texture_encoder
from rcm_jax.textures import learning as texture_learning

SPEC = texture_encoder.TextureSpec(patch=7, words=12, downsampling=2, components=4, seed=3)


def slices(seed: int, count: int) -> slices_lib.Slices:
  """Noise of several grain sizes, so that histograms differ."""
  rng = np.random.default_rng(seed)
  fine = rng.integers(0, 256, (count, 32, 32))
  coarse = rng.integers(0, 256, (count, 8, 8)).repeat(4, 1).repeat(4, 2)
  share = rng.uniform(size=(count, 1, 1))
  images = (share * fine + (1 - share) * coarse).astype(np.uint8)
  names = (("stack",), ("patient",))
  return slices_lib.Slices(images, np.zeros(count), np.arange(count), np.zeros(count, int), *names)


@pytest.fixture(scope="module")
def splits():
  return {"train": slices(0, 40), "validation": slices(1, 6)}


def extract(spec, splits, directory, advance=lambda done, total: None):
  directory.mkdir()
  texture_learning.extract(spec, splits, directory, advance)
  return {name: np.load(directory / f"{name}_features.npy", allow_pickle=False) for name in splits}


def test_components_are_white_on_training_slices_and_the_same_map_elsewhere(splits, tmp_path):
  steps = []
  found = extract(SPEC, splits, tmp_path / "a", lambda done, total: steps.append((done, total)))
  assert steps == [(1, 2), (2, 2)]
  np.testing.assert_allclose(found["train"].mean(0), 0, atol=1e-4)
  np.testing.assert_allclose(np.cov(found["train"], rowvar=False), np.eye(4), atol=1e-3)
  encoder = texture_encoder.load(tmp_path / "a")
  shapes = jax.tree.map(lambda leaf: (leaf.shape, leaf.dtype), encoder)
  assert shapes == jax.tree.map(lambda leaf: (leaf.shape, leaf.dtype), texture_encoder.shapes(SPEC))
  expected = texture_encoder.encode(encoder, splits["validation"].slices, 2)
  np.testing.assert_allclose(found["validation"], expected, atol=1e-4)


def test_other_splits_do_not_take_part(splits, tmp_path):
  alone = extract(SPEC, {"train": splits["train"]}, tmp_path / "alone")
  np.testing.assert_array_equal(extract(SPEC, splits, tmp_path / "both")["train"], alone["train"])


def test_another_seed_is_another_dictionary(splits, tmp_path):
  one, other = (
    extract(dataclasses.replace(SPEC, seed=seed), splits, tmp_path / str(seed)) for seed in (3, 4)
  )
  assert np.abs(one["train"] - other["train"]).max() > 0.1


@pytest.mark.parametrize(("downsampling", "most"), [(1, 1 << 14), (2, 99), (2, 30), (3, 9)])
def test_histograms_are_those_of_integer_arithmetic(splits, monkeypatch, downsampling, most):
  monkeypatch.setattr(texture_encoder, "MAX_PATCHES", most)
  images = splits["train"].slices
  basis, words = dictionary.learn_words(images, count=12, factor=downsampling, seed=0)
  filters = texture_learning.whole_filters(basis, words, downsampling)
  whole = filters.astype(np.int64).reshape(12, -1)
  np.testing.assert_array_equal(whole.reshape(filters.shape), filters)
  assert not whole.sum(1).any()
  rest = 32 % downsampling
  shape = (len(images), 32 // downsampling, downsampling, 32 // downsampling, downsampling)
  blocks = images[:, : 32 - rest, : 32 - rest].astype(np.int64).reshape(shape).sum((2, 4))
  patches = np.lib.stride_tricks.sliding_window_view(blocks, (7, 7), (1, 2))
  step = texture_encoder.stride(7, blocks.shape[1:])
  assert (step > 1) == (patches.shape[1] * patches.shape[2] > most)
  patches = patches[:, ::step, ::step]
  scores = patches.reshape(len(images), -1, 49) @ whole.T
  assert np.abs(whole).sum(1).max() * blocks.max() < 2**24
  expected = [np.bincount(row, minlength=12) / len(row) for row in scores.argmax(2)]
  found = texture_encoder.shares(filters, images, downsampling)
  np.testing.assert_allclose(found, expected, rtol=1e-6)


@pytest.mark.parametrize("downsampling", [1, 2])
def test_rounding_moves_few_patches_to_another_word(splits, downsampling):
  images = splits["train"].slices
  basis, words = dictionary.learn_words(images, count=12, factor=downsampling, seed=0)
  filters = texture_learning.whole_filters(basis, words, downsampling)
  found = texture_encoder.shares(filters, images, downsampling)
  unrounded = hames.frequencies_of(images, basis, words, downsampling)
  assert np.abs(found - unrounded).sum(1).mean() < 0.01


def test_a_flat_slice_has_nothing_but_the_first_word(splits):
  basis, words = dictionary.learn_words(splits["train"].slices, count=12, factor=1, seed=0)
  filters = texture_learning.whole_filters(basis, words, 1)
  [found] = texture_encoder.shares(filters, np.full((1, 20, 20), 200, np.uint8), 1)
  np.testing.assert_array_equal(found, np.eye(12)[0])


@pytest.mark.parametrize("downsampling", [1, 2])
def test_words_of_single_pixels_are_ranges_of_gray_levels(splits, downsampling):
  spec = texture_encoder.TextureSpec(
    patch=1, words=8, downsampling=downsampling, components=2, seed=0
  )
  images = splits["train"].slices
  least = texture_learning.learn_filters(spec, images)
  shape = (len(images), 32 // downsampling, downsampling, 32 // downsampling, downsampling)
  blocks = images.reshape(shape).mean((2, 4)).reshape(len(images), -1)
  expected = [np.histogram(block, 8, (0, 256))[0] / len(block) for block in blocks]
  np.testing.assert_allclose(
    texture_encoder.shares(least, images, downsampling), expected, rtol=1e-6
  )
