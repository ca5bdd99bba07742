"""From a stack's class probabilities to what an operator needs: strata, boundaries, mosaics.

One rule decides: each boundary lies at the slice that is its posterior median. Strata, slices to
look at, thicknesses and mosaics all follow from these slices.

`interpret` is traceable and shared by prediction and export; the rest is plain Python on
its result.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
import dataclasses
import math
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int
import numpy as np

from rcm_jax import anatomy, arrays
from rcm_jax.decoding import boundaries, intervals, monotone_model
from rcm_jax.decoding import strata as strata_lib
from rcm_jax.decoding.intervals import Calibration

MARGIN_UM = 10.0  # about one basal cell: how far off the junction its neighbours are looked at


class Interpretation(NamedTuple):
  """One interpreted stack.

  Attributes:
    probabilities: of each slice's strata, calibrated.
    strata: of each slice, between the boundaries.
    boundary_um: lower end, median and upper end of each boundary's depth; medians are depths
      of slices, ends are infinite where the model has no intervals.
    in_stack: probability that the stack shows each boundary.
    most_probable_strata: the most probable labelling among possible ones. It may differ from
      `strata`, which err least in depth.
  """

  probabilities: Float[Array, "T C"]
  strata: Int[Array, "T"]
  boundary_um: Float[Array, "S 3"]
  in_stack: Float[Array, "S"]
  most_probable_strata: Int[Array, "T"]


def interpret(
  probabilities: Float[arrays.ArrayLike, "T C"],
  depth_um: Float[arrays.ArrayLike, "T"],
  mask: Bool[arrays.ArrayLike, "T"],
  calibration: Calibration,
) -> Interpretation:
  """Decodes one stack; traceable and batched by `vmap`.

  Args:
    probabilities: of the ensemble, before calibration; padding may hold anything.
    depth_um: depth of each slice in µm.
    mask: True on real slices.
    calibration: of the ensemble.
  """
  real = jnp.asarray(mask)[:, None]
  probabilities = jnp.where(real, probabilities, 1 / probabilities.shape[-1])
  logits = jnp.log(jnp.maximum(probabilities, jnp.finfo(jnp.float32).tiny))
  posterior = monotone_model.posterior_of(probabilities, mask, calibration.boundary_temperature)
  absent = posterior.probability[:, 0] + jnp.take(posterior.probability, jnp.sum(mask), axis=1)
  return Interpretation(
    probabilities=jax.nn.softmax(logits / calibration.temperature),
    strata=boundaries.strata_between(posterior.median, mask),
    boundary_um=intervals.boundary_intervals_um(probabilities, depth_um, mask, calibration),
    in_stack=1 - absent,
    most_probable_strata=strata_lib.monotone(logits, mask),
  )


@dataclasses.dataclass(frozen=True)
class Boundary:
  """Where one stratum ends and the next begins.

  Attributes:
    name: of `anatomy.Strata.boundaries`, such as "epidermis_dej".
    shown: whether its median is a slice of the stack, with slices above and below it.
    probability_shown: that the stack has it, by the posterior. Not shown, it is at most one half.
    depth_um: posterior median, the depth of `slice`; None unless shown.
    low_um: lower end of the interval; None without interval.
    high_um: upper end.
    slice: the first slice at or below it, counted from 0; None unless shown.
    lateral_um: greatest difference between its depths in parts of the field; None where one was seen.
  """

  name: str
  shown: bool
  probability_shown: float
  depth_um: float | None
  low_um: float | None
  high_um: float | None
  slice: int | None
  lateral_um: float | None = None


@dataclasses.dataclass(frozen=True)
class Thickness:
  """How thick a stratum is.

  Attributes:
    stratum: its name.
    thickness_um: from the boundary above it to the one below; of the first stratum, from the first
      contact with skin, where depths are 0. None unless the boundaries are shown.
    low_um: lower end of the interval; None without interval.
    high_um: upper end.
  """

  stratum: str
  thickness_um: float | None
  low_um: float | None
  high_um: float | None


@dataclasses.dataclass(frozen=True)
class Mosaic:
  """A depth to acquire a mosaic at.

  Attributes:
    name: of the layer.
    depth_um: where; None if the stack does not tell.
    low_um: the same, were the boundaries at their intervals' lower ends.
    high_um: at the upper ends.
    slice: the nearest slice of the layer's stratum, counted from 0; None where there is none
      within half a step.
    note: what to mind; empty if nothing.
  """

  name: str
  depth_um: float | None
  low_um: float | None
  high_um: float | None
  slice: int | None
  note: str


class Layer(NamedTuple):
  """What a mosaic shows.

  Attributes:
    name: of the layer.
    stratum: that it is part of.
    weights: by boundary, of its depth; their sum is the layer's depth.
    offset_um: added to it.
  """

  name: str
  stratum: str
  weights: Mapping[str, float]
  offset_um: float


def _of_junction(name: str, upper: float, lower: float) -> Layer:
  """A layer between both ends of the DEJ."""
  return Layer(name, "dej", {"epidermis_dej": upper, "dej_dermis": lower}, 0.0)


# The mosaics of the paper's introduction. The paper names the layers; the depths within them are
# ours.
LAYERS = (
  Layer("stratum spinosum with basal layer", "epidermis", {"epidermis_dej": 1.0}, -MARGIN_UM),
  _of_junction("upper DEJ", 5 / 6, 1 / 6),
  _of_junction("middle DEJ", 1 / 2, 1 / 2),
  _of_junction("lower DEJ", 1 / 6, 5 / 6),
  Layer("papillary dermis", "dermis", {"dej_dermis": 1.0}, MARGIN_UM),
)
MOSAICS = tuple(layer.name for layer in LAYERS)


def named_boundaries(
  found: Interpretation,
  depth_um: Float[np.ndarray, "T"],
  strata: anatomy.Strata = anatomy.PAPER,
) -> list[Boundary]:
  """Names the boundaries of a stack.

  Args:
    found: on the host, real slices only.
    depth_um: of each slice.
    strata: of the task.
  """
  first = np.searchsorted(found.strata, np.arange(1, len(strata)))  # strata never decrease
  named = []
  for b, name in enumerate(strata.boundaries):
    shown = bool(0 < first[b] < len(depth_um))
    low, _, high = (
      float(x) if shown and math.isfinite(x) else None for x in np.asarray(found.boundary_um[b])
    )
    at, index = (float(depth_um[first[b]]), int(first[b])) if shown else (None, None)
    if shown and low is not None and high is not None:  # the ends are of fewer digits
      low, high = min(low, at), max(high, at)
    probability = float(np.clip(found.in_stack[b], 0, 1 if shown else 0.5))  # rounding aside
    named.append(Boundary(name, shown, probability, at, low, high, index))
  return named


def thicknesses(
  found: Sequence[Boundary],
  inner_um: Float[np.ndarray, "L 3"],
  strata: anatomy.Strata = anatomy.PAPER,
) -> list[Thickness]:
  """Tells how thick the strata of `anatomy.Strata.layers` are, as far as the stack shows.

  Args:
    found: the boundaries.
    inner_um: of `intervals.thickness_intervals_um`.
    strata: of the task.
  """
  told = []
  for i, name in enumerate(strata.layers):
    if not all(b.shown for b in found[max(i - 1, 0) : i + 1]):
      told.append(Thickness(name, None, None, None))
    elif i == 0:
      ends = (found[0].depth_um, found[0].low_um, found[0].high_um)
      told.append(Thickness(name, *(None if um is None else max(um, 0.0) for um in ends)))
    else:
      at = found[i].depth_um - found[i - 1].depth_um
      low, _, high = (float(x) if math.isfinite(x) else None for x in inner_um[i - 1])
      if low is None or high is None:
        low = high = None
      else:  # the ends are of fewer digits
        low, high = min(low, at), max(high, at)
      told.append(Thickness(name, at, low, high))
  return told


def depth_plan(
  found: Sequence[Boundary],
  depth_um: Float[np.ndarray, "T"],
  strata: Int[np.ndarray, "T"],
  task: anatomy.Strata = anatomy.PAPER,
) -> list[Mosaic]:
  """Plans the paper's five mosaics from the boundaries of the DEJ.

  The basal layer is looked at one cell above the first of them, the papillary dermis as
  far below the second; upper, middle and lower DEJ are the middles of the junction's thirds.

  Args:
    found: the boundaries.
    depth_um: of each slice.
    strata: of each slice.
    task: which strata there are.
  """
  return [_mosaic(layer, found, depth_um, strata, task) for layer in LAYERS]


def _mosaic(layer, found, depth_um, strata, task):
  used = [(layer.weights[b.name], b) for b in found if b.name in layer.weights]
  missing = [task.boundary_titles[b.name] for _, b in used if b.depth_um is None]
  if missing:
    note = f"the stack does not show {' and '.join(missing)}"
    return Mosaic(layer.name, None, None, None, None, note)
  place = lambda depths: sum(weight * x for (weight, _), x in zip(used, depths)) + layer.offset_um
  at = place([b.depth_um for _, b in used])
  low = high = None
  if all(b.low_um is not None and b.high_um is not None for _, b in used):
    low, high = (place([getattr(b, end) for _, b in used]) for end in ("low_um", "high_um"))
  if at > depth_um[-1]:
    return Mosaic(layer.name, at, low, high, None, "below the last slice")
  if at < depth_um[0]:
    return Mosaic(layer.name, at, low, high, None, "above the first slice")
  of_layer = np.flatnonzero(strata == task.names.index(layer.stratum))
  nearest = int(of_layer[np.abs(depth_um[of_layer] - at).argmin()])  # a shown boundary has slices
  note = ""
  if nearest != int(np.abs(depth_um - at).argmin()):
    note = f"the nearest slice of {task.titles[layer.stratum]} lies at {depth_um[nearest]:.1f} µm"
  return Mosaic(layer.name, at, low, high, nearest, note)
