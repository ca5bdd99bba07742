"""The confocal microscope: from reflectance in a volume to one 8-bit slice.

Order of effects: optical section, attenuation on the way down and back, aberration and scattered
light, what lies above, speckle, illumination, motion, automatic gain, detector. Numbers without a
source are choices.
"""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, UInt8

from tfds_rcm.rcm_phantom import noise, scene
from tfds_rcm.rcm_phantom import tissue as tissue_lib

Image = Float[Array, "H W"]
_BLUR_RADIUS = 3  # pixels on either side of the widest blur
_GRAIN_UM = 0.7  # standard deviation of the point spread function's amplitude near the surface
# Light that reaches a depth comes through a cone: numerical aperture 0.9 in water.
_CONE = 0.9
_COARSE_PX = 4  # side of the blocks from which scattered light is taken


def expose(
  tissue: scene.Tissue,
  optics: scene.Optics,
  exposure: scene.Exposures,
  *,
  size_px: int,
  pixel_um: float,
) -> UInt8[Array, "H W"]:
  """Images one slice.

  Args:
    tissue: the stack's tissue.
    optics: the stack's instrument.
    exposure: one slice's entry, without the leading axis.
    size_px: side of the image.
    pixel_um: µm a pixel.
  """
  margin = (tissue.maps.shape[-1] - size_px) // 2
  start = margin + exposure.shift_px
  layers = tissue.maps.shape[0]
  maps = jax.lax.dynamic_slice(tissue.maps, (0, start[0], start[1]), (layers, size_px, size_px))
  pixels = jnp.arange(size_px, dtype=jnp.float32) + 0.5
  x, y = jnp.meshgrid(
    (pixels + exposure.shift_px[1]) * pixel_um, (pixels + exposure.shift_px[0]) * pixel_um
  )
  image = _section(tissue, optics, maps, x, y, exposure.depth_um + exposure.jitter_um)
  image = _blur_with_depth(image, maps, exposure, pixel_um)
  image = _occlude(image, exposure, pixel_um)
  image = _speckle(image, optics, exposure, pixel_um)
  image = _illuminate(image, optics, exposure)
  image = _move_band(image, exposure.band)
  return _detect(image, optics, exposure)


def _section(
  tissue: scene.Tissue,
  optics: scene.Optics,
  maps: Float[Array, "16 H W"],
  x: Image,
  y: Image,
  depth: Float[Array, ""],
) -> Image:
  """Averages light over the optical section, whose thickness is a Gaussian's full width.

  The three nodes and weights are Gauss–Hermite's.
  """
  surface, junction, corneum = maps[0], maps[1], maps[3]
  absorption, contact = maps[13], maps[14]
  sigma = optics.section_um / 2.355
  # More or less pigment and keratin above; the mean over the field stays about the same.
  above = jnp.exp(optics.unevenness[1] * absorption - 0.5 * optics.unevenness[1] ** 2)

  def add(total: Image, node: tuple[Array, Array]) -> tuple[Image, None]:
    z = depth + node[0] * sigma
    epidermis = jnp.maximum(jnp.minimum(z, junction) - surface, 0.0)
    keratin = jnp.minimum(epidermis, corneum)
    dermis = jnp.maximum(z - jnp.maximum(junction, surface), 0.0)
    of_epidermis, of_dermis, of_keratin = optics.attenuation
    path = above * (of_epidermis * (epidermis - keratin) + of_keratin * keratin)
    path = path + of_dermis * dermis
    light = tissue_lib.reflectance(tissue, maps, x, y, z) * jnp.exp(-2.0 * path)
    return total + node[1] * light, None

  nodes = (jnp.array([-(3**0.5), 0.0, 3**0.5]), jnp.array([1 / 6, 2 / 3, 1 / 6]))
  image = jax.lax.scan(add, jnp.zeros_like(x), nodes)[0]
  return image * jnp.exp(optics.unevenness[0] * contact)


def _blur_with_depth(
  image: Image, maps: Float[Array, "16 H W"], exposure: scene.Exposures, pixel_um: float
) -> Image:
  """Blurs with depth, and more where light has passed the junction (aberrations, paper).

  Light that was scattered more than once comes back from the surroundings: a veil without detail
  that gains on the image with depth.
  """
  sigma_um = 0.5 + 0.008 * exposure.depth_um + exposure.defocus_um
  blurred = _blur(image, sigma_um / pixel_um)
  more = _blur(blurred, 1.8 / pixel_um)
  passed = jnp.clip((exposure.depth_um - maps[1] + 8.0) / 45.0, 0.0, 1.0)
  blurred = blurred + passed * (more - blurred)
  scattered = 0.08 + 0.30 * jnp.clip(exposure.depth_um / 120.0, 0.0, 1.0)
  return blurred + scattered * (_surroundings(image) - blurred)


def _surroundings(image: Image) -> Image:
  """Averages over blocks of pixels and their neighbors, and interpolates between them."""
  size = image.shape[0]
  blocks = -(-size // _COARSE_PX)
  short = blocks * _COARSE_PX - size
  padded = jnp.pad(image, ((0, short), (0, short)), mode="reflect")
  coarse = padded.reshape(blocks, _COARSE_PX, blocks, _COARSE_PX).mean((1, 3))
  side = blocks * _COARSE_PX
  return jax.image.resize(_blur(coarse, 1.3), (side, side), "linear")[:size, :size]


def _occlude(image: Image, exposure: scene.Exposures, pixel_um: float) -> Image:
  """Bubbles and a hair above the skin: bright where they are, a shadow that blurs with depth.

  Under a bubble nothing matches the index of skin, and a wide one keeps its shadow; the cone of
  light passes by what is narrow.
  """
  rows = jnp.arange(image.shape[0], dtype=jnp.float32)[:, None]
  columns = rows.T
  spread = jnp.maximum(_CONE * exposure.depth_um, 0.0) / pixel_um  # the cone's radius

  def shadow(distance: Array, reach: Array) -> Array:
    edge = jnp.clip((reach - distance) / (2.0 + spread) + 0.5, 0.0, 1.0)
    return edge * jnp.clip(reach / (0.3 * spread + 1e-3), 0.0, 1.0)

  near = jnp.exp(-exposure.depth_um / 14.0)  # how much of the thing itself is in focus
  for place_y, place_x, radius in exposure.bubbles:
    distance = jnp.hypot(rows - place_y, columns - place_x)
    rim = jnp.exp(-(((distance - radius) / (2.5 / pixel_um + 0.1 * spread)) ** 2))
    mirror = jnp.clip(1.2 - 2.2 * distance / jnp.maximum(radius, 1e-3), 0.0, 1.0)
    bubble = image * (1.0 - 0.93 * shadow(distance, radius)) + near * (1.6 * rim + 0.8 * mirror)
    image = jnp.where(radius > 0.0, bubble, image)
  place_y, place_x, angle, half = exposure.hair
  distance = jnp.abs((rows - place_y) * jnp.cos(angle) - (columns - place_x) * jnp.sin(angle))
  walls = jnp.exp(-(((distance - half) / (3.0 / pixel_um)) ** 2)) + 0.5 * (distance < 0.3 * half)
  hair = image * (1.0 - 0.8 * shadow(distance, half)) + 1.3 * near * walls
  return jnp.where(half > 0.0, hair, image)


def _blur(image: Image, sigma_px: Float[Array, ""] | float) -> Image:
  """Convolves with a Gaussian of any width up to about `_BLUR_RADIUS / 2`; edges repeat."""
  taps = jnp.arange(-_BLUR_RADIUS, _BLUR_RADIUS + 1)
  weights = jnp.exp(-0.5 * (taps / sigma_px) ** 2)
  weights = weights / jnp.sum(weights)
  for axis in range(2):
    padding = [(0, 0), (0, 0)]
    padding[axis] = (_BLUR_RADIUS, _BLUR_RADIUS)
    padded = jnp.pad(image, padding, mode="edge")
    parts = [
      weights[tap] * jax.lax.slice_in_dim(padded, tap, tap + image.shape[axis], axis=axis)
      for tap in range(2 * _BLUR_RADIUS + 1)
    ]
    image = functools.reduce(jnp.add, parts)
  return image


def _hash_pixels(image: Image, salt: Array, index: Array, purpose: int) -> Array:
  rows, columns = (jax.lax.broadcasted_iota(jnp.uint32, image.shape, axis) for axis in range(2))
  key = noise.hash_bits(salt + (4 * index + purpose) * jnp.uint32(0x9E3779B9))
  return noise.hash_bits(noise.hash_bits(rows * jnp.uint32(0x85EBCA77) + columns) ^ key)


def _speckle(
  image: Image, optics: scene.Optics, exposure: scene.Exposures, pixel_um: float
) -> Image:
  """Multiplies with the intensity of many waves' sum, seen through the point spread function.

  Scatterers closer than it can tell apart add up as complex amplitudes: exponential statistics in
  grains of its width, which grows with depth. A pixel wider than a grain averages over some, and
  a share of the light is incoherent by then (Halimi 2017: speckle is multiplicative; generalised
  gamma statistics, arXiv 1707.00647).
  """
  grain_px = (_GRAIN_UM + 0.006 * jnp.minimum(exposure.depth_um, 120.0)) / pixel_um
  taps = jnp.arange(-_BLUR_RADIUS, _BLUR_RADIUS + 1)
  weights = jnp.exp(-0.5 * (taps / grain_px) ** 2)
  kept = jnp.sum(weights**2) / jnp.sum(weights) ** 2  # of the variance, along one axis
  # With a margin: where edges repeat, waves would add up to more.
  around = jnp.pad(image, _BLUR_RADIUS)
  inside = slice(_BLUR_RADIUS, -_BLUR_RADIUS)
  waves = [
    _blur(noise.normal(_hash_pixels(around, optics.salt, exposure.index, part)), grain_px)
    for part in (0, 2)
  ]
  waves = [wave[inside, inside] for wave in waves]
  intensity = (waves[0] ** 2 + waves[1] ** 2) / (2.0 * kept**2)
  coherent = optics.speckle / jnp.sqrt(1.0 + 0.5 / grain_px**2)
  return image * (1.0 + coherent * (intensity - 1.0))


def _illuminate(image: Image, optics: scene.Optics, exposure: scene.Exposures) -> Image:
  """Darkens towards the corners and one side; a step of brightness."""
  size = image.shape[0]
  center = (jnp.arange(size, dtype=jnp.float32) + 0.5) * (2.0 / size) - 1.0
  x, y = jnp.meshgrid(center, center)
  corner, tilt_x, tilt_y = optics.vignette
  image = image * jnp.exp(-0.5 * corner * (x**2 + y**2) + tilt_x * x + tilt_y * y)
  rows = jnp.arange(size, dtype=jnp.float32)[:, None]
  return image * jnp.where(rows >= exposure.step[0], exposure.step[1], 1.0)


def _move_band(image: Image, band: Float[Array, "3"]) -> Image:
  """Shears the lines that were scanned while the skin moved."""
  size = image.shape[0]
  first, count, amplitude = band
  phase = (jnp.arange(size, dtype=jnp.float32) - first) / count
  inside = (phase > 0.0) & (phase < 1.0)
  shift = jnp.where(inside, amplitude * jnp.sin(jnp.pi * phase), 0.0)
  columns = jnp.arange(size)[None, :] + jnp.round(shift).astype(jnp.int32)[:, None]
  return jnp.take_along_axis(image, jnp.clip(columns, 0, size - 1), axis=1)


def _detect(image: Image, optics: scene.Optics, exposure: scene.Exposures) -> UInt8[Array, "H W"]:
  """Applies the automatic gain, adds the detector's noise, saturates and rounds."""
  mean = jnp.mean(image) + 0.02
  # Full compensation brings each slice to the target; less leaves deep slices darker.
  gain = (
    exposure.gain * optics.target / (mean**optics.compensation * 0.35 ** (1 - optics.compensation))
  )
  signal = image * gain
  bits = _hash_pixels(image, optics.salt, exposure.index, 1)
  noisy = signal + optics.read_noise * (1.0 + jnp.sqrt(signal)) * noise.normal(bits)
  return jnp.round(255.0 * jnp.clip(noisy + 0.01, 0.0, 1.0)).astype(jnp.uint8)
