"""Means, intervals and paired tests of methods, from scores of stacks."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
from scipy import stats

from rcm_jax.evaluation import bootstrap, estimates, paired_tests
from rcm_jax.evaluation import scores as scores_lib
from rcm_jax.reporting import paper_tables
from tests.evaluate_test import run


def scored(method, seed, noise, stacks=16):
  return scores_lib.score(run(method, "", seed, noise, stacks=stacks))


def test_means_are_pooled_over_stacks_and_averaged_over_seeds():
  runs = [scored("m", seed, 1.5) for seed in range(2)]
  first, again = estimates.estimate(runs), estimates.estimate(runs)
  np.testing.assert_equal(dataclasses.asdict(first), dataclasses.asdict(again))
  single = [estimates.measure(r) for r in runs]
  for name, value in first.mean._asdict().items():
    expected = np.mean([getattr(m, name) for m in single], axis=0)
    np.testing.assert_allclose(value, expected, rtol=1e-12)
  right = np.mean([r.confusion[:, 0].trace(axis1=1, axis2=2).sum() for r in runs])
  assert first.mean.accuracy[0] == pytest.approx(right / runs[0].confusion[:, 0].sum())
  errors = [np.median(np.abs(r.error_um[r.counted[:, 1], 0, 1])) for r in runs]
  assert first.mean.median_um[0, 1] == np.mean(errors)
  for low, mean, high in zip(first.low, first.mean, first.high):
    assert ((low <= mean) & (mean <= high) | np.isnan(low)).all()
  assert np.isnan(first.low.inconsistent[2]).all()  # monotone: none, whoever the patient is


def test_patients_and_not_stacks_are_resampled():
  together = scored("m", 0, 1.5)  # two stacks a patient
  stacks = len(together.stack_id)
  doubled = dataclasses.replace(  # every stack a second time: no patient more
    together,
    stack_id=tuple(map(str, range(2 * stacks))),
    patient_id=2 * together.patient_id,
    **{
      name: np.concatenate([getattr(together, name)] * 2)
      for name in ("confusion", "inconsistent", "error_um", "counted")
    },
  )
  once, twice = (estimates.estimate([r]) for r in (together, doubled))
  np.testing.assert_allclose(once.low.accuracy, twice.low.accuracy, rtol=1e-9)
  np.testing.assert_allclose(once.high.median_um, twice.high.median_um)
  few = dataclasses.replace(together, patient_id=("p",) * (stacks - 1) + ("q",))
  assert np.isnan(estimates.estimate([few]).low.accuracy).all()
  assert np.isfinite(estimates.estimate([few]).mean.accuracy).all()


def test_paired_tests_see_a_difference_where_there_is_one():
  good, same, bad = (
    [scored(name, 0, noise, stacks=40)]
    for name, noise in (("good", 0.5), ("as good", 0.5), ("worst", 2.5))
  )
  every = paired_tests.compare({"good": good, "copy": good, "same": same, "bad": bad})
  found = {(c.first, c.second): c for c in every if c.measure == "accuracy"}
  assert found["good", "copy"].difference == 0
  assert found["good", "copy"].p_value == 1
  assert np.isnan(found["good", "copy"].low)  # no patient differs
  assert found["good", "bad"].low > 0
  assert found["good", "bad"].p_holm < 0.001
  assert not found["good", "same"].significant
  assert all(c.patients == 20 and c.p_value <= c.p_holm <= 1 for c in found.values())


def test_holm_by_hand():
  np.testing.assert_allclose(paired_tests.holm([0.01, 0.04, 0.03, 0.005]), [0.03, 0.06, 0.06, 0.02])
  assert paired_tests.holm([]) == []
  assert paired_tests.holm([0.9, 0.8]) == [1.0, 1.0]


@pytest.mark.parametrize(("p_holm", "bold"), [(0.049, True), (0.051, False)])
def test_bold_is_what_the_corrected_test_says_whatever_the_interval(p_holm, bold):
  for low, high in ((0.01, 0.03), (-0.01, 0.03)):
    c = paired_tests.Comparison("a", "b", "accuracy", 9, 0.02, low, high, 0.01, p_holm)
    [row] = paper_tables.comparison_table([c], "here").rows
    assert row[4].bold == bold
    assert (row[4].low, row[4].high) == (100 * low, 100 * high)


def test_a_signed_rank_test_of_patients_own_means():
  runs = {name: [scored(name, 0, noise)] for name, noise in (("a", 0.8), ("bb", 1.6))}
  [accuracy, *_] = paired_tests.compare(runs)
  own = {}
  for name, [r] in runs.items():
    right = r.confusion[:, 0].trace(axis1=1, axis2=2).reshape(-1, 2).sum(1)
    own[name] = right / r.confusion[:, 0].sum((1, 2)).reshape(-1, 2).sum(1)
  assert accuracy.patients == 8 >= bootstrap.MIN_PATIENTS
  assert accuracy.p_value == pytest.approx(stats.wilcoxon(own["a"] - own["bb"]).pvalue)
