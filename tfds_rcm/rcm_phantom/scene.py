"""Turns a stack's anatomy and its instrument into the arrays that the renderer reads.

Everything random is drawn here, once a stack and on the host, so that the renderer is a pure
function and the same on any device. Numbers without a source are choices.
"""

from __future__ import annotations

import dataclasses

import jax
import numpy as np

from tfds_rcm.rcm_phantom import anatomy as anatomy_lib
from tfds_rcm.rcm_phantom import annotators, noise, spec
from tfds_rcm.rcm_phantom import relief as relief_lib

MAX_NESTS, MAX_DENDRITES, MAX_TUBES, MAX_BUBBLES = 6, 8, 3, 3
_NOWHERE = 1e4  # µm; where features that a stack lacks are put


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Tissue:
  """What one stack is made of; lateral maps have a margin for motion around the field.

  Attributes:
    maps: surface, junction, slope's cosine, corneum, papilla axis x and y, wander, warp x and y,
      ridge [10, H + 2 margin, W + 2 margin], µm but for the cosine and wander.
    nests: x, y, z, radius [6, 4], µm.
    dendrites: x, y, z, angle, length [8, 5], µm and radians.
    tubes: hair follicles and ducts: x, y at the surface, drift x, y per µm, radius, hair [3, 6].
    fibers: cosine and sine of the two directions of collagen [2, 2].
    salt: uint32, seed of the hashed fields.
    melanin, disarray, collagen, cell_scale, cell_contrast, basal_contrast, texture: scalars.
  """

  maps: jax.typing.ArrayLike
  nests: jax.typing.ArrayLike
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
    speckle: standard deviation of the multiplicative noise.
    read_noise: standard deviation of the detector's noise, gray levels 0 to 1.
    salt: uint32, seed of speckle and noise.
  """

  section_um: jax.typing.ArrayLike
  attenuation: jax.typing.ArrayLike
  target: jax.typing.ArrayLike
  compensation: jax.typing.ArrayLike
  vignette: jax.typing.ArrayLike
  speckle: jax.typing.ArrayLike
  read_noise: jax.typing.ArrayLike
  salt: jax.typing.ArrayLike


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Exposures:
  """What differs from slice to slice, every field with a leading axis of slices.

  Attributes:
    index: number of the slice.
    depth_um: below the true first contact, without axial jitter.
    jitter_um: axial motion.
    shift_px: lateral motion in whole pixels, y and x.
    gain: error of the automatic gain, a factor.
    defocus_um: extra lateral blur, from pressure and aberration.
    step: first row and factor of a step of brightness [2].
    band: first row, rows, amplitude in pixels of a band of motion [3].
    bubbles: y, x, radius in pixels [3, 3], radius 0 for none.
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
  warp = [
    2.2 * disorder * noise.evaluate_waves(noise.random_waves(rng, 48.0), axis, axis)
    for _ in range(2)
  ]
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
    ]
  )
  direction = rng.uniform(0, np.pi) + np.array([0.0, rng.uniform(0.9, 1.6)])
  return Tissue(
    maps=maps.astype(np.float32),
    nests=_nests(anatomy, rng, axis, relief),
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
      )
    },
  )


def _nests(anatomy, rng, axis, relief) -> np.ndarray:
  nests = np.full((MAX_NESTS, 4), _NOWHERE, np.float32)
  for nest in nests[: anatomy.nests]:
    row, column = rng.integers(len(axis), size=2)
    radius = rng.uniform(16, 34)
    depth = relief.junction[row, column] + rng.uniform(-0.3, 0.8) * radius
    nest[:] = axis[column], axis[row], depth, radius
  nests[anatomy.nests :, 3] = 1.0
  return nests


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
  # order of µs' = 1.2 / mm at 850 nm and higher in pigmented skin; dermis scatters more.
  attenuation = np.array([3.2 + 2.0 * anatomy.melanin, 6.0]) * rng.uniform(0.8, 1.25) * 1e-3
  return Optics(
    section_um=single(phantom.section_um * rng.uniform(0.9, 1.15)),
    attenuation=attenuation.astype(single),
    target=single(rng.uniform(0.26, 0.42)),
    compensation=single(rng.uniform(0.65, 0.95)),
    vignette=np.array([rng.uniform(0.05, 0.5), *rng.normal(0, 0.16, 2)], single),
    speckle=single(phantom.noise * rng.uniform(0.12, 0.22)),
    read_noise=single(phantom.noise * rng.uniform(0.008, 0.022)),
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
  )


def _bubbles(rng: np.random.Generator, count: int, size: int, phantom: spec.Phantom) -> np.ndarray:
  """Bubbles sit in the gel: in place through the first slices, fading with depth."""
  bubbles = np.zeros((count, MAX_BUBBLES, 3), np.float32)
  field_mm2 = (size * phantom.pixel_um * 1e-3) ** 2
  number = min(rng.poisson(2.0 * field_mm2 * phantom.artifact_rate), MAX_BUBBLES)
  deepest = int(np.ceil(18 / phantom.depth_step_um))
  for which in range(number):
    place = [*rng.uniform(0, size, 2), rng.uniform(6, 22) / phantom.pixel_um]
    bubbles[: rng.integers(1, deepest + 1), which] = place
  return bubbles
