"""The regression against scikit-learn's solvers run to their end, and the optimum's conditions."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import special
from sklearn.linear_model import LogisticRegression

from rcm_jax.baselines import logistic_regression
from rcm_jax.baselines.hames import HamesSearch


def histograms(count, words, seed=0):
  """Standardised square roots of word counts, whose classes overlap and whose words go together."""
  rng = np.random.default_rng(seed)
  labels = rng.integers(0, 3, count)
  scores = 0.15 * rng.standard_normal((3, words))[labels]
  scores = scores + rng.standard_normal((count, 4)) @ (0.3 * rng.standard_normal((4, words)))
  shares = np.sqrt([rng.multinomial(2000, p) / 2000 for p in special.softmax(scores, axis=1)])
  unsure = rng.random(count) < 0.2  # as readers are: no weights explain all labels
  labels = np.where(unsure, rng.integers(0, 3, count), labels)
  return ((shares - shares.mean(0)) / shares.std(0)).astype(np.float32), labels


def probabilities(features, weights, bias):
  return special.softmax(features.astype(np.float64) @ weights.T + bias, axis=1)


@pytest.mark.parametrize(
  ("penalty", "strength"),
  [*(("l2", c) for c in (*HamesSearch.strengths, 10.0)), *(("l1", c) for c in (0.1, 1.0, 10.0))],
)
def test_probabilities_are_those_of_the_optimum(penalty, strength):
  features, labels = histograms(400, 12 if penalty == "l1" else 40)
  found = logistic_regression.fit(features, labels, penalty=penalty, strength=strength)
  reference = LogisticRegression(
    l1_ratio=float(penalty == "l1"),
    C=strength,
    solver="saga" if penalty == "l1" else "newton-cholesky",
    tol=1e-10,
    max_iter=100_000,
    random_state=0,
  ).fit(features.astype(np.float64), labels)
  expected = probabilities(features, reference.coef_, reference.intercept_)
  got = probabilities(features, *(x.astype(np.float32) for x in found))
  np.testing.assert_allclose(got, expected, atol=1e-4)
  assert np.mean(expected.argmax(1) == labels) < 0.97  # no case that any steep weights would solve


def test_where_no_weight_pays_probabilities_are_the_shares_of_the_classes():
  features, labels = histograms(400, 12)
  weights, bias = logistic_regression.fit(features, labels, penalty="l1", strength=0.01)
  assert not weights.any()  # scikit-learn's saga stops before its biases have arrived here
  shares = np.bincount(labels) / len(labels)
  np.testing.assert_allclose(special.softmax(bias), shares, atol=1e-6)


@pytest.mark.parametrize("strength", HamesSearch.strengths)
def test_no_weight_can_move_under_the_l1_penalty(strength):
  features, labels = histograms(600, 60)
  weights, bias = logistic_regression.fit(features, labels, penalty="l1", strength=strength)
  slope = strength * (probabilities(features, weights, bias) - np.eye(3)[labels])
  gradient = slope.T @ features.astype(np.float64)
  assert np.abs(slope.sum(0)).max() < 1e-4
  assert np.abs(gradient).max() < 1 + 1e-4
  kept = np.abs(weights) > 1e-6
  np.testing.assert_allclose(gradient[kept], -np.sign(weights[kept]), atol=1e-3)
