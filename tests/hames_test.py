"""The bag of learned patches against a plain double loop, and what it promises."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest

from rcm_jax.baselines import hames
from rcm_jax.textures import dictionary
from tests.textures import textured_slices
from tfds_rcm.errors import UserError

EPS = np.finfo(np.float32).eps

SEARCH = hames.HamesSearch(words=(12,), downsampling=(1, 2), strengths=(0.01, 0.1))


@pytest.fixture(scope="module")
def data():
  return (*textured_slices(60, seed=0), *textured_slices(30, seed=1))


@pytest.fixture(scope="module")
def model(data):
  return hames.fit(*data, seed=0, search=SEARCH)


def _codes_by_double_loop(image, zca, words, regularizer):
  """Every patch normalised and whitened on its own, as the publication has it."""
  codes = np.zeros((image.shape[0] - 6, image.shape[1] - 6), int)
  for i in range(codes.shape[0]):
    for j in range(codes.shape[1]):
      patch = image[i : i + 7, j : j + 7].astype(np.float64).reshape(-1)
      patch = patch - patch.mean()
      patch = patch / (np.linalg.norm(patch) + regularizer)
      codes[i, j] = np.argmax(words @ (zca @ patch))
  return codes


@pytest.mark.parametrize("regularizer", [0.1, 1.0])
def test_encoder_equals_a_double_loop_for_either_regularizer(regularizer):
  rng = np.random.default_rng(0)
  slices = np.cumsum(rng.integers(0, 12, (3, 20, 22)), 2).astype(np.uint8)
  slices[1, :9, :9] = 200  # flat patches: all scores are zero
  patches = np.lib.stride_tricks.sliding_window_view(slices, (7, 7), (1, 2)).reshape(-1, 49)
  patches = dictionary.normalize(patches.astype(np.float64), 1.0)
  rows = dictionary.whitening(patches)
  words, _ = dictionary.spherical_kmeans(patches @ rows.T, 15, rng)

  # The authors' matrix, V diag((D + 0.1)^-1/2) Vᵀ, and their words, in the space of patches.
  vectors = rows.T / np.linalg.norm(rows, axis=1)
  zca = vectors @ rows
  codes = [_codes_by_double_loop(s, zca, words @ vectors.T, regularizer) for s in slices]
  expected = [np.bincount(c.reshape(-1), minlength=15) for c in codes]
  got = hames.encode(slices, rows.reshape(-1, 7, 7).astype(np.float32), words)
  np.testing.assert_array_equal(got, expected)


def test_encoder_downsamples_by_block_means():
  rng = np.random.default_rng(1)
  slices = rng.integers(0, 256, (2, 24, 20), dtype=np.uint8)
  basis = rng.standard_normal((5, 7, 7)).astype(np.float32)
  basis -= basis.mean((1, 2), keepdims=True)
  words = rng.standard_normal((9, 5)).astype(np.float32)
  rounded = (slices // 4 * 4).reshape(2, 12, 2, 10, 2)
  rounded[:] = rounded[:, :, :1, :, :1]  # blocks of one gray level: their mean is exact
  got = hames.encode(rounded.reshape(2, 24, 20), basis, words, 2)
  np.testing.assert_array_equal(got, hames.encode(rounded[:, :, 0, :, 0], basis, words, 1))
  assert np.all(np.asarray(got).sum(1) == 6 * 4)


def test_whitening_keeps_95_percent_and_flattens_the_spectrum():
  rng = np.random.default_rng(2)
  patches = dictionary.normalize(
    rng.standard_normal((4000, 49)) @ rng.standard_normal((49, 49)), 1.0
  )
  eigenvalues = np.linalg.eigvalsh(np.cov(patches, rowvar=False))[::-1]
  rows = dictionary.whitening(patches)
  energy = np.cumsum(eigenvalues) / eigenvalues.sum()
  assert energy[len(rows) - 1] >= 0.95 > energy[len(rows) - 2]
  whitened = np.cov(patches @ rows.T, rowvar=False)
  kept = eigenvalues[: len(rows)]
  np.testing.assert_allclose(whitened, np.diag(kept / (kept + 0.1)), atol=1e-9)


@pytest.mark.parametrize("count", [2, 20, 90])
def test_kmeans_objective_never_rises_and_centers_are_unit(count):
  rng = np.random.default_rng(3)
  points = rng.standard_normal((100, 6)) * rng.uniform(0.1, 3, (100, 1))
  points[:50] = points[0]  # copies: some centres start equal, and all but one of them empty
  centers, objective = dictionary.spherical_kmeans(points, count, rng, iterations=12)
  assert len(objective) == 12
  assert np.all(np.diff(objective) <= 1e-7)
  assert objective[-1] < objective[0]
  np.testing.assert_allclose(np.linalg.norm(centers, axis=1), 1, rtol=8 * EPS)


def test_kmeans_seeds_empty_clusters_again_at_points():
  points = np.repeat(np.eye(4), [70, 10, 10, 10], 0)  # most centres start at the same point
  rng = np.random.default_rng(4)
  _, objective = dictionary.spherical_kmeans(points, 5, rng, iterations=40)
  assert objective[0] > -0.95
  np.testing.assert_allclose(objective[-1], -1)  # every direction has found a centre of its own


def test_flat_training_slices_are_refused():
  flat = np.full((6, 16, 16), 9, np.uint8)
  labels = np.arange(6) % 3
  with pytest.raises(UserError, match="flat"):
    hames.fit(flat, labels, flat, labels, seed=0, search=SEARCH)


def test_beats_chance_on_textures_and_gives_probabilities(model):
  slices, labels = textured_slices(45, seed=2)
  probabilities = hames.predict_proba(model, slices)
  assert probabilities.dtype == np.float32
  np.testing.assert_allclose(probabilities.sum(1), 1, rtol=4 * EPS)
  assert np.mean(probabilities.argmax(1) == labels) > 0.85


def test_search_records_what_it_chose(model, data):
  chosen = model.chosen
  assert set(chosen) == {
    "words",
    "downsampling",
    "transform",
    "penalty",
    "strength",
    "validation_accuracy",
  }
  assert chosen["words"] == len(model.words) == 12
  assert chosen["downsampling"] in SEARCH.downsampling
  assert chosen["penalty"] in SEARCH.penalties
  predicted = hames.predict_proba(model, data[2]).argmax(1)
  assert chosen["validation_accuracy"] == pytest.approx(np.mean(predicted == data[3]))


def test_search_only_offers_what_it_is_given(data):
  search = dataclasses.replace(
    SEARCH, downsampling=(2,), transforms=("frequency",), penalties=("l1",), strengths=(0.3,)
  )
  chosen = hames.fit(*data, seed=0, search=search).chosen
  assert (chosen["downsampling"], chosen["transform"]) == (2, "frequency")
  assert (chosen["penalty"], chosen["strength"]) == ("l1", 0.3)


def test_a_seed_decides_every_bit(model, data):
  again = hames.fit(*data, seed=0, search=SEARCH)
  other = hames.fit(*data, seed=1, search=SEARCH)
  for field in ("basis", "words", "center", "scale", "weights", "bias"):
    np.testing.assert_array_equal(getattr(again, field), getattr(model, field))
  assert again.chosen == model.chosen
  assert not np.array_equal(other.basis, model.basis)


def test_saved_model_predicts_the_same(model, data, tmp_path):
  model.save(tmp_path / "hames.npz")
  back = hames.Hames.load(tmp_path / "hames.npz")
  assert back.chosen == model.chosen
  np.testing.assert_array_equal(
    hames.predict_proba(back, data[2]), hames.predict_proba(model, data[2])
  )


def test_slices_on_disk_are_as_good_as_in_memory(model, data, tmp_path):
  mapped = np.memmap(tmp_path / "slices", np.uint8, "w+", shape=data[2].shape)
  mapped[:] = data[2]
  np.testing.assert_array_equal(
    hames.predict_proba(model, mapped), hames.predict_proba(model, data[2])
  )


@pytest.mark.parametrize(
  ("field", "value"), [("transforms", ("cube",)), ("penalties", ("l3",)), ("words", ())]
)
def test_unknown_candidates_are_named(field, value):
  with pytest.raises(UserError, match=f"search.{field}"):
    hames.HamesSearch(**{field: value})
