"""A model's calibrated uncertainty: probabilities by slice, and intervals of both boundaries.

`rcm_jax.evaluation.calibration` learns a `Calibration` on validation stacks.
"""

from __future__ import annotations

from typing import NamedTuple

import jax.numpy as jnp
from jaxtyping import Array, Bool, Float
import numpy as np
from scipy import special

from rcm_jax import arrays
from rcm_jax.decoding import strata as strata_lib

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
  """

  temperature: float
  margin_um: tuple[float, float]
  coverage: float
  boundary_temperature: float | None = 1.0


def boundary_intervals_um(
  probabilities: Float[arrays.ArrayLike, "T 3"],
  depth_um: Float[arrays.ArrayLike, "T"],
  mask: Bool[arrays.ArrayLike, "T"],
  calibration: Calibration,
) -> Float[Array, "2 3"]:
  """Computes lower end, median and upper end of both boundaries of one stack, in µm.

  Traceable and batched by `vmap`.
  """
  posterior = strata_lib.posterior_of(probabilities, mask, calibration.boundary_temperature)
  tail = (1 - calibration.coverage) / 2
  levels = jnp.array([tail, 0.5, 1 - tail])
  low, median, high = strata_lib.boundary_quantiles_um(
    posterior.probability, levels, depth_um, mask
  ).T
  margin = jnp.array(calibration.margin_um)
  # A negative margin must not turn the interval inside out.
  return jnp.stack(
    [jnp.minimum(low - margin, median), median, jnp.maximum(high + margin, median)], axis=-1
  )


def scale(
  probabilities: Float[np.ndarray, "*batch 3"], temperature: float
) -> Float[np.ndarray, "*batch 3"]:
  """Softens (above 1) or sharpens (below 1) probabilities; their order stays."""
  return special.softmax(log(probabilities) / temperature, axis=-1).astype(probabilities.dtype)


def log(probabilities: Float[np.ndarray, "*batch 3"]) -> Float[np.ndarray, "*batch 3"]:
  """Returns logarithms in float64; zero counts as the least positive float32."""
  return np.log(np.maximum(probabilities, _TINY).astype(np.float64))
