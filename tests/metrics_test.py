"""Counts of Tables 1-3 against scikit-learn and against sequences worked by hand."""

from __future__ import annotations

import jax
import numpy as np
import pytest
from sklearn import metrics as sk_metrics

from rcm_jax.decoding import boundaries
from rcm_jax.evaluation import metrics

E, J, D = 0, 1, 2
PADDED = 12
_confusion = jax.jit(metrics.confusion_matrix)
_transitions = jax.jit(metrics.inconsistent_transitions)
_boundaries = jax.jit(boundaries.boundary_indices)
_errors = jax.jit(boundaries.boundary_errors_um)


def pad(values, fill):
  out = np.full(PADDED, fill, np.asarray(values).dtype)
  out[: len(values)] = values
  return out


def real(values):
  return np.arange(PADDED) < len(values)


def depths(length, step=3.0, fill=np.nan):
  return pad(step * np.arange(length, dtype=np.float32), fill)


@pytest.mark.parametrize("garbage", [0, 2, -7, 99])
@pytest.mark.parametrize(
  ("strata", "transitions", "boundaries"),
  [
    ([E, E, J, J, D], [0, 0, 0, 0], [2, 4]),
    ([E, D], [1, 0, 0, 0], [1, 1]),
    ([E, J, E, J], [0, 1, 0, 0], [1, 4]),
    ([E, J, D, E], [0, 0, 1, 0], [1, 2]),
    ([E, J, D, J], [0, 0, 0, 1], [1, 2]),
    ([E, D, J, E, D, E, D, J], [3, 1, 1, 2], [1, 1]),
    ([E, E, J], [0, 0, 0, 0], [2, 3]),  # no dermis
    ([E, E], [0, 0, 0, 0], [2, 2]),  # neither
    ([J], [0, 0, 0, 0], [0, 1]),  # a single slice
    ([D], [0, 0, 0, 0], [0, 0]),
    ([J, J, D], [0, 0, 0, 0], [0, 2]),  # starts below the epidermis
    ([D, D], [0, 0, 0, 0], [0, 0]),
  ],
)
def test_transitions_and_boundaries_by_hand(strata, transitions, boundaries, garbage):
  padded, mask = pad(strata, garbage), real(strata)
  np.testing.assert_array_equal(_transitions(padded, mask), transitions)
  np.testing.assert_array_equal(_boundaries(padded, mask), boundaries)


@pytest.mark.parametrize(
  ("labels", "strata", "error", "counted"),
  [
    ([E, E, J, J, D], [E, J, J, J, D], [-3, 0], [True, True]),
    ([E, E, J, J, D], [E, E, E, J, J], [3, 3], [True, True]),  # dermis never: one step past the end
    ([E, J, D], [E, E, E], [6, 3], [True, True]),
    ([E, E, J], [E, J, D], [-3, 0], [True, False]),  # the truth has no dermis
    ([J, J, D], [E, J, D], [0, 0], [False, True]),  # starts below the epidermis
    ([E, D, D], [E, J, D], [0, 3], [True, True]),  # a jump shows both boundaries at once
    ([D, D], [E, E], [0, 0], [False, False]),
    ([E], [D], [0, 0], [False, False]),  # one slice shows no transition
  ],
)
def test_boundary_errors_by_hand(labels, strata, error, counted):
  args = pad(labels, 99), pad(strata, -3), depths(len(labels)), real(labels)
  got_error, got_counted = _errors(*args)
  np.testing.assert_allclose(got_error, error)
  np.testing.assert_array_equal(got_counted, counted)


def test_errors_are_in_um_not_in_slices():
  depth = pad(np.array([0.0, 1.5, 4.5, 11.5], np.float32), np.nan)
  args = pad([E, J, J, D], 0), pad([E, E, E, E], 0), depth, real([0] * 4)
  error, _ = _errors(*args)
  past_end = 11.5 + 7.0  # the last step is 7 µm
  np.testing.assert_allclose(error, [past_end - 1.5, past_end - 11.5])


def random_stacks(rng, count):
  lengths = rng.integers(1, PADDED + 1, size=count)
  mask = np.arange(PADDED) < lengths[:, None]
  labels = np.sort(rng.integers(0, 3, size=(count, PADDED)), axis=1)
  strata = rng.integers(0, 3, size=(count, PADDED))
  depth = np.where(mask, 3.0 * np.arange(PADDED), np.nan).astype(np.float32)
  return np.where(mask, labels, 55), np.where(mask, strata, -55), depth, mask


def test_confusion_and_its_ratios_are_scikit_learns():
  labels, strata, _, mask = random_stacks(np.random.default_rng(0), 40)
  confusion = np.asarray(jax.jit(jax.vmap(metrics.confusion_matrix))(labels, strata, mask)).sum(0)
  expected = sk_metrics.confusion_matrix(labels[mask], strata[mask], labels=[0, 1, 2])
  np.testing.assert_array_equal(confusion, expected)
  np.testing.assert_allclose(
    metrics.accuracy(confusion), sk_metrics.accuracy_score(labels[mask], strata[mask])
  )
  np.testing.assert_allclose(
    metrics.sensitivity(confusion),
    sk_metrics.recall_score(labels[mask], strata[mask], average=None),
  )
  specificity = [
    sk_metrics.recall_score(labels[mask] == k, strata[mask] == k, pos_label=False) for k in range(3)
  ]
  np.testing.assert_allclose(metrics.specificity(confusion), specificity)
  for name in ("accuracy", "sensitivity", "specificity"):  # the same under jit
    ratio = getattr(metrics, name)
    np.testing.assert_allclose(jax.jit(ratio)(confusion), ratio(confusion), rtol=1e-6)


def test_ratios_without_slices_are_nan():
  confusion = np.array([[3, 1, 0], [0, 0, 0], [0, 0, 0]])
  np.testing.assert_array_equal(metrics.sensitivity(confusion), [0.75, np.nan, np.nan])
  np.testing.assert_array_equal(metrics.specificity(confusion), [np.nan, 0.75, 1.0])
  assert np.isnan(metrics.accuracy(np.zeros((3, 3), int)))


def test_padding_changes_nothing():
  rng = np.random.default_rng(2)
  labels, strata = np.sort(rng.integers(0, 3, 7)), rng.integers(0, 3, 7)
  every, depth = np.ones(7, bool), 3 * np.arange(7, dtype=np.float32)
  error, counted = _errors(labels, strata, depth, every)
  for garbage in (-1, 0, 1, 2, 1000):
    long = pad(labels, garbage), pad(strata, garbage)
    mask = real(labels)
    np.testing.assert_array_equal(_confusion(*long, mask), _confusion(labels, strata, every))
    np.testing.assert_array_equal(_transitions(long[1], mask), _transitions(strata, every))
    for fill in (np.nan, np.inf, -1.0):
      padded_error, padded_counted = _errors(*long, depths(7, fill=fill), mask)
      np.testing.assert_array_equal(padded_error, error)
      np.testing.assert_array_equal(padded_counted, counted)


def test_vmap_equals_one_at_a_time():
  labels, strata, depth, mask = random_stacks(np.random.default_rng(1), 12)
  errors, counted = jax.jit(jax.vmap(boundaries.boundary_errors_um))(labels, strata, depth, mask)
  transitions = jax.jit(jax.vmap(metrics.inconsistent_transitions))(strata, mask)
  for i in range(12):
    single_error, single_counted = _errors(labels[i], strata[i], depth[i], mask[i])
    np.testing.assert_array_equal(errors[i], single_error)
    np.testing.assert_array_equal(counted[i], single_counted)
    np.testing.assert_array_equal(transitions[i], _transitions(strata[i], mask[i]))
