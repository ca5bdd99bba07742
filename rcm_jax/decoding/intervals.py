"""A model's calibrated uncertainty: probabilities by slice, and intervals of its boundaries.

`rcm_jax.evaluation.calibration` learns a `Calibration` on validation stacks.
"""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float
import numpy as np
from scipy import special

from rcm_jax import arrays
from rcm_jax.decoding import boundaries, monotone_model

_TINY = np.finfo(np.float32).tiny


class Calibration(NamedTuple):
  """What validation stacks teach about a model's uncertainty.

  Attributes:
    temperature: divides the logarithms of a slice's probabilities.
    margin_um: by how much each boundary's posterior interval must grow (or may shrink), in µm;
      infinite with too few validation patients for the coverage.
    coverage: probability that an interval is meant to cover the true boundary with.
    boundary_temperature: divides them where boundaries are inferred from a whole stack; None
      for an ordered head, whose probabilities tell the boundaries by themselves.
    thickness_margin_um: the same as `margin_um` of each stratum between two boundaries; empty where
      no thickness is told.
  """

  temperature: float
  margin_um: tuple[float, ...]
  coverage: float
  boundary_temperature: float | None = 1.0
  thickness_margin_um: tuple[float, ...] = ()


def boundary_intervals_um(
  probabilities: Float[arrays.ArrayLike, "T C"],
  depth_um: Float[arrays.ArrayLike, "T"],
  mask: Bool[arrays.ArrayLike, "T"],
  calibration: Calibration,
) -> Float[Array, "S 3"]:
  """Computes lower end, median and upper end of each boundary of one stack, in µm.

  The median is the depth of a slice: of the first one that lies below the boundary with a
  probability of one half or more. The ends vary continuously. Traceable and batched by `vmap`.
  """
  low, median, high = _posterior_ends_um(probabilities, depth_um, mask, calibration)
  margin = jnp.array(calibration.margin_um)
  # The median lies in its interval, whatever the margin.
  return jnp.stack(
    [jnp.minimum(low - margin, median), median, jnp.maximum(high + margin, median)], axis=-1
  )


def thickness_intervals_um(
  probabilities: Float[arrays.ArrayLike, "T C"],
  depth_um: Float[arrays.ArrayLike, "T"],
  mask: Bool[arrays.ArrayLike, "T"],
  calibration: Calibration,
) -> Float[Array, "L 3"]:
  """Computes lower end, middle and upper end of the thickness of the strata between two boundaries.

  The middle is the difference of the boundaries' medians. The ends lie off it as if both boundaries
  erred independently, and by a margin that makes them cover, as those of boundaries do: see
  `evaluation.calibration`. Traceable and batched by `vmap`.

  Args:
    probabilities: as for `boundary_intervals_um`.
    depth_um: depth of each slice in µm.
    mask: True on real slices.
    calibration: tells of how many strata, from the second on.
  """
  low, median, high = _posterior_ends_um(probabilities, depth_um, mask, calibration)
  margin = jnp.array(calibration.thickness_margin_um)
  inner = len(calibration.thickness_margin_um)
  under, over = jnp.maximum(median - low, 0), jnp.maximum(high - median, 0)
  middle = (median[1:] - median[:-1])[:inner]
  less = jnp.hypot(under[1:], over[:-1])[:inner] + margin
  more = jnp.hypot(over[1:], under[:-1])[:inner] + margin
  ends = jnp.maximum(middle - jnp.maximum(less, 0), 0), middle, middle + jnp.maximum(more, 0)
  return jnp.stack(ends, axis=-1)


def _posterior_ends_um(probabilities, depth_um, mask, calibration):
  posterior = monotone_model.posterior_of(probabilities, mask, calibration.boundary_temperature)
  tail = (1 - calibration.coverage) / 2
  levels = jnp.array([tail, 1 - tail])
  low, high = boundary_quantiles_um(posterior.probability, levels, depth_um, mask).T
  return low, boundaries.boundary_depths_um(posterior.median, depth_um, mask), high


# Of any number of stacks side by side; a calibration is for all of them.
intervals_of_stacks_um = jax.jit(jax.vmap(boundary_intervals_um, in_axes=(0, 0, 0, None)))
thicknesses_of_stacks_um = jax.jit(jax.vmap(thickness_intervals_um, in_axes=(0, 0, 0, None)))


def scale(
  probabilities: Float[np.ndarray, "*batch C"], temperature: float
) -> Float[np.ndarray, "*batch C"]:
  """Softens (above 1) or sharpens (below 1) probabilities; their order stays."""
  return special.softmax(log(probabilities) / temperature, axis=-1).astype(probabilities.dtype)


def log(probabilities: Float[np.ndarray, "*batch C"]) -> Float[np.ndarray, "*batch C"]:
  """Returns logarithms in float64; zero counts as the least positive float32."""
  return np.log(np.maximum(probabilities, _TINY).astype(np.float64))


def boundary_quantiles_um(
  probability: Float[arrays.ArrayLike, "S T1"],
  levels: Float[arrays.ArrayLike, " Q"],
  depth_um: Float[arrays.ArrayLike, "T"],
  mask: Bool[arrays.ArrayLike, "T"],
) -> Float[Array, "S Q"]:
  """Reads depths off the boundaries' distribution.

  A slice's probability is spread evenly over the tissue that it stands for, half a step to
  either side, so that depths vary continuously and not by slices. "Not in this stack" stands
  one step past the last slice.

  Args:
    probability: of a `BoundaryPosterior`.
    levels: cumulative probabilities, in (0, 1).
    depth_um: depth of each slice in µm.
    mask: True on real slices.

  Returns:
    Depth in µm of each boundary at every level.
  """
  count = jnp.sum(mask)
  depth = jnp.where(mask, depth_um, 0.0)
  last = depth[jnp.maximum(count - 1, 0)]
  step = last - depth[jnp.maximum(count - 2, 0)]
  places = jnp.where(jnp.asarray(mask), depth, last + step)
  places = jnp.concatenate([places, (last + step)[None]])
  between = (places[1:] + places[:-1]) / 2
  first = places[:1] - (between[:1] - places[:1])
  edges = jnp.concatenate([first, between, (last + 1.5 * step)[None]])
  # Behind "not in this stack" no probability is left, and no depth.
  edges = jnp.where(jnp.arange(len(edges)) > count, last + 1.5 * step, edges)
  cumulative = jnp.cumsum(jnp.asarray(probability), axis=1)
  cumulative = jnp.concatenate([jnp.zeros((len(cumulative), 1)), cumulative], axis=1)
  return jax.vmap(lambda c: jnp.interp(jnp.asarray(levels), c, edges))(cumulative)
