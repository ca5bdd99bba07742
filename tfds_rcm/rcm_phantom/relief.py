"""The shape of one stack's tissue: its surface, its dermal-epidermal junction, what follows them.

Depth grows downwards from 0 at the window, which touches the skin in part. Numbers without a source
are choices.
"""

from __future__ import annotations

import dataclasses

from jaxtyping import Float
import numpy as np

from tfds_rcm.rcm_phantom import anatomy as anatomy_lib
from tfds_rcm.rcm_phantom import waves

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
  wander = waves.evaluate(waves.draw(rng, 70.0), x, y)
  undulation = waves.evaluate(waves.draw(rng, 230.0), x, y)
  swell = waves.evaluate(waves.draw(rng, 420.0), x, y)
  wrinkles = waves.evaluate(waves.draw(rng, 55.0), x, y)
  # The window is never quite parallel to the skin: a slice cuts it obliquely.
  tilt = rng.normal(0, 0.022, 2)
  plane = tilt[0] * (x[None, :] - _FIELD_UM / 2) + tilt[1] * (y[:, None] - _FIELD_UM / 2)
  furrows = _furrows(anatomy, rng, x, y, wander)
  bumps, papilla_x, papilla_y, covered = _papillae(anatomy, rng, x, y, wander)

  # Depth is measured from the window. It presses what would rise above it flat; elsewhere there is
  # gel between, and the first slices show islands of skin in black.
  pressed = rng.uniform(-6.0, 4.0)
  relief = furrows + 1.2 * wrinkles + 3.5 * swell + plane
  surface = np.maximum(relief + pressed, 0.0)
  # Keratin heaps up in the furrows: their walls are broad and bright.
  heaped = 1 + 0.9 * np.clip(furrows / 30.0, 0.0, 1.0)
  corneum = anatomy.corneum_um * np.clip(1 + 0.2 * wander, 0.5, 1.5) * heaped
  undulating = 0.5 * furrows + plane + pressed + anatomy.undulation_um * undulation + 3.5 * swell
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
  return (points + rng.uniform(-0.24, 0.24, points.shape)) * spacing


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
  """Returns the depth of the furrows: two families of long, nearly straight lines.

  One family is the deeper and follows the skin's tension; the other crosses it obliquely.
  """
  bend = 14.0 * waves.evaluate(waves.draw(rng, 600.0), x, y) + 2.5 * wander
  along = np.clip(0.8 + 0.35 * waves.evaluate(waves.draw(rng, 260.0), x, y), 0.1, 1.3)
  first = rng.uniform(0, np.pi)
  depth = np.zeros((len(y), len(x)))
  for angle, strength in ((first, 1.0), (first + rng.uniform(0.8, 1.4), 0.55)):
    across = np.cos(angle) * x[None, :] + np.sin(angle) * y[:, None] + bend
    spacing = anatomy.furrow_spacing_um
    reach = int(1.5 * _FIELD_UM / spacing) + 2
    for number in range(-reach, reach + 1):
      place = (number + rng.uniform(-0.3, 0.3)) * spacing
      width = 0.5 * anatomy.furrow_width_um * rng.uniform(0.6, 1.4)
      own = strength * anatomy.furrow_depth_um * rng.uniform(0.3, 1.2)
      if -2 * _FIELD_UM < place < 2 * _FIELD_UM:
        profile = np.exp(-(np.abs((across - place) / width) ** 1.7))
        depth = np.maximum(depth, own * profile)
  return depth * along


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
  radius = 0.42 * spacing * np.clip(rng.normal(1, spread, count), 0.5, 1.6)
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
  covered = 0.911 * np.pi * 0.42**2 / 0.866
  # A rounded maximum: papillae that touch melt together.
  return bumps**0.25, axis_x, axis_y, covered
