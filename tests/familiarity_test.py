"""Stacks that are unlike those of training are told from those that are like them."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import pytest
from scipy import ndimage

from rcm_jax.inference import altered, appearance, familiarity

SIZE, FEATURES = 24, 20


class Given(NamedTuple):
  images: np.ndarray
  features: np.ndarray
  probabilities: np.ndarray

  def seen(self) -> familiarity.Seen:
    return familiarity.Seen(appearance.describe(self.images), self.features, self.probabilities)


DIRECTIONS = np.random.default_rng(99).normal(size=(3, FEATURES))


def stack(seed: int, length: int = 24) -> tuple[Given, np.ndarray]:
  """Slices of one volume whose texture and features change with the stratum."""
  rng = np.random.default_rng(seed)
  turns = np.sort(rng.choice(np.arange(6, length - 4), 2, replace=False))
  strata = (np.arange(length)[:, None] >= turns).sum(1)
  volume = ndimage.gaussian_filter(rng.normal(size=(length, SIZE, SIZE)), (2, 1.5, 1.5))
  images = (
    110 + 35 * volume / volume.std() + 10 * strata[:, None, None] + rng.normal(0, 5, volume.shape)
  )
  features = 2 * DIRECTIONS[strata] + rng.normal(size=(length, FEATURES))
  logits = 2.5 * np.eye(3)[strata] + rng.normal(0, 0.7, (length, 3))
  probabilities = np.exp(logits) / np.exp(logits).sum(1, keepdims=True)
  return Given(images.clip(0, 255).astype(np.uint8), features, probabilities), strata


def altered_textures(count: int) -> dict[str, list[np.ndarray]]:
  return {
    kind: [
      appearance.texture(altered.alter(stack(seed)[0].images, kind, seed)) for seed in range(count)
    ]
    for kind in altered.KINDS
  }


@pytest.fixture(scope="module")
def known() -> familiarity.Familiar:
  return familiarity.learn(
    ((given.seen(), strata) for given, strata in map(stack, range(20))),
    (stack(seed)[0].seen() for seed in range(100, 160)),
    altered_textures(20),
  )


def share(known, change, count=40) -> float:
  found = [familiarity.look(known, change(stack(200 + seed)[0]).seen()) for seed in range(count)]
  return np.mean([bool(one.unfamiliar) for one in found])


def test_few_stacks_like_those_of_training_are_unfamiliar(known):
  assert share(known, lambda seen: seen, 100) <= 0.05


RNG = np.random.default_rng(3)
CHANGES = {
  "features of something else": (
    lambda seen: seen._replace(features=RNG.normal(0, 3, seen.features.shape)),
    {"appearance"},
  ),
  "blurred": (
    lambda seen: seen._replace(images=ndimage.gaussian_filter(seen.images, (0, 2, 2))),
    {"appearance"},
  ),
  "noisy": (
    lambda seen: seen._replace(
      images=(seen.images + RNG.normal(0, 40, seen.images.shape)).clip(0, 255).astype(np.uint8)
    ),
    {"appearance"},
  ),
  "one slice repeated": (
    lambda seen: Given(*(np.repeat(x[10:11], len(x), 0) for x in seen)),
    {"continuity"},
  ),
  "constant": (lambda seen: seen._replace(images=np.full_like(seen.images, 90)), {"continuity"}),
  "places of one depth": (
    lambda seen: seen._replace(images=np.stack([stack(int(s))[0].images[9] for s in range(24)])),
    {"continuity"},
  ),
  "magnified": (lambda seen: seen._replace(images=altered.zoom(seen.images, 2.0)), {"larger"}),
  "shrunk": (lambda seen: seen._replace(images=altered.zoom(seen.images, 0.5)), {"smaller"}),
  "more noise": (
    lambda seen: seen._replace(images=altered.noisier(seen.images, np.random.default_rng(7))),
    {"noise"},
  ),
  "upside down": (lambda seen: Given(*(x[::-1] for x in seen)), {"order"}),
}


def alone(given: Given) -> familiarity.Seen:
  return familiarity.Seen(None, given.features, None)


@pytest.fixture(scope="module")
def known_features() -> familiarity.Familiar:
  """What is familiar to a model that reads an encoder's features."""
  return familiarity.learn(
    ((alone(given), strata) for given, strata in map(stack, range(20))),
    (alone(stack(seed)[0]) for seed in range(100, 160)),
    {},
  )


@pytest.mark.parametrize(
  ("change", "reason"),
  [
    (lambda x: x, None),
    (lambda x: 3 * x, "appearance"),
    (lambda x: x[:, ::-1], "appearance"),
    (lambda x: np.repeat(x[10:11], len(x), 0), "continuity"),
    (lambda x: x[::-1], "order"),
  ],
)
def test_features_alone_tell_how_stacks_look_and_follow_each_other(known_features, change, reason):
  found = [
    familiarity.look(known_features, alone(given._replace(features=change(given.features))))
    for given, _ in map(stack, range(200, 240))
  ]
  assert {q for one in found for q in one.unfamiliar} <= {"appearance", "continuity", "order"}
  if reason is None:
    assert np.mean([bool(one.unfamiliar) for one in found]) <= 0.05
  else:
    assert np.mean([reason in one.unfamiliar for one in found]) >= 0.9
  one = alone(stack(200)[0]._replace(features=stack(200)[0].features[:1]))
  assert np.isfinite(familiarity.look(known_features, one).deviations).all()


@pytest.mark.parametrize("name", CHANGES)
def test_what_is_unlike_training_is_told_with_its_reason(known, name):
  change, reasons = CHANGES[name]
  assert share(known, change, 20) >= 0.95
  found = familiarity.look(known, change(stack(300)[0]).seen())
  assert reasons <= set(found.unfamiliar)


def test_the_slices_that_look_unlike_training_are_named(known):
  seen, _ = stack(400)
  features = seen.features.copy()
  features[5:8] += 8
  found = familiarity.look(known, seen._replace(features=features).seen())
  assert set(np.argsort(found.slices)[-3:]) == {5, 6, 7}
  assert found.slices[5:8].min() > 2 * np.delete(found.slices, [5, 6, 7]).max()


@pytest.mark.parametrize("length", [1, 2])
def test_short_stacks_are_judged_by_what_they_have(known, length):
  seen, _ = stack(500)
  found = familiarity.look(known, Given(*(x[:length] for x in seen)).seen())
  assert np.isfinite(found.deviations).all()
  assert len(found.slices) == length
  if length == 1:
    assert "continuity" not in found.unfamiliar


def test_it_is_kept_as_arrays(known, tmp_path):
  np.savez(tmp_path / "known.npz", **known._asdict())
  with np.load(tmp_path / "known.npz", allow_pickle=False) as arrays:
    again = familiarity.familiar_of(dict(arrays))
  seen, _ = stack(600)
  first, second = (familiarity.look(one, seen.seen()) for one in (known, again))
  np.testing.assert_array_equal(first.deviations, second.deviations)
  assert first.upright == second.upright
  assert familiarity.familiar_of({"centre": known.centre}) is None  # of a model that asked less


def test_parts_of_a_stack_are_not_upside_down(known):
  upright, reversed_ = [], []
  for seed in range(600, 640):
    seen, _ = stack(seed)
    for part in (slice(None, 12), slice(12, None), slice(6, 18)):
      upright.append(familiarity.look(known, Given(*(x[part] for x in seen)).seen()).upright)
      back = Given(*(x[part][::-1] for x in seen))
      reversed_.append(familiarity.look(known, back.seen()).upright)
  np.testing.assert_allclose(upright, -np.array(reversed_), rtol=1e-9, atol=1e-9)
  assert np.mean(np.array(upright) < -familiarity.UPSIDE_DOWN) <= 0.03
  assert np.mean(np.array(upright) > familiarity.UPSIDE_DOWN) >= 0.5


def test_noise_is_estimated_whatever_lies_below_it():
  rng = np.random.default_rng(0)
  ramp = np.linspace(50, 150, 64)[:, None] + np.linspace(0, 40, 64)
  images = np.stack([ramp + rng.normal(0, sigma, (64, 64)) for sigma in (2.0, 8.0)])
  np.testing.assert_allclose(appearance.noise(images), [2.0, 8.0], rtol=0.05)


def test_descriptions_of_slices_joined_are_the_stacks():
  images = stack(3)[0].images
  whole = appearance.describe(images)
  parts = [
    appearance.describe(images[i : i + 1])._replace(
      alike=appearance.alike(images[max(i - 1, 0) : i + 1])
    )
    for i in range(len(images))
  ]
  for joined, expected in zip(appearance.join(parts), whole, strict=True):
    np.testing.assert_allclose(joined, expected, rtol=1e-5, atol=1e-6)


def test_an_alteration_depends_on_the_stack_alone():
  images = stack(4)[0].images
  for kind in altered.KINDS:
    for number in (0, 1):
      changed = altered.alter(images, kind, number)
      assert changed.shape == images.shape
      assert changed.dtype == np.uint8
      np.testing.assert_array_equal(changed, altered.alter(images, kind, number))
  again = altered.zoom(altered.zoom(images, 0.5), 2.0).astype(float)
  smooth = ndimage.gaussian_filter(images.astype(float), (0, 1, 1))
  assert np.corrcoef(again.ravel(), smooth.ravel())[0, 1] > 0.9  # the same place


def test_few_validation_stacks_make_it_careful():
  train = [(given.seen(), strata) for given, strata in map(stack, range(10))]
  limits = [
    familiarity.learn(
      train, (stack(100 + i)[0].seen() for i in range(count)), altered_textures(4)
    ).limit.min()
    for count in (2, 5, 30)
  ]
  assert limits == sorted(limits, reverse=True)
  assert limits[0] > 30
