"""What strata can be told by without an image."""

from __future__ import annotations

import numpy as np
import pytest

from rcm_jax.baselines import depth_prior
from tfds_rcm.errors import UserError


def stacks(rng, count, follows_end):
  """Depths, labels and stacks; the dermis begins at a depth, or at a distance from the end."""
  depth, labels, stack = [], [], []
  for index in range(count):
    length = int(rng.integers(30, 60))
    own = 3.0 * np.arange(length)
    dermis = own[-1] - 21 if follows_end else 80.0
    depth.append(own)
    labels.append(np.digitize(own, [30.0, dermis]))
    stack.append(np.full(length, index))
  return np.concatenate(depth), np.concatenate(labels), np.concatenate(stack)


def accuracy(follows_end, end):
  rng = np.random.default_rng(0)
  depth, labels, stack = stacks(rng, 60, follows_end)
  model = depth_prior.fit(depth_prior.features(depth, stack, end=end), labels, seed=0)
  depth, labels, stack = stacks(rng, 20, follows_end)
  return model.score(depth_prior.features(depth, stack, end=end), labels)


def test_the_end_tells_only_where_it_follows_the_boundary():
  assert accuracy(follows_end=False, end=False) > 0.98
  assert accuracy(follows_end=False, end=True) > 0.98
  assert accuracy(follows_end=True, end=False) < 0.92
  assert accuracy(follows_end=True, end=True) > 0.98


def test_features_are_depth_and_distance_from_each_stacks_own_end():
  depth, stack = np.array([0.0, 3, 6, 0, 5]), np.array([0, 0, 0, 1, 1])
  np.testing.assert_array_equal(depth_prior.features(depth, stack, end=False), depth[:, None])
  both = depth_prior.features(depth, stack, end=True)
  np.testing.assert_array_equal(both[:, 1], [6, 3, 0, 5, 0])


def test_same_seed_same_bits_and_a_missing_stratum_is_told():
  depth, labels, stack = stacks(np.random.default_rng(1), 10, False)
  seen = depth_prior.features(depth, stack, end=True)
  first, second = (depth_prior.fit(seen, labels, seed=0).predict_proba(seen) for _ in range(2))
  np.testing.assert_array_equal(first, second)
  np.testing.assert_allclose(first.sum(1), 1)
  with pytest.raises(UserError, match="stratum 2"):
    depth_prior.fit(seen, np.minimum(labels, 1), seed=0)
