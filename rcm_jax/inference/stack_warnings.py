"""What an operator should know before trusting an interpreted stack."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
import math
from typing import NamedTuple

from jaxtyping import Float
import numpy as np

from rcm_jax import anatomy
from rcm_jax.data.scale import Scale, field_of, same_field
from rcm_jax.inference import familiarity
from rcm_jax.inference.description import Description, Training
from rcm_jax.inference.interpretation import Boundary, Interpretation

STEP_FACTOR = 1.5  # by how much a step may leave the range of training
FIRST_SLICE_UM = 10.0  # by how much the first slice may
OUTSIDE_SHARE = 0.2  # of a stack's slices that may be darker, brighter or flatter than in training
MOST_NAMED = 5  # slices that a warning names


class StackWarning(NamedTuple):
  """One reason to look twice.

  Attributes:
    code: for programs; docs/bedside.md lists them.
    message: one sentence.
  """

  code: str
  message: str


def stack_warnings(
  found: Interpretation,
  named: Sequence[Boundary],
  depth_um: Float[np.ndarray, "T"],
  gray: Float[np.ndarray, "T 2"],
  description: Description,
  upright: float = math.inf,
) -> list[StackWarning]:
  """Says what in a stack or its interpretation should make an operator look twice.

  Args:
    found: on the host, real slices only.
    named: its boundaries.
    depth_um: of each slice.
    gray: mean and standard deviation of each slice's gray levels.
    description: of the model.
    upright: log-odds that the stack runs from shallow to deep and not upwards.
  """
  training, strata = description.training, description.strata
  pairs = [
    *_of_slices(depth_um, gray, training, strata),
    *_of_strata(found, named, upright, strata),
    *_of_intervals(named, description),
  ]
  return [StackWarning(code, message) for code, message in pairs]


def scale_warnings(
  shape: tuple[int, int], pixel_um: float | int | None, scale: Scale
) -> list[StackWarning]:
  """Says where a model may see cells of another size than it was trained on.

  Args:
    shape: of the slices as they were given.
    pixel_um: of their pixels; None if unknown.
    scale: of the model.
  """
  if scale.field_um is None:
    message = "nobody told the scale of the stacks that the model was trained on"
    return [StackWarning("scale_unknown", f"{message}: give it stacks of the same instrument only")]
  if pixel_um is None:
    return [
      StackWarning(
        "scale_unknown",
        f"the pixel size is unknown; the slices were taken to show {scale.field_um:.4g} µm, as in "
        "training: give --pixel_um",
      )
    ]
  field = field_of(shape, pixel_um)
  if field < scale.field_um and not same_field(field, scale.field_um):
    return [
      StackWarning(
        "small_field",
        f"the slices show {field:.4g} µm where the model sees {scale.field_um:.4g}; they were filled "
        "up by mirroring",
      )
    ]
  return []


def unfamiliar(found: familiarity.Found) -> list[StackWarning]:
  """Says how a stack differs from those of training, and in which slices most."""
  if not found.unfamiliar:
    return []
  message = f"unlike the stacks of training: {familiarity.reasons(found.unfamiliar)}"
  if "appearance" in found.unfamiliar:
    worst = np.sort(np.argsort(-found.slices)[:MOST_NAMED])
    message += f" (most of all slices {', '.join(map(str, worst))})"
  return [StackWarning("unfamiliar", f"{message}; do not rely on this answer")]


def _of_slices(
  depth_um: np.ndarray, gray: np.ndarray, training: Training, strata: anatomy.Strata
) -> Iterator[tuple[str, str]]:
  count = len(depth_um)
  if count < len(strata):
    yield "few_slices", f"a stack of {count} cannot show {len(strata)} strata"
  low, high = training.first_um
  if not low - FIRST_SLICE_UM <= depth_um[0] <= high + FIRST_SLICE_UM:
    yield (
      "first_slice",
      f"the first slice lies at {depth_um[0]:.3g} µm; in training it lay at {_range(low, high)} µm",
    )
  low, _, high = training.step_um
  steps = np.diff(depth_um)
  strange = np.flatnonzero((steps < low / STEP_FACTOR) | (steps > high * STEP_FACTOR))
  if strange.size:
    yield (
      "step",
      f"slices {strange[0]} and {strange[0] + 1} lie {steps[strange[0]]:.3g} µm apart; the model "
      f"was trained on {_range(low, high)} µm",
    )
  blank = np.flatnonzero(gray[:, 1] == 0)
  if blank.size:
    yield (
      "blank",
      f"{blank.size} of {count} slices, the first of them slice {blank[0]}, have one gray level "
      "throughout: they show nothing",
    )
  for column, (name, (low, high)) in enumerate(
    (("brightness", training.gray_mean), ("contrast", training.gray_spread))
  ):
    outside = np.flatnonzero((gray[:, column] < low) | (gray[:, column] > high))
    if outside.size > OUTSIDE_SHARE * count:
      yield (
        "intensity",
        f"{outside.size} of {count} slices, the first of them slice {outside[0]}, have a {name} "
        "outside what the model was trained on",
      )


def _of_strata(
  found: Interpretation, named: Sequence[Boundary], upright: float, strata: anatomy.Strata
) -> Iterator[tuple[str, str]]:
  if upright < -familiarity.UPSIDE_DOWN:
    yield (
      "upside_down",
      "read upwards the slices fit better: the stack may run from deep to shallow",
    )
  for stratum, name in enumerate(strata.names):
    if not (found.strata == stratum).any():
      yield (
        "stratum_absent",
        f"no slice of {strata.titles[name]} was found: the stack may start or end too soon",
      )
  for b in named:
    if b.shown and b.probability_shown < 0.5:
      yield (
        "boundary_doubtful",
        f"{strata.boundary_titles[b.name]} may lie above or below this stack: it is in it with "
        f"{b.probability_shown:.0%} probability",
      )


def _of_intervals(named: Sequence[Boundary], description: Description) -> Iterator[tuple[str, str]]:
  training, promised = description.training, description.calibration.coverage
  titles = description.strata.boundary_titles
  if training.wide_um is None:
    yield (
      "no_interval",
      "the model has no intervals: it was trained with too few validation patients",
    )
    return
  for b, limit, measured in zip(
    named, training.wide_um, description.measured_coverage, strict=True
  ):
    if is_wide(b, limit):
      yield (
        "wide_interval",
        f"the interval of {titles[b.name]} is {b.high_um - b.low_um:.0f} µm wide: read it by eye",
      )
    if b.low_um is not None and falls_short(measured, promised, training.patients.get("test", 0)):
      yield (
        "interval_coverage",
        f"the interval of {titles[b.name]} is too narrow: such intervals held the true "
        f"boundary for {measured:.0%} of test patients, where {promised:.0%} were meant",
      )


def is_wide(boundary: Boundary, limit_um: float) -> bool:
  """Returns whether a boundary's interval is wider than nearly all in validation."""
  if boundary.low_um is None or boundary.high_um is None:
    return False
  return boundary.high_um - boundary.low_um > limit_um


def falls_short(measured: float | None, promised: float, patients: int) -> bool:
  """Returns whether a coverage lies two standard errors or more below the promised one."""
  if measured is None or patients < 1:
    return False
  return measured < promised - 2 * math.sqrt(promised * (1 - promised) / patients)


def _range(low: float, high: float) -> str:
  return f"{low:.3g}" if low == high else f"{low:.3g} to {high:.3g}"
