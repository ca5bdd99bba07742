"""The shape of one stack's tissue: its surface, its dermal-epidermal junction, what follows them.

Depth grows downwards from 0 at the first contact with skin. Numbers without a source are choices.
"""

from __future__ import annotations

import dataclasses

from jaxtyping import Float
import numpy as np

from tfds_rcm.rcm_phantom import anatomy as anatomy_lib
from tfds_rcm.rcm_phantom import noise

Map = Float[np.ndarray, "H W"]
_FIELD_UM = 560.0  # side of the square that relief is defined on, the largest field and its margins


@dataclasses.dataclass(frozen=True)
class Relief:
  """Lateral maps of a stack; depths in µm.

  Attributes:
    surface: depth of the skin's surface, 0 at its highest point.
    junction: depth of the dermal-epidermal junction.
    corneum: thickness of the stratum corneum.
    papilla_x: µm from the axis of the nearest papilla, along x.
    papilla_y: the same along y.
    wander: slow noise of unit variance that blurs every sharp rule.
    ridge: depth of the ridges' bottoms, the junction without its papillae.
  """

  surface: Map
  junction: Map
  corneum: Map
  papilla_x: Map
  papilla_y: Map
  wander: Map
  ridge: Map


def make_relief(
  anatomy: anatomy_lib.Anatomy, x: Float[np.ndarray, " W"], y: Float[np.ndarray, " H"]
) -> Relief:
  """Evaluates a stack's maps on any grid y × x, in µm from the field's corner."""
  rng = anatomy.generator("relief")
  wander = noise.evaluate_waves(noise.random_waves(rng, 70.0), x, y)
  undulation = noise.evaluate_waves(noise.random_waves(rng, 150.0), x, y)
  swell = noise.evaluate_waves(noise.random_waves(rng, 420.0), x, y)
  wrinkles = noise.evaluate_waves(noise.random_waves(rng, 55.0), x, y)
  tilt = rng.normal(0, 0.012, 2)  # a contact window leaves little tilt
  plane = tilt[0] * (x[None, :] - _FIELD_UM / 2) + tilt[1] * (y[:, None] - _FIELD_UM / 2)
  furrows = _furrows(anatomy, rng, x, y, wander)
  bumps, papilla_x, papilla_y, covered = _papillae(anatomy, rng, x, y, wander)

  # The window presses hills flat: the surface's relief is mostly its furrows.
  relief = furrows + 1.2 * wrinkles + 1.5 * swell + plane
  # Above every point of the field, also those between the points of this grid, so that coarse
  # and fine grids agree on the depth of first contact.
  surface = np.maximum(relief + 3.5, 0.0)
  corneum = anatomy.corneum_um * np.clip(1 + 0.12 * wander, 0.6, 1.4)
  undulating = 0.55 * furrows + plane + 3.5 + anatomy.undulation_um * undulation + 3 * swell
  ridge = anatomy.epidermis_um + covered * anatomy.papilla_height_um + undulating
  junction = ridge - bumps
  thinnest = surface + corneum + 12.0  # a granular and a basal cell at least
  junction = thinnest + np.logaddexp(0.0, (junction - thinnest) / 6.0) * 6.0
  return Relief(surface, junction, corneum, papilla_x, papilla_y, wander, ridge)


def _scatter(rng: np.random.Generator, spacing: float) -> np.ndarray:
  """Draws points on a jittered hexagonal lattice that covers the field and one spacing around."""
  steps = int(np.ceil(_FIELD_UM / spacing)) + 3
  column, row = np.meshgrid(np.arange(steps), np.arange(int(steps * 1.2)))
  points = np.stack([column + 0.5 * (row % 2), row * 0.866], -1).reshape(-1, 2) - 1.5
  return (points + rng.uniform(-0.28, 0.28, points.shape)) * spacing


def _window(
  center_x: float, center_y: float, x: np.ndarray, y: np.ndarray, reach: float
) -> tuple[slice, slice]:
  """Returns the rows and columns within reach of a center: what lies beyond is not its own."""
  rows = np.searchsorted(y, (center_y - reach, center_y + reach))
  columns = np.searchsorted(x, (center_x - reach, center_x + reach))
  return slice(*rows), slice(*columns)


def _furrows(
  anatomy: anatomy_lib.Anatomy,
  rng: np.random.Generator,
  x: np.ndarray,
  y: np.ndarray,
  wander: Map,
) -> Map:
  """Returns the depth of the furrows between the clusters of corneocytes."""
  nearest = np.full((len(y), len(x)), np.inf)
  second = nearest.copy()
  spacing = anatomy.furrow_spacing_um
  for center_x, center_y in _scatter(rng, spacing):
    near = _window(center_x, center_y, x, y, 1.6 * spacing)
    distance = np.hypot(x[None, near[1]] - center_x, y[near[0], None] - center_y)
    second[near] = np.minimum(second[near], np.maximum(nearest[near], distance))
    nearest[near] = np.minimum(nearest[near], distance)
  edge = (second - nearest) / 2 + 2.5 * wander  # µm from the middle of the furrow
  depth = anatomy.furrow_depth_um * np.clip(0.75 + 0.3 * wander, 0.2, 1.3)
  return depth * np.exp(-(np.abs(edge / (0.5 * anatomy.furrow_width_um)) ** 2.5))


def _papillae(
  anatomy: anatomy_lib.Anatomy,
  rng: np.random.Generator,
  x: np.ndarray,
  y: np.ndarray,
  wander: Map,
) -> tuple[Map, Map, Map, float]:
  """Returns heights over the ridges, vectors from the nearest axis, and the mean of height."""
  spacing = anatomy.papilla_spacing_um
  centers = _scatter(rng, spacing)
  count = len(centers)
  spread = 0.12 + 0.3 * anatomy.disarray  # rings of irregular size in melanoma
  radius = 0.43 * spacing * np.clip(rng.normal(1, spread, count), 0.5, 1.6)
  height = anatomy.papilla_height_um * np.clip(rng.normal(1, spread, count), 0.2, 1.4)
  stretch = np.exp(rng.normal(0, 0.12 + 0.15 * anatomy.disarray, count))
  angle = rng.uniform(0, np.pi, count)

  bumps = np.zeros((len(y), len(x)))
  nearest = np.full_like(bumps, np.inf)
  axis_x, axis_y = np.zeros_like(bumps), np.zeros_like(bumps)
  for index, (center_x, center_y) in enumerate(centers):
    near = _window(center_x, center_y, x, y, 1.6 * spacing)
    dx = x[None, near[1]] - center_x + 3.0 * wander[near]
    dy = y[near[0], None] - center_y - 3.0 * wander[near]
    along = (np.cos(angle[index]) * dx + np.sin(angle[index]) * dy) * stretch[index]
    across = (np.cos(angle[index]) * dy - np.sin(angle[index]) * dx) / stretch[index]
    square = (along**2 + across**2) / radius[index] ** 2
    # Steeper than a Gaussian: a finger with a round tip, as wide as published cuts of papillae.
    bumps[near] += height[index] ** 4 * np.exp(-4.0 * square**1.4)
    closer = square < nearest[near]
    for values, own in ((nearest, square), (axis_x, dx), (axis_y, dy)):
      values[near] = np.where(closer, own, values[near])
  # ∫ exp(-(r/R)^2.8) over a hexagonal cell of the lattice: Γ(1 + 1/1.4) π R² / (0.866 spacing²).
  covered = 0.911 * np.pi * 0.43**2 / 0.866
  # A rounded maximum: papillae that touch melt together.
  return bumps**0.25, axis_x, axis_y, covered
