"""Dense responses, assignments and streaming against plain NumPy."""

from __future__ import annotations

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rcm_jax.anatomy import PAPER
from rcm_jax.textures import textons
from tfds_rcm.errors import UserError

EPS = np.finfo(np.float32).eps


def _zero_sum_filters(rng, count, size):
  filters = rng.standard_normal((count, size, size))
  return filters - filters.mean((1, 2), keepdims=True)


@pytest.mark.parametrize("support", [3, 5, 7])
def test_filter_bank_is_zero_mean_and_unit_l1(support):
  bank = textons.leung_malik_bank(support)
  assert bank.shape == (48, support, support)
  np.testing.assert_allclose(bank.mean((1, 2)), 0, atol=1e-15)
  np.testing.assert_allclose(np.abs(bank).sum((1, 2)), 1, rtol=1e-12)


def test_filter_bank_holds_no_filter_twice_and_spans_all_zero_mean_patches():
  flat = textons.leung_malik_bank(5).reshape(48, -1)
  cosines = flat @ flat.T / np.outer(*2 * [np.linalg.norm(flat, axis=1)])
  assert np.abs(cosines[~np.eye(48, dtype=bool)]).max() < 0.99999
  assert np.linalg.matrix_rank(flat) == 24


def test_edges_are_odd_and_bars_even():
  bank = textons.leung_malik_bank(5)
  turned = bank[:, ::-1, ::-1]
  np.testing.assert_allclose(bank[:18], -turned[:18], atol=1e-12)
  np.testing.assert_allclose(bank[18:], turned[18:], atol=1e-12)


@pytest.mark.parametrize("support", [4, 1])
def test_filter_bank_refuses_even_support(support):
  with pytest.raises(ValueError, match="odd number"):
    textons.leung_malik_bank(support)


def test_isometry_keeps_distances_between_responses():
  rng = np.random.default_rng(0)
  bank = textons.leung_malik_bank(5)
  short, to_short = textons.isometry(bank)
  patches = rng.standard_normal((20, 25))
  long_answers = patches @ bank.reshape(48, -1).T
  short_answers = patches @ short.reshape(len(short), -1).T
  np.testing.assert_allclose(short_answers, long_answers @ to_short.T, atol=1e-12)
  np.testing.assert_allclose(
    np.linalg.norm(short_answers[:, None] - short_answers, axis=-1),
    np.linalg.norm(long_answers[:, None] - long_answers, axis=-1),
    atol=1e-12,
  )


@pytest.mark.parametrize(("factor", "size"), [(1, 5), (2, 3), (3, 2)])
def test_responses_equal_a_double_loop(factor, size):
  rng = np.random.default_rng(1)
  slices = rng.integers(0, 256, (2, 23, 20), dtype=np.uint8)
  filters = _zero_sum_filters(rng, 4, size)
  got = textons.responses(textons.downsample(slices, factor), filters)
  rows, cols = 23 // factor, 20 // factor
  for b in range(2):
    small = np.zeros((rows, cols))
    for i in range(rows):
      for j in range(cols):
        small[i, j] = slices[b, i * factor : (i + 1) * factor, j * factor : (j + 1) * factor].mean()
    expected = [
      [(small[i : i + size, j : j + size] * f).sum() for f in filters]
      for i in range(rows - size + 1)
      for j in range(cols - size + 1)
    ]
    # What sums of so many products can lose in float32, by their terms' sizes.
    terms = size**2 + factor**2
    lost = terms * EPS * np.abs(small).max() * np.abs(filters).sum((1, 2))
    assert (np.abs(np.asarray(got[:, b].T) - np.array(expected)) <= lost).all()


def test_flat_patches_answer_with_exact_zeros():
  filters = _zero_sum_filters(np.random.default_rng(2), 6, 7)
  image = jnp.full((1, 12, 12), 237.0)
  assert not np.any(textons.responses(image, filters))


@pytest.mark.parametrize("words", [1, 7, 50, 51, 130])
def test_largest_dot_is_argmax_also_on_ties_and_where_all_are_negative(words):
  rng = np.random.default_rng(3)
  dictionary = rng.integers(-3, 4, (words, 5)).astype(np.float32)  # small integers: many ties
  vectors = rng.integers(-3, 4, (5, 400)).astype(np.float32)
  vectors[:, 0] = 0
  got = jax.jit(textons.largest_dot)(vectors, dictionary)
  np.testing.assert_array_equal(got, np.argmax(dictionary @ vectors, 0))
  dictionary[:, 0], vectors[:, :] = -9, 0
  vectors[0] = 1
  np.testing.assert_array_equal(textons.largest_dot(jnp.asarray(vectors), dictionary), 0)


@pytest.mark.parametrize(("words", "neighbors"), [(8, 8), (50, 8), (13, 1)])
def test_soft_weights_sum_to_one_and_equal_numpy(words, neighbors):
  rng = np.random.default_rng(4)
  dictionary = rng.standard_normal((words, 6)).astype(np.float32)
  vectors = rng.standard_normal((6, 300)).astype(np.float32)
  got = np.asarray(jax.jit(textons.soft_weights, static_argnums=2)(vectors, dictionary, neighbors))
  expected, lost = np.zeros((words, 300)), np.zeros(300)
  for p in range(300):
    distances = np.linalg.norm(dictionary.astype(np.float64) - vectors[:, p], axis=1)
    nearest = np.argsort(distances)[:neighbors]
    # Distances come from squares of norms, whose difference cancels where a word is near.
    norms = np.linalg.norm(dictionary[nearest], axis=1) + np.linalg.norm(vectors[:, p])
    lost[p] = 8 * EPS * np.max(norms / distances[nearest]) ** 2
    expected[nearest, p] = 1 / distances[nearest]
    expected[:, p] /= expected[:, p].sum()
  assert np.all((got > 0).sum(0) == neighbors)
  np.testing.assert_allclose(got.sum(0), 1, rtol=2 * neighbors * EPS)
  assert (np.abs(got - expected) <= lost).all()


def test_soft_weights_stay_finite_on_a_texton_itself():
  dictionary = np.random.default_rng(5).standard_normal((10, 4)).astype(np.float32)
  got = np.asarray(textons.soft_weights(jnp.asarray(dictionary[:3].T), dictionary, 8))
  assert np.all(np.isfinite(got))
  np.testing.assert_array_equal(got.argmax(0), [0, 1, 2])
  assert got.max(0).min() > 0.98


@pytest.mark.parametrize("budget", [1, 150, 200, 10_000])
def test_strips_cover_every_patch_once(budget):
  images = jnp.asarray(np.random.default_rng(8).integers(0, 9, (2, 13, 7)), jnp.float32)
  filters = _zero_sum_filters(np.random.default_rng(9), 3, 3).round(3)
  largest = 0

  def encode(strip):
    nonlocal largest
    answers = textons.responses(strip, filters)
    largest = max(largest, answers[0].size)
    return jnp.sum(answers**2, 2).T

  got = textons.sum_over_strips(encode, images, 3, live=2, budget=budget)
  assert 2 * largest <= max(budget, 2 * 2 * 5)  # one row of patches of both images at the least
  np.testing.assert_allclose(got, encode(images), rtol=55 * EPS)  # of as many patches an image


@pytest.mark.parametrize("pixels_per_batch", [1, 150, 100_000])
def test_streaming_equals_all_at_once(pixels_per_batch):
  slices = np.random.default_rng(6).integers(0, 256, (7, 8, 9), dtype=np.uint8)
  shapes = set()

  def encode(batch):
    shapes.add(batch.shape)
    return jnp.asarray(batch, jnp.float32).mean(1)

  got = textons.stream(encode, slices, pixels_per_batch=pixels_per_batch)
  np.testing.assert_array_equal(got, encode(slices))
  assert len(shapes - {slices.shape}) <= 1  # the last, shorter batch compiles nothing new


@pytest.mark.parametrize("factor", [1, 3])
def test_random_patches_are_patches_of_their_own_slice(factor):
  slices = np.random.default_rng(7).integers(0, 256, (3, 14, 17), dtype=np.uint8)
  got = textons.random_patches(slices, 6, 4, np.random.default_rng(0), factor=factor)
  small = np.asarray(textons.downsample(slices, factor))
  windows = np.lib.stride_tricks.sliding_window_view(small, (4, 4), (1, 2)).reshape(3, -1, 16)
  for n in range(3):
    apart = np.abs(windows[n][None] - got[n][:, None]).max(-1)
    assert np.all(apart.min(1) < 1e-3)
  assert len(np.unique(got.reshape(18, -1), axis=0)) > 1


@dataclasses.dataclass(frozen=True)
class _Model:
  values: np.ndarray
  chosen: dict


@dataclasses.dataclass(frozen=True)
class _OtherModel:
  other: np.ndarray


def test_models_survive_the_disk_and_leave_nothing_half_written(tmp_path):
  model = _Model(np.arange(6, dtype=np.float32).reshape(2, 3), {"a": 1, "b": "l2", "c": 0.5})
  textons.save_model(model, tmp_path / "model.npz")
  back = textons.load_model(_Model, tmp_path / "model.npz")
  np.testing.assert_array_equal(back.values, model.values)
  assert back.values.dtype == np.float32
  assert back.chosen == model.chosen
  assert [f.name for f in tmp_path.iterdir()] == ["model.npz"]
  with pytest.raises(UserError, match=r"model\.npz.*_OtherModel"):
    textons.load_model(_OtherModel, tmp_path / "model.npz")


def test_check_split_names_what_is_wrong():
  slices = np.zeros((3, 10, 12), np.uint8)
  check = functools.partial(textons.check_split, strata=PAPER.names)
  check("training", slices, np.array([0, 1, 2]), min_side=10)
  with pytest.raises(UserError, match="training: 3 slices but 2 labels"):
    check("training", slices, np.array([0, 1]), min_side=10)
  with pytest.raises(UserError, match="no slice is labelled dermis"):
    check("validation", slices, np.array([0, 1, 1]), min_side=10)
  with pytest.raises(UserError, match="10 x 12 pixels; expected at least 14"):
    check("training", slices, np.array([0, 1, 2]), min_side=14)
