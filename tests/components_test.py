"""Principal components, and heads on them that become heads on the features."""

from __future__ import annotations

import dataclasses

import bundles
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rcm_jax import arrays
from rcm_jax.data import pca
from rcm_jax.heads import fold_pca


def values(count: int = 200, size: int = 6) -> np.ndarray:
  rng = np.random.default_rng(0)
  return (2 + rng.normal(size=(count, size)) @ rng.normal(size=(size, size))).astype(np.float32)


def test_components_are_white_and_lose_the_least():
  x = values()
  found = pca.learn(x, 3)
  np.testing.assert_allclose(np.cov(found(x), rowvar=False), np.eye(3), atol=1e-3)
  np.testing.assert_allclose(found(x).mean(0), 0, atol=1e-4)
  explained = np.linalg.svd(x - x.mean(0), compute_uv=False)[:3] ** 2 / (len(x) - 1)
  np.testing.assert_allclose(1 / np.square(found.matrix).sum(0), explained, rtol=1e-3)


def test_what_does_not_vary_in_training_is_left_out():
  x = values()[:, :3] @ np.eye(3, 6, dtype=np.float32)
  found = pca.learn(x, 5)(x + np.eye(6, dtype=np.float32)[5])
  np.testing.assert_allclose(np.cov(found, rowvar=False)[:3, :3], np.eye(3), atol=1e-3)
  assert not found[:, 3:].any()


def test_only_real_training_slices_take_part_and_padding_stays_zero():
  x = values(24).reshape(4, 6, 6)
  mask = np.arange(6) < np.array([6, 3, 5, 1])[:, None]
  filled = np.where(mask[..., None], x, np.nan).astype(np.float32)
  zeros = np.zeros((4, 6), np.int32), np.zeros((4, 6), np.float32)
  split = arrays.Features(filled, *zeros, mask)
  other = dataclasses.replace(split, values=1 + np.where(mask[..., None], x, 0))
  found, seen = pca.of_splits({"train": split, "test": other}, 2)
  np.testing.assert_allclose(found.mean, x[mask].mean(0), rtol=1e-5)
  for name, features in (("train", split), ("test", other)):
    np.testing.assert_allclose(seen[name].values[mask], found(features.values[mask]), rtol=1e-5)
    assert not seen[name].values[~mask].any()


@pytest.mark.parametrize("bidirectional", [False, True])
@pytest.mark.parametrize("cell", ["gru", "rnn", "lstm"])
def test_unfolded_heads_say_of_features_what_they_said_of_components(cell, bidirectional):
  x = values(11)
  found = pca.learn(values(), 3)
  spec = dataclasses.replace(bundles.HEAD, num_features=3, cell=cell, bidirectional=bidirectional)
  params = bundles.heads_of(spec, (0, 1))
  params["encoder"]["bias"][...] = params["encoder"]["bias"][...] + 0.3
  wide, unfolded = fold_pca.unfold(spec, params, found)
  assert wide == dataclasses.replace(spec, num_features=6)
  mask = jnp.arange(11) < 9
  for i in range(2):
    one = lambda tree, i=i: jax.tree.map(lambda leaf: leaf[i], tree)
    expected = bundles.head_of(spec, one(params))(jnp.asarray(found(x)), mask, half_width=1)
    got = bundles.head_of(wide, one(unfolded))(jnp.asarray(x), mask, half_width=1)
    np.testing.assert_allclose(got, expected, atol=1e-4)
    assert np.ptp(expected) > 0.1
