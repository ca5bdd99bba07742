"""Strata, boundaries and mosaics of stacks whose probabilities are known: one rule decides all."""

from __future__ import annotations

import decision_rule
import jax
import numpy as np
import pytest

from rcm_jax import anatomy
from rcm_jax.decoding import boundaries as boundaries_lib
from rcm_jax.decoding import intervals, monotone_model
from rcm_jax.decoding.intervals import Calibration
from rcm_jax.inference import interpretation
from rcm_jax.inference.interpretation import LAYERS

CALIBRATION = Calibration(1.3, (2.0, 3.0), 0.9, 2.0)
LENGTH = 24  # one for all, so that one program is compiled

_interpret = jax.jit(interpretation.interpret)
_marginals = jax.jit(lambda e, mask: np.e ** monotone_model.log_marginals(e, mask))


def interpret_probabilities(p, depth_um, calibration=CALIBRATION):
  count, margins = len(p), (2.0, 3.0, 4.0)[: p.shape[1] - 1]
  calibration = calibration._replace(margin_um=margins)
  padded = np.pad(p.astype(np.float32), ((0, LENGTH - count), (0, 0)), constant_values=np.nan)
  depths = np.pad(np.asarray(depth_um, np.float32), (0, LENGTH - count))
  found = jax.device_get(_interpret(padded, depths, np.arange(LENGTH) < count, calibration))
  return found._replace(
    probabilities=found.probabilities[:count],
    strata=found.strata[:count],
    most_probable_strata=found.most_probable_strata[:count],
  )


def sure_of(strata, certainty=0.98):
  p = np.full((len(strata), 3), (1 - certainty) / 2)
  p[np.arange(len(strata)), strata] = certainty
  return p


def interpret(strata, calibration=CALIBRATION, step=3.0):
  depth = step * np.arange(len(strata))
  found = interpret_probabilities(sure_of(np.asarray(strata)), depth, calibration)
  named = interpretation.named_boundaries(found, depth)
  return found, named, depth


@pytest.mark.parametrize("task", [anatomy.PAPER, anatomy.WITH_CORNEUM], ids=len)
@pytest.mark.parametrize("ordered", [False, True])
def test_all_follows_from_the_medians_whatever_the_probabilities(ordered, task):
  strata = len(task)
  rng = np.random.default_rng(0)
  shown = 0
  for trial in range(300):
    count = int(rng.integers(1, LENGTH + 1))
    order = (
      np.arange(strata)
      - strata * np.linspace(rng.uniform(-1, 1), rng.uniform(0, 2), count)[:, None]
    )
    scores = (
      rng.normal(scale=rng.choice([0.1, 1, 5, 30]), size=(count, strata))
      - rng.uniform(0, 3) * order**2
    )
    p = np.exp(scores - scores.max(1, keepdims=True)) + 1e-30
    p /= p.sum(1, keepdims=True)
    calibration = CALIBRATION._replace(boundary_temperature=float(rng.choice([0.5, 1, 7, 40])))
    if ordered:  # a mean of two members' marginals
      e = np.zeros((2, LENGTH, strata), np.float32)
      e[:, :count] = scores + rng.normal(scale=2, size=(2, count, strata))
      members = [_marginals(x, np.arange(LENGTH) < count)[:count] for x in e]
      p, calibration = np.mean(members, axis=0), calibration._replace(boundary_temperature=None)
    if trial % 7 == 0:  # steps of a coarse stack
      depth = -20 + np.cumsum(rng.uniform(5, 40, count))
    else:
      depth = np.cumsum(rng.uniform(0.5, 6, count))
    found = interpret_probabilities(p, depth, calibration)
    named = interpretation.named_boundaries(found, depth, task)
    plan = interpretation.depth_plan(named, depth, found.strata, task)
    decision_rule.assert_holds(found, named, plan, depth, task)
    assert set(np.diff(found.most_probable_strata).tolist()) <= {0, 1}
    shown += sum(b.shown for b in named)
  assert shown > 150


def test_medians_err_least():
  """No other pair of slices has a smaller expected error, over the boundaries' distribution."""
  rng = np.random.default_rng(1)
  posterior_of = jax.jit(lambda p: monotone_model.posterior_of(p, np.ones(9, bool), 2.0))
  depth = np.cumsum(rng.uniform(1, 5, 9))
  places = np.append(depth, 2 * depth[-1] - depth[-2])
  for _ in range(30):
    p = rng.dirichlet(np.full(3, 0.7), 9).astype(np.float32)
    posterior = posterior_of(p)
    for b in range(2):
      expected = np.abs(places[:, None] - places) @ np.asarray(posterior.probability[b], np.float64)
      assert expected[posterior.median[b]] <= expected.min() * (1 + 1e-5)


def test_equal_halves_are_a_possible_pair():
  # Two sure members that disagree; rounding must not decide.
  marginals = np.array([[1, 0, 0], [0.5, 0.5, 0], [0.5, 0, 0.5], [0, 0, 1]], np.float32)
  marginals[1, 0] += 1e-7
  for nudge in (-1e-7, 0, 1e-7):
    found = monotone_model.marginal_posterior(marginals + np.float32(nudge), np.ones(4, bool))
    first, second = map(int, found.median)
    assert (first, second) == (1, 2)  # the shallower halves, whatever rounding does
    strata = boundaries_lib.strata_between(found.median, np.ones(4, bool))
    assert set(np.diff(strata).tolist()) <= {0, 1}


def test_strata_and_boundaries_undo_each_other():
  mask = np.arange(7) < 5
  for first in range(6):
    for second in range(first, 6):
      if first == second and first not in (0, 5):
        continue
      strata = boundaries_lib.strata_between(np.array([first, second]), mask)
      np.testing.assert_array_equal(boundaries_lib.boundary_indices(strata, mask), [first, second])
      assert not strata[5:].any()


def test_boundaries_and_mosaics_lie_where_the_strata_change():
  found, named, depth = interpret([0] * 6 + [1] * 8 + [2] * 6)
  assert [(b.slice, b.depth_um) for b in named] == [(6, 18.0), (14, 42.0)]
  assert all(b.low_um < b.depth_um < b.high_um and b.probability_shown > 0.9 for b in named)
  plan = interpretation.depth_plan(named, depth, found.strata)
  np.testing.assert_allclose([m.depth_um for m in plan], [8, 22, 30, 38, 52])
  assert [m.slice for m in plan] == [3, 7, 10, 13, 17]
  assert [m.note for m in plan] == [""] * 5


@pytest.mark.parametrize(
  "strata", [[0] * 5, [1] * 5, [2] * 5, [0, 0, 1, 1], [1, 2, 2], [0], [2], [0, 2, 2]]
)
def test_what_the_stack_does_not_show_is_not_planned(strata):
  found, named, depth = interpret(strata)
  plan = interpretation.depth_plan(named, depth, found.strata)
  decision_rule.assert_holds(found, named, plan, depth)
  for mosaic, layer in zip(plan, LAYERS, strict=True):
    needs = [b.shown for b in named if b.name in layer.weights]
    assert (mosaic.depth_um is None) == (not all(needs))
    if mosaic.depth_um is None:
      assert mosaic.note.startswith("the stack does not show")


def test_mosaics_outside_the_stack_are_said_to_be():
  found, named, depth = interpret([0] * 2 + [1] * 8 + [2] * 2)
  plan = interpretation.depth_plan(named, depth, found.strata)
  assert (plan[0].slice, plan[0].note) == (None, "above the first slice")
  assert (plan[4].slice, plan[4].note) == (None, "below the last slice")


def test_a_mosaic_whose_nearest_slice_is_of_another_stratum_says_so():
  found, named, depth = interpret([0, 0, 1, 2, 2], step=25.0)
  plan = interpretation.depth_plan(named, depth, found.strata)
  assert named[0].depth_um == 50.0
  assert plan[0].depth_um == 40.0  # 10 µm above the slice at 50 µm, 15 below the one at 25 µm
  assert (plan[0].slice, plan[0].note) == (1, "the nearest slice of epidermis lies at 25.0 µm")
  assert plan[3].depth_um > 62.5  # lower DEJ: nearer to the first slice of the dermis
  assert (plan[3].slice, plan[3].note) == (2, "the nearest slice of DEJ lies at 50.0 µm")


def test_the_most_probable_labelling_is_there_by_its_name():
  """Where it differs from the medians: two places of the boundaries of which one is more probable."""
  p = np.full((9, 3), 1 / 3)
  p[0] = sure_of([0])
  p[-1] = sure_of([2])
  p[2] = [0.32, 0.345, 0.335]  # half of all labellings are in the DEJ by then, nearly
  found = interpret_probabilities(
    p, 3.0 * np.arange(9), CALIBRATION._replace(boundary_temperature=1.0)
  )
  assert not np.array_equal(found.strata, found.most_probable_strata)
  score = lambda strata: np.log(p)[np.arange(9), strata].sum()
  assert score(found.most_probable_strata) > score(found.strata)


def test_a_stack_is_read_as_calibration_says_and_padding_changes_nothing():
  p = np.random.default_rng(2).dirichlet(np.ones(3), 9).astype(np.float32)
  depth = 3 * np.arange(9, dtype=np.float32)
  found = interpret_probabilities(p, depth)
  expected = jax.jit(intervals.boundary_intervals_um)(p, depth, np.ones(9, bool), CALIBRATION)
  np.testing.assert_allclose(found.boundary_um, expected, rtol=1e-5)
  scaled = intervals.scale(p, CALIBRATION.temperature)
  np.testing.assert_allclose(found.probabilities, scaled, rtol=1e-5)
