"""The confocal microscope: from reflectance in a volume to one 8-bit slice.

Order of effects: optical section, attenuation on the way down and back, lateral blur, speckle,
illumination, motion, automatic gain, detector. Numbers without a source are choices.
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
_GRAIN_PX = 0.55  # speckle grains are as wide as the point spread function, about a pixel here


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
  image = _speckle(image, optics, exposure.index)
  image = _illuminate(image, optics, exposure)
  image = _move_band(image, exposure.band)
  return _detect(image, optics, exposure)


def _section(
  tissue: scene.Tissue,
  optics: scene.Optics,
  maps: Float[Array, "10 H W"],
  x: Image,
  y: Image,
  depth: Float[Array, ""],
) -> Image:
  """Averages light over the optical section, whose thickness is a Gaussian's full width.

  The three nodes and weights are Gauss–Hermite's.
  """
  surface, junction = maps[0], maps[1]
  sigma = optics.section_um / 2.355

  def add(total: Image, node: tuple[Array, Array]) -> tuple[Image, None]:
    z = depth + node[0] * sigma
    epidermis = jnp.maximum(jnp.minimum(z, junction) - surface, 0.0)
    dermis = jnp.maximum(z - jnp.maximum(junction, surface), 0.0)
    path = optics.attenuation[0] * epidermis + optics.attenuation[1] * dermis
    light = tissue_lib.reflectance(tissue, maps, x, y, z) * jnp.exp(-2.0 * path)
    return total + node[1] * light, None

  nodes = (jnp.array([-(3**0.5), 0.0, 3**0.5]), jnp.array([1 / 6, 2 / 3, 1 / 6]))
  return jax.lax.scan(add, jnp.zeros_like(x), nodes)[0]


def _blur_with_depth(
  image: Image, maps: Float[Array, "10 H W"], exposure: scene.Exposures, pixel_um: float
) -> Image:
  """Blurs with depth, and more where light has passed the junction (aberrations, paper)."""
  sigma_um = 0.5 + 0.008 * exposure.depth_um + exposure.defocus_um
  blurred = _blur(image, sigma_um / pixel_um)
  more = _blur(blurred, 1.7 / pixel_um)
  passed = jnp.clip((exposure.depth_um - maps[1] + 5.0) / 45.0, 0.0, 1.0)
  return blurred + passed * (more - blurred)


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


def _speckle(image: Image, optics: scene.Optics, index: Array) -> Image:
  """Multiplies with gamma noise (Halimi 2017; generalised gamma statistics, arXiv 1707.00647).

  Wilson and Hilferty's cube of a normal variate is close to a gamma variate and needs one hash.
  """
  grains = noise.normal(_hash_pixels(image, optics.salt, index, 0))
  narrow = jnp.exp(-0.5 / _GRAIN_PX**2)
  loss = (1.0 + 2.0 * narrow**2) / (1.0 + 2.0 * narrow) ** 2  # of variance, by smoothing
  grains = _blur(grains, _GRAIN_PX) / loss
  ninth = optics.speckle**2 / 9.0
  gamma = jnp.maximum(1.0 - ninth + grains * optics.speckle / 3.0, 0.0) ** 3
  return image * gamma


def _illuminate(image: Image, optics: scene.Optics, exposure: scene.Exposures) -> Image:
  """Darkens towards the corners and one side; a step of brightness; bubbles in the gel."""
  size = image.shape[0]
  center = (jnp.arange(size, dtype=jnp.float32) + 0.5) * (2.0 / size) - 1.0
  x, y = jnp.meshgrid(center, center)
  corner, tilt_x, tilt_y = optics.vignette
  image = image * (1.0 - 0.5 * corner * (x**2 + y**2)) * (1.0 + tilt_x * x + tilt_y * y)
  rows = jnp.arange(size, dtype=jnp.float32)[:, None]
  columns = rows.T
  image = image * jnp.where(rows >= exposure.step[0], exposure.step[1], 1.0)
  for bubble_y, bubble_x, radius in exposure.bubbles:
    distance = jnp.hypot(rows - bubble_y, columns - bubble_x) - radius
    rim = 1.6 * jnp.exp(-((distance / 1.2) ** 2))
    image = jnp.where((radius > 0.0) & (distance < 3.0), 0.06 + rim * (radius > 0.0), image)
  return image


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
    exposure.gain * optics.target / (mean**optics.compensation * 0.5 ** (1 - optics.compensation))
  )
  signal = image * gain
  bits = _hash_pixels(image, optics.salt, exposure.index, 1)
  noisy = signal + optics.read_noise * (1.0 + jnp.sqrt(signal)) * noise.normal(bits)
  return jnp.round(255.0 * jnp.clip(noisy + 0.01, 0.0, 1.0)).astype(jnp.uint8)
