"""Calibration on probabilities whose truth is known by construction."""

from __future__ import annotations

import dataclasses

import jax
import numpy as np
import pytest
from scipy import special

from rcm_jax.decoding import intervals
from rcm_jax.evaluation import calibration as calibration_lib
from rcm_jax.evaluation import predictions as predictions_lib
from rcm_jax.evaluation import reliability
from rcm_jax.evaluation import temperature as temperature_lib
from tfds_rcm import errors

EPS = np.finfo(np.float32).eps
_intervals = jax.jit(intervals.boundary_intervals_um)


def drawn(rng, count, temperature):
  """Slices whose labels follow the probabilities, before these are over- or underconfident."""
  logits = rng.normal(scale=2.0, size=(count, 3))
  honest = special.softmax(logits, axis=-1)
  labels = (rng.random(count)[:, None] > honest.cumsum(-1)).sum(-1)
  return special.softmax(logits * temperature, axis=-1).astype(np.float32), labels


def stack(rng, name, patient, split="test", seed=0, noise=1.5, length=30):
  first, second = sorted(rng.integers(5, length - 5, size=2))
  labels = np.repeat([0, 1, 2], [first, second - first, length - second])
  logits = 2.0 * np.eye(3)[labels] + rng.normal(scale=noise, size=(length, 3))
  return predictions_lib.StackPrediction(
    method="m",
    input="whole stack",
    seed=seed,
    split=split,
    stack_id=name,
    patient_id=patient,
    depth_um=3.0 * np.arange(length, dtype=np.float32),
    labels=labels,
    probabilities=special.softmax(logits, axis=-1).astype(np.float32),
  )


@pytest.mark.parametrize("temperature", [0.5, 1.0, 2.5])
def test_temperature_is_recovered_and_error_falls(temperature):
  rng = np.random.default_rng(0)
  probabilities, labels = drawn(rng, 20_000, temperature)
  fitted = temperature_lib.fit_temperature(probabilities, labels)
  assert fitted == pytest.approx(temperature, rel=0.05)
  scaled = intervals.scale(probabilities, fitted)
  assert reliability.expected_calibration_error(scaled, labels) < 0.015
  if temperature != 1.0:
    assert reliability.expected_calibration_error(probabilities, labels) > 0.04
  np.testing.assert_array_equal(scaled.argmax(-1), probabilities.argmax(-1))
  np.testing.assert_allclose(scaled.sum(-1), 1, rtol=4 * EPS)  # three terms, each rounded once


def slices_of_patients(rng, temperatures, slices=150):
  """A stack a patient, whose probabilities are sharpened by a temperature of the patient's own."""
  out = []
  for i, temperature in enumerate(temperatures):
    probabilities, labels = drawn(rng, slices, temperature)
    one = stack(rng, f"s{i}", f"p{i}", "validation")
    depth = np.arange(slices, dtype=np.float32)
    out.append(dataclasses.replace(one, depth_um=depth, labels=labels, probabilities=probabilities))
  return out


@pytest.mark.parametrize("patients", [3, 13])
def test_scaling_is_left_alone_where_new_patients_would_not_gain(patients):
  rng = np.random.default_rng(0)
  chosen, fitted, gained = [], [], []
  for _ in range(60):
    # Honest on the whole; some patients are read too surely, some not surely enough.
    validation = slices_of_patients(rng, np.exp(rng.normal(0, 0.3, patients)))
    slices = predictions_lib.slices_of(validation)
    chosen.append(temperature_lib.supported_temperature(validation))
    fitted.append(temperature_lib.fit_temperature(*slices))
    test = predictions_lib.slices_of(slices_of_patients(rng, np.exp(rng.normal(0, 0.3, 20))))
    errors = [
      reliability.expected_calibration_error(intervals.scale(test[0], t), test[1])
      for t in (fitted[-1], chosen[-1])
    ]
    gained.append(errors[0] - errors[1])
  left = np.array(chosen) == 1
  assert left.mean() > 0.6
  np.testing.assert_array_equal(np.array(chosen)[~left], np.array(fitted)[~left])
  assert np.mean(gained) > 0  # calibration error on new patients falls by leaving it alone


@pytest.mark.parametrize("patients", [3, 13])
@pytest.mark.parametrize("temperature", [0.5, 2.5])
def test_scaling_is_kept_where_all_patients_gain(patients, temperature):
  rng = np.random.default_rng(0)
  for _ in range(20):
    own = temperature * np.exp(rng.normal(0, 0.1, patients))
    validation = slices_of_patients(rng, own)
    chosen = temperature_lib.supported_temperature(validation)
    assert chosen == temperature_lib.fit_temperature(*predictions_lib.slices_of(validation))
    assert chosen == pytest.approx(temperature, rel=0.35)
  assert temperature_lib.supported_temperature(validation[:1]) == 1  # nobody to try it on


def test_scaling_by_one_changes_nothing_and_zero_stays_possible():
  probabilities = np.array([[0.2, 0.3, 0.5], [1.0, 0.0, 0.0]], np.float32)
  np.testing.assert_allclose(intervals.scale(probabilities, 1.0), probabilities, atol=2 * EPS)
  assert np.isfinite(intervals.scale(probabilities, 3.0)).all()


def test_calibration_error_by_hand():
  probabilities = np.array([[0.8, 0.1, 0.1]] * 10, np.float32)
  labels = np.array([0] * 5 + [1] * 5)
  assert reliability.expected_calibration_error(probabilities, labels, bins=1) == pytest.approx(0.3)
  groups = reliability.reliability(probabilities, labels, bins=3)
  assert groups.count.sum() == 10
  assert groups.count.max() - groups.count.min() <= 1


def test_no_validation_slices_is_the_users_error():
  with pytest.raises(errors.UserError, match="validation"):
    temperature_lib.fit_temperature(np.zeros((0, 3), np.float32), np.zeros(0, int))


def test_margin_by_hand():
  scores = np.arange(1.0, 20.0)  # 19 patients, one stack each: rank 18 of 20
  patients = [str(i) for i in range(19)]
  assert calibration_lib.conformal_margin(scores, patients, 0.9) == 18.0
  assert calibration_lib.conformal_margin(scores[:8], patients[:8], 0.9) == np.inf
  assert calibration_lib.conformal_margin(scores[:9], patients[:9], 0.9) == 9.0
  # A patient with many stacks weighs no more than one with a single stack.
  scores = np.array([1.0] * 50 + [2.0, 3.0, 4.0, 5.0])
  assert calibration_lib.conformal_margin(scores, ["a"] * 50 + list("bcde"), 0.5) == 3.0


@pytest.mark.parametrize(
  ("patients", "margin"),
  [(1, np.inf), (2, np.inf), (4, np.inf), (5, 0.0), (19, 0.0), (20, -6.7)],
)
def test_few_patients_give_no_interval_and_shrink_none(patients, margin):
  scores = np.full(3 * patients, -6.7)  # every truth well inside its posterior's interval
  names = np.repeat(np.arange(patients), 3).astype(str)
  assert calibration_lib.conformal_margin(scores, names, 0.5) == margin


def test_margin_covers_new_patients_as_promised():
  rng = np.random.default_rng(0)
  covered, sizes = [], (1, 2, 5)
  for _ in range(400):
    patients = np.repeat(np.arange(31), rng.choice(sizes, size=31))
    scores = rng.normal(size=31)[patients] + 0.7 * rng.normal(size=len(patients))
    known = patients < 30
    margin = calibration_lib.conformal_margin(scores[known], patients[known].astype(str), 0.9)
    covered.append(np.mean(scores[~known] <= margin))
  assert 0.885 < np.mean(covered) < 0.95  # promised 0.9, one standard error is 0.014


def test_intervals_hold_on_new_stacks_and_widen_with_doubt():
  rng = np.random.default_rng(0)
  known = [stack(rng, f"v{i}", f"p{i // 2}", "validation") for i in range(80)]
  asked = [stack(rng, f"t{i}", f"q{i // 2}") for i in range(120)]
  calibration = calibration_lib.calibrate(known)
  found = calibration_lib.assess(calibration, asked)
  assert (found.covered > 0.85).all()
  assert (found.width_um < 30).all()
  assert found.error_after <= found.error_before
  one = asked[0]
  mask = np.ones(len(one.labels), bool)
  doubtful = intervals.scale(one.probabilities, 8.0)
  sharp, vague = (
    _intervals(p, one.depth_um, mask, calibration) for p in (one.probabilities, doubtful)
  )
  assert (np.diff(sharp) >= 0).all()
  assert (np.diff(vague) >= 0).all()
  assert (vague[:, 2] - vague[:, 0] > sharp[:, 2] - sharp[:, 0]).all()


def test_more_patients_bring_intervals_down_to_what_was_asked():
  rng = np.random.default_rng(3)
  known = [stack(rng, f"v{i}", f"p{i // 2}", "validation", noise=2.5) for i in range(20)]
  asked = [stack(rng, f"t{i}", f"q{i // 2}", noise=2.5) for i in range(160)]
  calibration = calibration_lib.calibrate(known)
  few = calibration_lib.assess(calibration, asked)
  more = calibration_lib.assess_with_more_patients(calibration, known, asked, divisions=40)
  assert more.patients == 10 + 40
  assert (np.abs(more.covered - 0.9) < 0.03).all()
  assert (np.abs(few.covered - 0.9) > 0.04).all()  # the luck of ten patients
  none = calibration_lib.calibrate(known[:4])
  one = calibration_lib.assess_with_more_patients(none, known[:2], asked[:2], divisions=3)
  assert one.patients == 1  # half of a test patient is none
  for found in (one, calibration_lib.assess(none, asked)):
    assert np.isnan([found.width_um, found.covered]).all()


def test_boundary_temperature_discounts_witnesses_that_repeat_each_other():
  rng = np.random.default_rng(0)
  once = [stack(rng, f"v{i}", f"p{i}", noise=2.5) for i in range(60)]
  fitted = temperature_lib.fit_boundary_temperature(once)

  def repeated(p, times):
    """Every slice's evidence counted several times over, as by neighbors that err together."""
    powers = p.probabilities**times
    return dataclasses.replace(p, probabilities=powers / powers.sum(-1, keepdims=True))

  tripled = temperature_lib.fit_boundary_temperature([repeated(p, 3) for p in once])
  assert tripled == pytest.approx(3 * fitted, rel=0.1)
  with pytest.raises(errors.UserError, match="validation"):
    temperature_lib.fit_boundary_temperature([])


def test_intervals_ignore_padding():
  rng = np.random.default_rng(1)
  one, n = stack(rng, "s", "p"), 30
  calibration = intervals.Calibration(1.3, (2.0, -1.0), 0.9)
  alone = _intervals(one.probabilities, one.depth_um, np.ones(n, bool), calibration)
  probabilities = np.concatenate([one.probabilities, np.full((9, 3), np.nan, np.float32)])
  depth = np.concatenate([one.depth_um, np.full(9, np.nan, np.float32)])
  padded = _intervals(probabilities, depth, np.arange(n + 9) < n, calibration)
  # Sums over 39 instead of 30 slices round in another order.
  np.testing.assert_allclose(padded, alone, rtol=39 * EPS)


def test_ensemble_averages_seeds_and_refuses_missing_ones():
  rng = np.random.default_rng(0)
  members = [stack(rng, f"s{i}", "p", seed=seed) for seed in range(3) for i in range(2)]
  together = calibration_lib.ensemble(members)
  assert [p.stack_id for p in together] == ["s0", "s1"]
  mean = np.mean([p.probabilities for p in members if p.stack_id == "s1"], axis=0)
  np.testing.assert_allclose(together[1].probabilities, mean)
  with pytest.raises(errors.UserError, match="2 of 3 seeds predict stack s1"):
    calibration_lib.ensemble(members[:-1])
