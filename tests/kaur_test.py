"""Leung-Malik textons against plain NumPy, and what the baseline promises."""

from __future__ import annotations

import dataclasses

import jax
import numpy as np
import pytest

from rcm_jax.baselines import kaur
from rcm_jax.textures import textons
from tests.textures import textured_slices
from tfds_rcm.errors import UserError

EPS = np.finfo(np.float32).eps

SEARCH = kaur.KaurSearch(
  hidden=(16,), learning_rates=(1e-3, 1e-2), weight_decays=(1e-4,), textons=20, epochs=40
)


@pytest.fixture(scope="module")
def data():
  return (*textured_slices(90, seed=0), *textured_slices(45, seed=1))


@pytest.fixture(scope="module")
def model(data):
  return kaur.fit(*data, seed=0, search=SEARCH)


def _histogram_by_double_loop(slices, filters, words, standardize, dtype):
  filters, words = filters.astype(dtype), words.astype(dtype)
  out = np.zeros((len(slices), len(words)))
  for b, image in enumerate(slices.astype(dtype)):
    if standardize:
      image = image / image.std()
    for i in range(9):
      for j in range(7):
        answer = np.array([(image[i : i + 5, j : j + 5] * f).sum() for f in filters])
        distances = np.linalg.norm(words - answer, axis=1)
        nearest = np.argsort(distances)[:8]
        share = 1 / distances[nearest]
        out[b, nearest] += share / share.sum() / (9 * 7)
  return out


@pytest.mark.parametrize("standardize", [False, True])
def test_histogram_equals_a_double_loop(standardize):
  rng = np.random.default_rng(0)
  slices = rng.integers(0, 256, (2, 13, 11), dtype=np.uint8)
  filters = textons.leung_malik_bank(5)
  words = rng.normal(0, 0.3 if standardize else 20, (12, 48)).astype(np.float32)
  loop = lambda dtype: _histogram_by_double_loop(slices, filters, words, standardize, dtype)
  expected = loop(np.float64)
  # Distances by squares of norms lose some times more than the loop's float32 differences.
  lost = 32 * np.abs(loop(np.float32) - expected).max()
  assert lost < 1e-5
  np.testing.assert_allclose(kaur.encode(slices, filters, words, standardize), expected, atol=lost)


def test_the_short_bank_gives_the_same_histogram():
  rng = np.random.default_rng(1)
  slices = rng.integers(0, 256, (2, 12, 12), dtype=np.uint8)
  filters = textons.leung_malik_bank(5)
  # Means of responses, as k-means makes them: textons lie in the span of the responses.
  patches = rng.integers(0, 256, (10, 25))
  words = patches @ filters.reshape(48, -1).T
  short, to_short = textons.isometry(filters)
  assert len(short) == 24
  np.testing.assert_allclose(
    kaur.encode(slices, short.astype(np.float32), (words @ to_short.T).astype(np.float32)),
    kaur.encode(slices, filters.astype(np.float32), words.astype(np.float32)),
    atol=1e-5,
  )


def test_standardizing_removes_contrast_and_survives_flat_slices():
  slices = np.stack([np.full((12, 12), 7), np.arange(144).reshape(12, 12) // 2]).astype(np.uint8)
  filters = textons.leung_malik_bank(5).astype(np.float32)
  words = np.random.default_rng(2).normal(0, 0.2, (12, 48)).astype(np.float32)
  plain = kaur.encode(slices, filters, words, True)
  stronger = kaur.encode(slices * 3, filters, words, True)
  assert np.all(np.isfinite(plain))
  np.testing.assert_allclose(plain, stronger, atol=1e-5)
  np.testing.assert_allclose(np.asarray(plain).sum(1), 1, rtol=12 * EPS)


def test_beats_chance_on_textures_and_gives_probabilities(model):
  slices, labels = textured_slices(60, seed=2)
  probabilities = kaur.predict_proba(model, slices)
  assert probabilities.dtype == np.float32
  np.testing.assert_allclose(probabilities.sum(1), 1, rtol=4 * EPS)
  assert np.mean(probabilities.argmax(1) == labels) > 0.85


def test_search_records_what_it_chose(model, data):
  chosen = model.chosen
  assert set(chosen) == {
    "standardize",
    "hidden",
    "learning_rate",
    "weight_decay",
    "epoch",
    "validation_accuracy",
  }
  assert chosen["hidden"] == 16
  assert chosen["learning_rate"] in SEARCH.learning_rates
  assert 1 <= chosen["epoch"] <= SEARCH.epochs
  predicted = kaur.predict_proba(model, data[2]).argmax(1)
  assert chosen["validation_accuracy"] == pytest.approx(np.mean(predicted == data[3]), abs=1e-6)


def test_members_of_the_search_do_not_touch_each_other(model, data):
  alone = dataclasses.replace(
    SEARCH,
    learning_rates=(model.chosen["learning_rate"],),
    standardize=(model.chosen["standardize"],),
  )
  again = kaur.fit(*data, seed=0, search=alone)
  assert again.chosen["epoch"] == model.chosen["epoch"]
  np.testing.assert_allclose(again.parameters, model.parameters, atol=1e-5)


def test_the_snapshot_is_the_best_epoch(model, data):
  """One epoch more or less never did better on validation slices."""
  chosen = model.chosen
  for epochs in (chosen["epoch"] - 1, chosen["epoch"] + 1):
    if epochs < 1:
      continue
    search = dataclasses.replace(
      SEARCH,
      epochs=epochs,
      standardize=(chosen["standardize"],),
      learning_rates=(chosen["learning_rate"],),
    )
    other = kaur.fit(*data, seed=0, search=search).chosen
    assert other["validation_accuracy"] <= chosen["validation_accuracy"]
    assert epochs > chosen["epoch"] or other["validation_accuracy"] < chosen["validation_accuracy"]


def test_a_seed_decides_every_bit(model, data):
  again = kaur.fit(*data, seed=0, search=SEARCH)
  other = kaur.fit(*data, seed=1, search=SEARCH)
  for field in ("filters", "textons", "center", "scale", "parameters"):
    np.testing.assert_array_equal(getattr(again, field), getattr(model, field))
  assert again.chosen == model.chosen
  assert not np.array_equal(other.textons, model.textons)


def test_saved_model_predicts_the_same(model, data, tmp_path):
  model.save(tmp_path / "kaur.npz")
  back = kaur.Kaur.load(tmp_path / "kaur.npz")
  assert back.chosen == model.chosen
  np.testing.assert_array_equal(
    kaur.predict_proba(back, data[2]), kaur.predict_proba(model, data[2])
  )


def test_slices_on_disk_and_in_other_batches_are_as_good(model, data, tmp_path):
  mapped = np.memmap(tmp_path / "slices", np.uint8, "w+", shape=data[2].shape)
  mapped[:] = data[2]
  together = kaur.predict_proba(model, mapped)
  np.testing.assert_array_equal(together, kaur.predict_proba(model, data[2]))
  np.testing.assert_allclose(together[:1], kaur.predict_proba(model, mapped[:1]), atol=1e-5)


def test_network_has_three_dense_layers():
  net = kaur.HistogramNet(7, 5, 3, rngs=kaur.nnx.Rngs(0))
  shapes = [x.shape for x in jax.tree.leaves(kaur.nnx.state(net)) if x.ndim == 2]
  assert sorted(shapes) == [(5, 3), (5, 5), (7, 5)]


def test_bad_searches_are_refused(data):
  with pytest.raises(UserError, match=r"search\.hidden"):
    kaur.KaurSearch(hidden=())
  with pytest.raises(UserError, match=r"search\.textons: 7"):
    kaur.KaurSearch(textons=7)
