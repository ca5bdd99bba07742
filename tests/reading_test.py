"""Strata, boundaries, mosaics and warnings of stacks whose probabilities are known."""

from __future__ import annotations

import dataclasses
import itertools

import bundles
import jax
import numpy as np
import pytest

from rcm_jax.decoding import intervals
from rcm_jax.decoding.intervals import Calibration
from rcm_jax.inference import interpretation

CALIBRATION = Calibration(1.3, (2.0, 3.0), 0.9, 2.0)
GRAY = np.full((18, 2), 50.0)


LENGTH = 24  # one for all, so that one program is compiled

_read = jax.jit(interpretation.read)


def read_probabilities(p, depth_um, calibration=CALIBRATION):
  count = len(p)
  padded = np.pad(p.astype(np.float32), ((0, LENGTH - count), (0, 0)), constant_values=np.nan)
  depths = np.pad(np.asarray(depth_um, np.float32), (0, LENGTH - count))
  found = jax.device_get(_read(padded, depths, np.arange(LENGTH) < count, calibration))
  return found._replace(probabilities=found.probabilities[:count], strata=found.strata[:count])


def read(strata, calibration=CALIBRATION, certainty=0.98, step=3.0):
  strata = np.asarray(strata)
  p = np.full((len(strata), 3), (1 - certainty) / 2)
  p[np.arange(len(strata)), strata] = certainty
  depth = step * np.arange(len(strata))
  found = read_probabilities(p, depth, calibration)
  return found, interpretation.named_boundaries(found, depth), depth


def test_boundaries_and_mosaics_lie_where_the_strata_change():
  found, boundaries, depth = read([0] * 6 + [1] * 8 + [2] * 4)
  assert [b.slice for b in boundaries] == [6, 14]
  # Half-way between the last slice above and the first below, or on the latter: within a step.
  assert boundaries[0].depth_um == pytest.approx(18, abs=3)
  assert boundaries[1].depth_um == pytest.approx(42, abs=3)
  for b in boundaries:
    assert b.low_um < b.depth_um < b.high_um
    assert b.probability_shown > 0.9
  plan = interpretation.depth_plan(boundaries, depth)
  assert tuple(m.name for m in plan) == interpretation.MOSAICS
  depths = [m.depth_um for m in plan]
  assert depths == sorted(depths)
  assert depths[2] == pytest.approx((boundaries[0].depth_um + boundaries[1].depth_um) / 2)
  assert depths[0] == pytest.approx(boundaries[0].depth_um - interpretation.MARGIN_UM)
  assert depths[4] == pytest.approx(boundaries[1].depth_um + interpretation.MARGIN_UM)
  for m in plan:
    assert m.low_um < m.depth_um < m.high_um
    if m.slice is not None:
      assert abs(depth[m.slice] - m.depth_um) <= 1.5 + 1e-4
  assert interpretation.cautions(found, boundaries, depth, GRAY, bundles.TRAINING) == []


@pytest.mark.parametrize(
  "strata", [[0] * 5, [1] * 5, [2] * 5, [0, 0, 1, 1], [1, 2, 2], [0], [0, 2, 2]]
)
def test_what_the_stack_does_not_show_is_not_planned(strata):
  found, boundaries, depth = read(strata)
  assert (np.diff(found.strata) >= 0).all()
  for b, index in zip(boundaries, np.searchsorted(found.strata, [1, 2]), strict=True):
    assert b.shown == (0 < index < len(strata))
    assert (b.depth_um is None) == (not b.shown)
  plan = interpretation.depth_plan(boundaries, depth)
  assert (plan[0].depth_um is None) == (not boundaries[0].shown)
  assert (plan[4].depth_um is None) == (not boundaries[1].shown)
  for m in plan[1:4]:
    assert (m.depth_um is None) == (not (boundaries[0].shown and boundaries[1].shown))
    if m.depth_um is None:
      assert m.note.startswith("the stack does not show")
  cautions = interpretation.cautions(
    found, boundaries, depth, GRAY[: len(strata)], bundles.TRAINING
  )
  absent = 3 - len(set(found.strata.tolist()))
  assert [c.code for c in cautions].count("stratum_absent") == absent


def test_mosaics_outside_the_stack_are_said_to_be():
  _, boundaries, depth = read([0] * 2 + [1] * 8 + [2] * 2)
  plan = interpretation.depth_plan(boundaries, depth)
  assert (plan[0].slice, plan[0].note) == (None, "above the first slice")
  assert (plan[4].slice, plan[4].note) == (None, "below the last slice")


def test_the_labelling_is_possible_whatever_the_probabilities():
  rng = np.random.default_rng(0)
  for t in (1, 2, 17):
    found = read_probabilities(rng.dirichlet(np.full(3, 0.3), t), np.arange(t))
    assert set(np.diff(found.strata).tolist()) <= {0, 1}
    assert found.strata.min() >= 0
    np.testing.assert_allclose(found.probabilities.sum(-1), 1, rtol=1e-5)
    assert (found.in_stack >= -1e-5).all()
    assert (found.in_stack <= 1 + 1e-5).all()


def test_a_stack_is_read_as_calibration_says_and_padding_changes_nothing():
  p = np.random.default_rng(2).dirichlet(np.ones(3), 9).astype(np.float32)
  depth = 3 * np.arange(9, dtype=np.float32)
  found = read_probabilities(p, depth)
  expected = jax.jit(intervals.boundary_intervals_um)(p, depth, np.ones(9, bool), CALIBRATION)
  np.testing.assert_allclose(found.boundary_um, expected, rtol=1e-5)
  scaled = intervals.scale(p, CALIBRATION.temperature)
  np.testing.assert_allclose(found.probabilities, scaled, rtol=1e-5)


def _codes(training=bundles.TRAINING, gray=GRAY, calibration=CALIBRATION, step=3.0):
  found, boundaries, depth = read([0] * 6 + [1] * 8 + [2] * 4, calibration, step=step)
  cautions = interpretation.cautions(found, boundaries, depth, gray, training)
  assert all(c.message and "\n" not in c.message for c in cautions)
  return [c.code for c in cautions], boundaries


def test_each_doubt_is_said():
  training = bundles.TRAINING
  change = lambda **fields: dataclasses.replace(training, **fields)
  assert _codes()[0] == []
  assert _codes(step=12.0)[0] == ["step"]
  assert _codes(step=1.0)[0] == ["step"]
  assert _codes(step=7.0)[0] == []  # training went up to 5
  assert _codes(change(gray_mean=(60.0, 90.0)))[0] == ["intensity"]
  assert _codes(change(gray_spread=(10.0, 20.0)))[0] == ["intensity"]
  few = GRAY.copy()
  few[:2] = 1000.0  # two of eighteen slices
  assert _codes(gray=few)[0] == []
  assert _codes(change(wide_um=(5.0, 1e3)))[0] == ["wide_interval"]
  infinite = CALIBRATION._replace(margin_um=(np.inf, np.inf))
  codes, boundaries = _codes(change(wide_um=None), calibration=infinite)
  assert codes == ["no_interval"]
  ends = itertools.chain.from_iterable((b.low_um, b.high_um) for b in boundaries)
  assert set(ends) == {None}
  assert all(b.depth_um is not None for b in boundaries)
