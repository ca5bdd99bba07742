"""Intervals over patients: against formulas, in the limit, and how often they hold the truth."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import stats

from launch.replication import coverage
from rcm_jax.evaluation import bootstrap


def sample(patients, seed=0, seeds=1):
  """Right slices and slices, by seed and patient."""
  rng = np.random.default_rng(seed)
  whole = rng.integers(20, 90, patients)
  part = rng.binomial(whole, rng.beta(8, 2, patients), size=(seeds, patients))
  return part, np.broadcast_to(whole, part.shape)


def test_resamples_are_ratios_of_sums_averaged_over_seeds():
  part, whole = sample(6, seeds=3)
  weights = bootstrap.draw(6, 1, 50)
  found = bootstrap.resample(part, whole, weights)
  assert weights.sum(1).tolist() == [6] * 51
  for row, value in zip(weights, found.value):
    drawn = np.repeat(np.arange(6), row)
    expected = np.mean([a[drawn].sum() / b[drawn].sum() for a, b in zip(part, whole)])
    assert value == pytest.approx(expected, rel=1e-12)
  # To first order, one more visit to a patient changes the ratio by that patient's influence.
  more = np.ones((1, 6)) + 1e-6 * np.eye(6)
  change = (bootstrap.resample(part, whole, more).value - found.value[0]) / 1e-6
  np.testing.assert_allclose(change, found.influence[0], rtol=1e-4)


def test_with_many_patients_the_interval_is_the_normal_one():
  part, whole = sample(400)
  found = bootstrap.resample(part, whole, bootstrap.draw(400))
  low, high = bootstrap.studentised_interval(found, (0.0, 1.0))
  residual = part[0] - found.value[0] * whole[0]
  error = np.sqrt(400 / 399 * np.sum(residual**2)) / whole.sum()
  half = stats.norm.ppf(0.975) * error
  np.testing.assert_allclose([low, high], found.value[0] + np.array([-half, half]), atol=0.2 * half)


def test_the_interval_of_a_difference_shrinks_where_methods_err_together():
  part, whole = sample(30)
  weights = bootstrap.draw(30)
  better = bootstrap.resample(np.minimum(part + 3, whole), whole, weights)
  worse = bootstrap.resample(part, whole, weights)
  width = lambda r: np.subtract(*bootstrap.studentised_interval(r)[::-1])
  assert width(better.minus(worse)) < 0.5 * width(worse)
  assert bootstrap.studentised_interval(better.minus(worse))[0] > 0


def test_too_few_patients_or_no_difference_give_no_interval():
  part, whole = sample(bootstrap.MIN_PATIENTS)
  weights = bootstrap.draw(bootstrap.MIN_PATIENTS)
  assert np.isfinite(bootstrap.studentised_interval(bootstrap.resample(part, whole, weights))).all()
  missing = whole * (np.arange(whole.shape[1]) > 0)  # one patient has nothing to measure
  for a, b in ((part * (missing > 0), missing), (whole, whole), (0 * part, 0 * whole)):
    found = bootstrap.resample(a, b, weights)
    assert np.isnan(bootstrap.studentised_interval(found)).all()
  assert np.isnan(bootstrap.percentile_interval(np.arange(9.0), bootstrap.MIN_PATIENTS - 1)).all()


def test_a_rare_error_leaves_the_interval_finite_and_inside_its_bounds():
  transitions = np.zeros((1, 20))
  transitions[0, 3] = 2
  found = bootstrap.resample(transitions, np.full((1, 20), 1 / 20), bootstrap.draw(20))
  low, high = bootstrap.studentised_interval(found, (0.0, np.inf))
  assert low == 0
  assert 2 < high < 20


def test_weighted_medians_are_those_of_repeated_values():
  rng = np.random.default_rng(0)
  values, weights = rng.integers(0, 9, 11).astype(float), rng.integers(0, 4, (60, 11))
  weights[0] = 0
  found = bootstrap.weighted_median(values, weights)
  assert np.isnan(found[0])
  for row, median in zip(weights[1:], found[1:]):
    assert median == np.median(np.repeat(values, row))
  assert np.isnan(bootstrap.weighted_median(np.zeros(0), np.zeros((3, 0)))).all()


@pytest.mark.parametrize(
  ("measure", "known"), [("accuracy", 0.946), ("mae_um", 0.935), ("inconsistent", 0.927)]
)
def test_coverage_is_nearer_to_what_is_promised_than_that_of_quantiles(measure, known):
  studies = 300
  used, quantiles = coverage.covered(9, measure, studies, resamples=400)
  assert abs(used - 0.95) < abs(quantiles - 0.95)
  # What docs/study/coverage.md has, within four standard errors.
  assert abs(used - known) < 4 * np.sqrt(0.95 * 0.05 / studies)
