"""Turns a stack's anatomy and its instrument into the arrays that the renderer reads.

Everything random is drawn here, once a stack and on the host, so that the renderer is a pure
function and the same on any device. Numbers without a source are choices.
"""

from __future__ import annotations

import dataclasses

import jax
import numpy as np

from tfds_rcm.rcm_phantom import anatomy as anatomy_lib
from tfds_rcm.rcm_phantom import annotators, spec, waves
from tfds_rcm.rcm_phantom import relief as relief_lib

MAX_DENDRITES, MAX_TUBES, MAX_BUBBLES = 8, 3, 3
_NOWHERE = 1e4  # µm; where features that a stack lacks are put


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Tissue:
  """What one stack is made of; lateral maps have a margin for motion around the field.

  Attributes:
    maps: surface, junction, slope's cosine, corneum, papilla axis x and y, wander, warp x and y,
      ridge, nest's depth and half its height, patch, absorption, light, gloss
      [16, H + 2 margin, W + 2 margin]; in µm but for the cosine, wander and the last four, which
      are slow noise of unit variance.
    dendrites: x, y, z, angle, length [8, 5], µm and radians.
    tubes: hair follicles and ducts: x, y at the surface, drift x, y per µm, radius, hair [3, 6].
    fibers: cosine and sine of three directions of collagen [3, 2].
    salt: uint32, seed of the hashed fields.
    melanin, disarray, collagen, cell_scale, cell_contrast, basal_contrast, pagetoid, edged,
      texture: scalars.
  """

  maps: jax.typing.ArrayLike
  dendrites: jax.typing.ArrayLike
  tubes: jax.typing.ArrayLike
  fibers: jax.typing.ArrayLike
  salt: jax.typing.ArrayLike
  melanin: jax.typing.ArrayLike
  disarray: jax.typing.ArrayLike
  collagen: jax.typing.ArrayLike
  cell_scale: jax.typing.ArrayLike
  cell_contrast: jax.typing.ArrayLike
  basal_contrast: jax.typing.ArrayLike
  pagetoid: jax.typing.ArrayLike
  edged: jax.typing.ArrayLike
  texture: jax.typing.ArrayLike


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Optics:
  """How one stack is seen.

  Attributes:
    section_um: thickness of the optical section.
    attenuation: effective coefficients of epidermis and dermis [2], per µm.
    target: mean gray level that the automatic gain aims at, 0 to 1.
    compensation: how much of a slice's darkness the gain makes up for, 0 to 1.
    vignette: fall-off towards the corners, and tilt of the illumination x, y [3].
    unevenness: standard deviations of the logarithm of the light that the window's contact lets
      through, and of absorption above [2].
    speckle: coherent share of the light, whose speckle is fully developed.
    read_noise: standard deviation of the detector's noise, gray levels 0 to 1.
    salt: uint32, seed of speckle and noise.
  """

  section_um: jax.typing.ArrayLike
  attenuation: jax.typing.ArrayLike
  target: jax.typing.ArrayLike
  compensation: jax.typing.ArrayLike
  vignette: jax.typing.ArrayLike
  unevenness: jax.typing.ArrayLike
  speckle: jax.typing.ArrayLike
  read_noise: jax.typing.ArrayLike
  salt: jax.typing.ArrayLike


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Exposures:
  """What differs from slice to slice, every field with a leading axis of slices.

  Attributes:
    index: number of the slice.
    depth_um: below the window, without axial jitter.
    jitter_um: axial motion.
    shift_px: lateral motion in whole pixels, y and x.
    gain: error of the automatic gain, a factor.
    defocus_um: extra lateral blur, from pressure and aberration.
    step: first row and factor of a step of brightness [2].
    band: first row, rows, amplitude in pixels of a band of motion [3].
    bubbles: y, x, radius in pixels [3, 3], radius 0 for none.
    hair: a point y, x in pixels, angle, half its width in pixels [4], 0 for none.
  """

  index: jax.typing.ArrayLike
  depth_um: jax.typing.ArrayLike
  jitter_um: jax.typing.ArrayLike
  shift_px: jax.typing.ArrayLike
  gain: jax.typing.ArrayLike
  defocus_um: jax.typing.ArrayLike
  step: jax.typing.ArrayLike
  band: jax.typing.ArrayLike
  bubbles: jax.typing.ArrayLike
  hair: jax.typing.ArrayLike


def margin_px(phantom: spec.Phantom) -> int:
  """Returns how far maps reach beyond the field on every side."""
  return int(np.ceil(phantom.motion_um / phantom.pixel_um)) + 1


def make_tissue(phantom: spec.Phantom, anatomy: anatomy_lib.Anatomy) -> Tissue:
  """Evaluates the lateral maps and scatters nests, dendritic cells, follicles and ducts."""
  margin = margin_px(phantom)
  axis = (np.arange(-margin, phantom.size_px + margin) + 0.5) * phantom.pixel_um
  relief = relief_lib.make_relief(anatomy, axis, axis)
  rng = anatomy.generator("tissue")
  slope_y, slope_x = np.gradient(relief.junction, phantom.pixel_um)
  disorder = 1 + 2 * anatomy.disarray
  warp = [2.2 * disorder * waves.evaluate(waves.draw(rng, 48.0), axis, axis) for _ in range(2)]
  maps = np.stack(
    [
      relief.surface,
      relief.junction,
      1 / np.sqrt(1 + slope_x**2 + slope_y**2),
      relief.corneum,
      relief.papilla_x,
      relief.papilla_y,
      relief.wander,
      *warp,
      relief.ridge,
      *_nests(anatomy, rng, axis, relief),
      # What varies across the field besides the relief: sharpness of cells, what lies above, the
      # window's contact, dry scale.
      *(
        waves.evaluate(waves.draw(rng, wavelength), axis, axis)
        for wavelength in (95.0, 170.0, 330.0, 120.0)
      ),
    ]
  )
  direction = rng.uniform(0, np.pi) + np.array([0.0, *rng.uniform(0.4, 2.7, 2)])
  return Tissue(
    maps=maps.astype(np.float32),
    dendrites=_dendrites(anatomy, rng, axis, relief),
    tubes=_tubes(phantom, rng),
    fibers=np.stack([np.cos(direction), np.sin(direction)], -1).astype(np.float32),
    salt=rng.integers(2**32, dtype=np.uint32),
    texture=np.float32(phantom.texture_contrast),
    **{
      name: np.float32(getattr(anatomy, name))
      for name in (
        "melanin",
        "disarray",
        "collagen",
        "cell_scale",
        "cell_contrast",
        "basal_contrast",
        "pagetoid",
        "edged",
      )
    },
  )


def _nests(anatomy, rng, axis, relief) -> tuple[np.ndarray, np.ndarray]:
  """Returns each place's depth of the nest there and half its height, 0 where there is none."""
  depth, half_height = np.full_like(relief.junction, -_NOWHERE), np.zeros_like(relief.junction)
  area = ((axis[-1] - axis[0]) * 1e-3) ** 2
  for _ in range(rng.poisson(anatomy.nests_mm2 * area)):
    row, column = rng.integers(len(axis), size=2)
    radius = anatomy.nest_radius_um * np.clip(rng.normal(1, 0.25 + 0.3 * anatomy.disarray), 0.4, 2)
    middle = relief.junction[row, column] + rng.uniform(-0.6, 0.6) * radius
    # Outlines as uneven as the tissue is disarranged.
    reach = radius * (1 + (0.08 + 0.25 * anatomy.disarray) * relief.wander)
    square = (axis[None, :] - axis[column]) ** 2 + (axis[:, None] - axis[row]) ** 2
    half = np.sqrt(np.maximum(reach**2 - square, 0.0)) / 1.3
    larger = half > half_height
    depth[larger], half_height[larger] = middle, half[larger]
  return depth, half_height


def _dendrites(anatomy, rng, axis, relief) -> np.ndarray:
  dendrites = np.full((MAX_DENDRITES, 5), _NOWHERE, np.float32)
  for dendrite in dendrites[: anatomy.dendrites]:
    row, column = rng.integers(len(axis), size=2)
    depth = relief.junction[row, column] - rng.uniform(2, 22)
    dendrite[:] = axis[column], axis[row], depth, rng.uniform(0, np.pi), rng.uniform(15, 40)
  return dendrites


def _tubes(phantom: spec.Phantom, rng: np.random.Generator) -> np.ndarray:
  """Hair follicles 1.4 and eccrine ducts 1.3 per mm²."""
  tubes = np.full((MAX_TUBES, 6), _NOWHERE, np.float32)
  field_um = phantom.size_px * phantom.pixel_um
  area = (field_um * 1e-3) ** 2
  hairs, ducts = rng.poisson(1.4 * area), rng.poisson(1.3 * area)
  kinds = ([1.0] * hairs + [0.0] * ducts)[:MAX_TUBES]
  for tube, hair in zip(tubes, kinds):
    lean = rng.normal(0, 0.5 if hair else 0.1, 2)
    radius = rng.uniform(22, 38) if hair else rng.uniform(8, 13)
    tube[:] = *rng.uniform(0, field_um, 2), *lean, radius, hair
  tubes[len(kinds) :, 2:4] = 0.0
  tubes[len(kinds) :, 4] = 1.0
  return tubes


def make_optics(phantom: spec.Phantom, anatomy: anatomy_lib.Anatomy) -> Optics:
  """Draws how the instrument was set for one stack."""
  rng = anatomy.generator("optics")
  single = np.float32
  # Light returns through what it went through: exp(-2 µ z), twice as steep as one way. Of the
  # order of µs' = 1.2 / mm at 850 nm and higher in pigmented skin; keratin and dermis scatter more.
  attenuation = np.array([3.2 + 2.0 * anatomy.melanin, 6.0, 8.0]) * rng.uniform(0.8, 1.25) * 1e-3
  return Optics(
    section_um=single(phantom.section_um * rng.uniform(0.9, 1.15)),
    attenuation=attenuation.astype(single),
    # Published slices have means of 64 ± 26 of 255 and are skewed to the dark.
    target=single(0.235 * np.exp(rng.normal(0, 0.33))),
    compensation=single(rng.uniform(0.5, 0.95)),
    vignette=np.array([rng.uniform(-0.1, 0.25), *rng.normal(0, 0.10, 2)], single),
    unevenness=np.array([rng.uniform(0.04, 0.18), rng.uniform(0.08, 0.3)], single),
    speckle=single(min(phantom.noise * rng.uniform(0.12, 0.40), 1.0)),
    read_noise=single(phantom.noise * rng.uniform(0.006, 0.016)),
    salt=rng.integers(2**32, dtype=np.uint32),
  )


def make_exposures(
  phantom: spec.Phantom, anatomy: anatomy_lib.Anatomy, plan: annotators.Plan
) -> Exposures:
  """Draws motion, gain and artifacts of every slice."""
  rng = anatomy.generator("exposures")
  count, size, rate = len(plan), phantom.size_px, phantom.artifact_rate
  # The site drifts and quivers: a random walk that keeps within the reach of the contact device.
  walk = np.cumsum(rng.normal(0, 0.9, (count, 2)), axis=0) + rng.normal(0, 0.5, (count, 2))
  motion_um = np.clip(walk - walk[:1], -phantom.motion_um, phantom.motion_um)
  stepped = rng.uniform(size=count) < 0.05 * rate
  banded = rng.uniform(size=count) < 0.06 * rate
  step = np.stack([rng.uniform(0, size, count), rng.uniform(0.6, 1.4, count)], -1)
  step[~stepped, 1] = 1.0
  band = np.stack(
    [
      rng.uniform(0, size, count),
      rng.uniform(0.04, 0.2, count) * size,
      rng.uniform(2, 9, count) / phantom.pixel_um,
    ],
    -1,
  )
  band[~banded, 2] = 0.0
  return Exposures(
    index=np.arange(count, dtype=np.uint32),
    depth_um=(plan.start_um + plan.depth_um).astype(np.float32),
    jitter_um=rng.normal(0, 0.7, count).astype(np.float32),
    shift_px=np.round(motion_um / phantom.pixel_um).astype(np.int32),
    gain=np.exp(rng.normal(0, 0.10, count)).astype(np.float32),
    defocus_um=np.abs(rng.normal(0, 0.5, count)).astype(np.float32),
    step=step.astype(np.float32),
    band=band.astype(np.float32),
    bubbles=_bubbles(rng, count, size, phantom),
    hair=_hair(rng, count, size, phantom),
  )


def _bubbles(rng: np.random.Generator, count: int, size: int, phantom: spec.Phantom) -> np.ndarray:
  """Bubbles sit in the gel, some above 200 µm across, and stay until the gel creeps."""
  bubbles = np.zeros((count, MAX_BUBBLES, 3), np.float32)
  field_mm2 = (size * phantom.pixel_um * 1e-3) ** 2
  number = min(rng.poisson(1.3 * field_mm2 * phantom.artifact_rate), MAX_BUBBLES)
  for which in range(number):
    radius_um = min(rng.lognormal(np.log(38), 0.75), 170.0)
    place = [*rng.uniform(0, size, 2), radius_um / phantom.pixel_um]
    bubbles[: rng.integers(3, 2 * count), which] = place
  return bubbles


def _hair(rng: np.random.Generator, count: int, size: int, phantom: spec.Phantom) -> np.ndarray:
  """A vellus hair that lies on the skin, in few stacks."""
  width_um = rng.uniform(20, 60) if rng.uniform() < 0.08 * phantom.artifact_rate else 0.0
  hair = [*rng.uniform(0, size, 2), rng.uniform(0, np.pi), 0.5 * width_um / phantom.pixel_um]
  return np.tile(np.array(hair, np.float32), (count, 1))
