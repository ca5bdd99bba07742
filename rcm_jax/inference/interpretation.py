"""From a stack's class probabilities to what an operator needs: strata, boundaries, mosaics.

`read` is traceable and shared by prediction and export; the rest is plain Python on
its result.
"""

from __future__ import annotations

from collections.abc import Sequence
import dataclasses
import math
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int
import numpy as np

from rcm_jax import arrays
from rcm_jax.decoding import boundaries, intervals, monotone_model
from rcm_jax.decoding import strata as strata_lib
from rcm_jax.decoding.intervals import Calibration
from rcm_jax.inference.model_card import Training

DISPLAY_NAMES = dict(zip(boundaries.BOUNDARIES, ("epidermis–DEJ", "DEJ–dermis"), strict=True))
_STRATA_NAMES = dict(zip(arrays.STRATA, ("epidermis", "DEJ", "dermis"), strict=True))
STEP_FACTOR = 1.5  # by how much a step may leave the range of training
OUTSIDE_SHARE = 0.2  # of a stack's slices that may be darker, brighter or flatter than in training
MARGIN_UM = 10.0  # about one basal cell: how far off the junction its neighbours are looked at


class Reading(NamedTuple):
  """One stack, read.

  Attributes:
    probabilities: calibrated, by slice and stratum.
    strata: the most probable labelling among possible ones; of an ordered head, the one with the
      median boundaries, which is possible too.
    boundary_um: lower end, median and upper end of both boundaries' depths; ends are
      infinite where the model has no intervals.
    in_stack: probability that the stack shows each boundary.
  """

  probabilities: Float[Array, "T 3"]
  strata: Int[Array, "T"]
  boundary_um: Float[Array, "2 3"]
  in_stack: Float[Array, "2"]


def read(
  probabilities: Float[arrays.ArrayLike, "T 3"],
  depth_um: Float[arrays.ArrayLike, "T"],
  mask: Bool[arrays.ArrayLike, "T"],
  calibration: Calibration,
) -> Reading:
  """Decodes one stack; traceable and batched by `vmap`.

  Args:
    probabilities: of the ensemble, before calibration; padding may hold anything.
    depth_um: depth of each slice in µm.
    mask: True on real slices.
    calibration: of the ensemble.
  """
  probabilities = jnp.where(jnp.asarray(mask)[:, None], probabilities, 1 / arrays.NUM_STRATA)
  logits = jnp.log(jnp.maximum(probabilities, jnp.finfo(jnp.float32).tiny))
  log_probs = jax.nn.log_softmax(logits / calibration.temperature)
  boundary_um = intervals.boundary_intervals_um(probabilities, depth_um, mask, calibration)
  temperature = calibration.boundary_temperature
  posterior = monotone_model.posterior_of(probabilities, mask, temperature).probability
  outside = posterior[:, 0] + jnp.take(posterior, jnp.sum(mask), axis=1)
  if temperature is None:
    strata = jnp.where(mask, strata_lib.strata_of(probabilities, ordered=True), 0)
  else:
    strata = strata_lib.monotone(log_probs, mask)
  return Reading(jnp.exp(log_probs), strata, boundary_um, 1 - outside)


@dataclasses.dataclass(frozen=True)
class Boundary:
  """Where one stratum ends and the next begins.

  Attributes:
    name: "epidermis_dej" or "dej_dermis".
    shown: whether the decoded strata have it.
    probability_shown: that the stack has it, by the posterior.
    depth_um: posterior median; None unless shown.
    low_um: lower end of the interval; None without interval.
    high_um: upper end.
    slice: the first slice below it; None unless shown.
  """

  name: str
  shown: bool
  probability_shown: float
  depth_um: float | None
  low_um: float | None
  high_um: float | None
  slice: int | None


@dataclasses.dataclass(frozen=True)
class Mosaic:
  """A depth to acquire a mosaic at.

  Attributes:
    name: of the layer.
    depth_um: where; None if the stack does not tell.
    low_um: the same, were the boundaries at their intervals' lower ends.
    high_um: at the upper ends.
    slice: the nearest slice; None outside the stack.
    note: what to mind; empty if nothing.
  """

  name: str
  depth_um: float | None
  low_um: float | None
  high_um: float | None
  slice: int | None
  note: str


class Caution(NamedTuple):
  """What an operator should know before trusting a reading.

  Attributes:
    code: "stratum_absent", "step", "intensity", "no_interval" or "wide_interval".
    message: one sentence.
  """

  code: str
  message: str


# The mosaics of the paper's introduction: name, weights of both boundaries, offset in µm. The
# paper names the layers; the depths within them are ours.
_MOSAICS = (
  ("stratum spinosum with basal layer", (1.0, 0.0), -MARGIN_UM),
  ("upper DEJ", (5 / 6, 1 / 6), 0.0),
  ("middle DEJ", (1 / 2, 1 / 2), 0.0),
  ("lower DEJ", (1 / 6, 5 / 6), 0.0),
  ("papillary dermis", (0.0, 1.0), MARGIN_UM),
)
MOSAICS = tuple(name for name, *_ in _MOSAICS)


def named_boundaries(reading: Reading, depth_um: Float[np.ndarray, "T"]) -> list[Boundary]:
  """Names both boundaries of a stack.

  Args:
    reading: on the host, real slices only.
    depth_um: of each slice.
  """
  first = np.searchsorted(reading.strata, [1, 2])  # of strata that never decrease
  found = []
  for b, name in enumerate(boundaries.BOUNDARIES):
    shown = bool(0 < first[b] < len(depth_um))
    low, median, high = (
      float(x) if shown and math.isfinite(x) else None for x in np.asarray(reading.boundary_um[b])
    )
    probability = float(np.clip(reading.in_stack[b], 0, 1))
    index = int(first[b]) if shown else None
    found.append(Boundary(name, shown, probability, median, low, high, index))
  return found


def depth_plan(found: Sequence[Boundary], depth_um: Float[np.ndarray, "T"]) -> list[Mosaic]:
  """Plans the paper's five mosaics from both boundaries.

  The basal layer is looked at one cell above the first boundary, the papillary dermis as
  far below the second; upper, middle and lower DEJ are the middles of the junction's thirds.
  """
  plan = []
  for name, weights, offset in _MOSAICS:
    used = [(weight, b) for weight, b in zip(weights, found, strict=True) if weight]
    missing = [DISPLAY_NAMES[b.name] for _, b in used if b.depth_um is None]
    if missing:
      note = f"the stack does not show {' and '.join(missing)}"
      plan.append(Mosaic(name, None, None, None, None, note))
      continue
    at = sum(weight * b.depth_um for weight, b in used) + offset
    low = high = None
    if all(b.low_um is not None and b.high_um is not None for _, b in used):
      low = sum(weight * b.low_um for weight, b in used) + offset
      high = sum(weight * b.high_um for weight, b in used) + offset
    note = ""
    if at > depth_um[-1]:
      note = "below the last slice"
    elif at < depth_um[0]:
      note = "above the first slice"
    index = None if note else int(np.abs(depth_um - at).argmin())
    plan.append(Mosaic(name, at, low, high, index, note))
  return plan


def cautions(
  reading: Reading,
  found: Sequence[Boundary],
  depth_um: Float[np.ndarray, "T"],
  gray: Float[np.ndarray, "T 2"],
  training: Training,
) -> list[Caution]:
  """Says what in a stack or its reading should make an operator look twice.

  Args:
    reading: on the host, real slices only.
    found: its boundaries.
    depth_um: of each slice.
    gray: mean and standard deviation of each slice's gray levels.
    training: what the model has seen.
  """
  noted = []
  for stratum, name in enumerate(arrays.STRATA):
    if not (reading.strata == stratum).any():
      text = f"no slice of {_STRATA_NAMES[name]} was found: the stack may start or end too soon"
      noted.append(Caution("stratum_absent", text))
  steps = np.diff(depth_um)
  low, _, high = training.step_um
  strange = steps[(steps < low / STEP_FACTOR) | (steps > high * STEP_FACTOR)]
  if strange.size:
    known = f"{low:.3g}" if low == high else f"{low:.3g} to {high:.3g}"
    text = f"slices lie {strange[0]:.3g} µm apart; the model was trained on {known} µm"
    noted.append(Caution("step", text))
  for column, (name, (low, high)) in enumerate(
    (("brightness", training.gray_mean), ("contrast", training.gray_spread))
  ):
    values = gray[:, column]
    outside = np.flatnonzero((values < low) | (values > high))
    if outside.size > OUTSIDE_SHARE * len(values):
      text = (
        f"{outside.size} of {len(values)} slices, the first of them slice {outside[0] + 1}, have a "
        f"{name} outside what the model was trained on"
      )
      noted.append(Caution("intensity", text))
  if training.wide_um is None:
    text = "the model has no intervals: it was trained with too few validation patients"
    noted.append(Caution("no_interval", text))
  for b, limit in zip(found, training.wide_um or (math.inf, math.inf), strict=True):
    if is_wide(b, limit):
      text = (
        f"the interval of {DISPLAY_NAMES[b.name]} is {b.high_um - b.low_um:.0f} µm wide: read it "
        "by eye"
      )
      noted.append(Caution("wide_interval", text))
  return noted


def is_wide(boundary: Boundary, limit_um: float) -> bool:
  """Returns whether a boundary's interval is wider than nearly all in validation."""
  if boundary.low_um is None or boundary.high_um is None:
    return False
  return boundary.high_um - boundary.low_um > limit_um
