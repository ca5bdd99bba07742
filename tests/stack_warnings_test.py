"""Each doubt about a stack is said, and only where there is one."""

from __future__ import annotations

import dataclasses

import bundles
import numpy as np
import pytest

from rcm_jax.inference.interpretation import Boundary, Interpretation
from rcm_jax.inference.stack_warnings import falls_short, stack_warnings

COUNT = 18


def codes(
  change=lambda training: training,
  strata=(0,) * 6 + (1,) * 8 + (2,) * 4,
  depth_um=None,
  gray=None,
  upright=9.0,
  width_um=10.0,
  probability=0.9,
  figures=None,
):
  strata = np.array(strata)
  depth_um = 3.0 * np.arange(len(strata)) if depth_um is None else np.array(depth_um, float)
  gray = np.full((len(strata), 2), 50.0) if gray is None else gray
  found = Interpretation(np.zeros((len(strata), 3)), strata, np.zeros((2, 3)), np.ones(2), strata)
  named = []
  for number, name in enumerate(("epidermis_dej", "dej_dermis"), start=1):
    first = int((strata < number).sum())
    shown = 0 < first < len(strata)
    at = float(depth_um[first]) if shown else None
    ends = (at - width_um / 2, at + width_um / 2) if shown and width_um else (None, None)
    named.append(Boundary(name, shown, probability, at, *ends, first if shown else None))
  description = dataclasses.replace(
    bundles.DESCRIPTION,
    training=change(bundles.TRAINING),
    figures=figures or {},
  )
  said = stack_warnings(found, named, depth_um, gray, description, upright)
  assert all(w.message and "\n" not in w.message for w in said)
  return [w.code for w in said]


def changed(**fields):
  return lambda training: dataclasses.replace(training, **fields)


def test_nothing_is_said_without_a_doubt():
  assert codes() == []
  assert codes(depth_um=7.0 * np.arange(COUNT)) == []  # training went up to 5, times 1.5
  assert codes(depth_um=9.0 + 3.0 * np.arange(COUNT)) == []
  few = np.full((COUNT, 2), 50.0)
  few[:2, 0] = 1000.0  # two of eighteen slices
  assert codes(gray=few) == []


@pytest.mark.parametrize(
  ("expected", "given"),
  [
    ("step", {"depth_um": 12.0 * np.arange(COUNT)}),
    ("step", {"depth_um": 1.0 * np.arange(COUNT)}),
    ("step", {"depth_um": [*3.0 * np.arange(COUNT - 1), 90.0]}),  # a gap
    ("first_slice", {"depth_um": -20 + 3.0 * np.arange(COUNT)}),
    ("first_slice", {"depth_um": 50 + 3.0 * np.arange(COUNT)}),
    ("intensity", {"change": changed(gray_mean=(60.0, 90.0))}),
    ("intensity", {"change": changed(gray_spread=(10.0, 20.0))}),
    ("upside_down", {"upright": -5.0}),
    ("wide_interval", {"change": changed(wide_um=(5.0, 1e3))}),
    ("no_interval", {"change": changed(wide_um=None), "width_um": None}),
  ],
)
def test_each_doubt_is_said(expected, given):
  assert codes(**given) == [expected]


def test_what_a_stack_lacks_is_said():
  assert codes(strata=[0] * 8) == ["stratum_absent"] * 2
  assert codes(strata=[1] * 8) == ["stratum_absent"] * 2
  assert codes(strata=[0, 0, 1, 1]) == ["stratum_absent"]
  assert codes(strata=[0]) == ["few_slices", "stratum_absent", "stratum_absent"]
  assert codes(strata=[0, 1])[0] == "few_slices"
  assert codes(probability=0.4) == ["boundary_doubtful"] * 2


@pytest.mark.parametrize("level", [0.0, 255.0])
def test_slices_that_show_nothing_are_said(level):
  gray = np.stack([np.full(COUNT, level), np.zeros(COUNT)], 1)
  assert codes(gray=gray) == ["blank"]


def test_intervals_that_covered_less_than_they_promise_are_said():
  figures = {"epidermis_dej_interval_coverage": 0.1, "dej_dermis_interval_coverage": 0.8}
  patients = changed(patients={"train": 3, "validation": 3, "test": 9})
  assert codes(figures=figures, change=patients) == ["interval_coverage"]
  half = {"epidermis_dej_interval_coverage": 0.5}
  assert codes(figures=half, change=patients) == ["interval_coverage"]
  assert codes(figures=half, change=changed(patients={"test": 1})) == []  # one says little
  assert falls_short(0.5, 0.9, 9)
  assert not falls_short(0.75, 0.9, 9)
  assert not falls_short(None, 0.9, 9)
