"""Texture features: learned on training slices alone, white there, the same map for every split."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest

from rcm_jax import data, textures
from rcm_jax.baselines import hames

SPEC = textures.TextureSpec(words=12, downsampling=2, components=4, seed=3)


def slices(seed: int, count: int) -> data.Slices:
  """Noise of several grain sizes, so that histograms differ."""
  rng = np.random.default_rng(seed)
  fine = rng.integers(0, 256, (count, 32, 32))
  coarse = rng.integers(0, 256, (count, 8, 8)).repeat(4, 1).repeat(4, 2)
  share = rng.uniform(size=(count, 1, 1))
  images = (share * fine + (1 - share) * coarse).astype(np.uint8)
  names = (("stack",), ("patient",))
  return data.Slices(images, np.zeros(count), np.arange(count), np.zeros(count, int), *names)


@pytest.fixture(scope="module")
def splits():
  return {"train": slices(0, 40), "validation": slices(1, 6)}


def extract(spec, splits, directory, advance=lambda done, total: None):
  directory.mkdir()
  textures.extract(spec, splits, directory, advance)
  return {name: np.load(directory / f"{name}_features.npy", allow_pickle=False) for name in splits}


def test_components_are_white_on_training_slices_and_the_same_map_elsewhere(splits, tmp_path):
  steps = []
  found = extract(SPEC, splits, tmp_path / "a", lambda done, total: steps.append((done, total)))
  assert steps == [(1, 2), (2, 2)]
  np.testing.assert_allclose(found["train"].mean(0), 0, atol=1e-4)
  np.testing.assert_allclose(np.cov(found["train"], rowvar=False), np.eye(4), atol=1e-3)
  with np.load(tmp_path / "a" / "model.npz", allow_pickle=False) as model:
    counts = np.asarray(
      hames.encode(splits["validation"].slices, model["basis"], model["words"], 2)
    )
    roots = np.sqrt(counts / counts.sum(1, keepdims=True))
    expected = (roots - model["mean"]) @ model["components"]
  np.testing.assert_allclose(found["validation"], expected, atol=1e-4)


def test_other_splits_do_not_take_part(splits, tmp_path):
  alone = extract(SPEC, {"train": splits["train"]}, tmp_path / "alone")
  np.testing.assert_array_equal(extract(SPEC, splits, tmp_path / "both")["train"], alone["train"])


def test_another_seed_is_another_dictionary(splits, tmp_path):
  one, other = (
    extract(dataclasses.replace(SPEC, seed=seed), splits, tmp_path / str(seed)) for seed in (3, 4)
  )
  assert np.abs(one["train"] - other["train"]).max() > 0.1
