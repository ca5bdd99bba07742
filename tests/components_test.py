"""Principal components, and heads on them that become heads on the features."""

from __future__ import annotations

import dataclasses
import functools

import bundles
import jax
import jax.numpy as jnp
import numpy as np
import precision
import pytest

from rcm_jax import arrays
from rcm_jax.data import pca
from rcm_jax.heads import fold_pca

# Of squares of float32 coordinates, whose error grows with the condition of the features.
_WHITE = 2000 * float(np.finfo(np.float32).eps)


def values(count: int = 200, size: int = 6) -> np.ndarray:
  rng = np.random.default_rng(0)
  return (2 + rng.normal(size=(count, size)) @ rng.normal(size=(size, size))).astype(np.float32)


def test_components_are_white_and_lose_the_least():
  x = values()
  found = pca.learn(x, 3)
  np.testing.assert_allclose(np.cov(found(x), rowvar=False), np.eye(3), atol=_WHITE)
  np.testing.assert_allclose(found(x).mean(0, dtype=np.float64), 0, atol=_WHITE)
  centered = x - x.mean(0, dtype=np.float64)
  explained = np.linalg.svd(centered, compute_uv=False)[:3] ** 2 / (len(x) - 1)
  np.testing.assert_allclose(1 / np.square(found.matrix).sum(0), explained, rtol=_WHITE)


def test_what_does_not_vary_in_training_is_left_out():
  x = values()[:, :3] @ np.eye(3, 6, dtype=np.float32)
  found = pca.learn(x, 5)(x + np.eye(6, dtype=np.float32)[5])
  np.testing.assert_allclose(np.cov(found, rowvar=False)[:3, :3], np.eye(3), atol=_WHITE)
  assert not found[:, 3:].any()


def test_only_real_training_slices_take_part_and_padding_stays_zero():
  x = values(24).reshape(4, 6, 6)
  mask = np.arange(6) < np.array([6, 3, 5, 1])[:, None]
  filled = np.where(mask[..., None], x, np.nan).astype(np.float32)
  zeros = np.zeros((4, 6), np.int32), np.zeros((4, 6), np.float32)
  split = arrays.Features(filled, *zeros, mask)
  other = dataclasses.replace(split, values=1 + np.where(mask[..., None], x, 0))
  found, seen = pca.of_splits({"train": split, "test": other}, 2)
  precision.assert_close(found.mean, x[mask].mean(0, dtype=np.float64))
  for name, features in (("train", split), ("test", other)):
    exact = (features.values[mask] - np.float64(found.mean)) @ np.float64(found.matrix)
    precision.assert_close(seen[name].values[mask], exact, found(features.values[mask]))
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
    run = lambda spec, params, x: bundles.head_of(spec, params)(x, mask, half_width=1)
    narrow = jax.jit(functools.partial(run, spec))
    exact = precision.in_float64(
      narrow, one(params), (x - np.float64(found.mean)) @ np.float64(found.matrix)
    )
    # Features are far from their mean, which is now taken off behind the product.
    terms = float((np.abs(x) @ np.abs(np.asarray(one(unfolded)["encoder"]["kernel"][...]))).max())
    got = jax.jit(functools.partial(run, wide))(one(unfolded), x)
    precision.assert_close(got, exact, narrow(one(params), found(x)), scale=terms)
    assert np.ptp(exact) > 0.1
