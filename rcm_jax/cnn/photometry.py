"""Random gain, contrast, shading, blur and noise: what one instrument does differently from another.

Ours; the paper names geometric operations alone. A network that has seen one instrument's noise only
takes twice as much of it for another tissue.
"""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Key

WHITE = 255.0
_TAPS = 9  # of the blur; sigma up to a third of half of them
_WAVES = 2  # cosines a direction that shading is made of


@dataclasses.dataclass(frozen=True)
class Photometry:
  """How far a view's gray levels may go; each is drawn anew for a view, 0 or 1 leaves it out.

  Attributes:
    share: of views that are changed at all.
    gain: largest factor on gray levels, to either side.
    gamma: largest exponent of gray levels, to either side.
    shading: largest amplitude of smooth brightness over the field, as a logarithm.
    blur_px: largest standard deviation of a Gaussian blur.
    speckle: largest standard deviation of multiplicative noise.
    noise: largest standard deviation of additive noise, in gray levels.
  """

  share: float = 0.0
  gain: float = 1.0
  gamma: float = 1.0
  shading: float = 0.0
  blur_px: float = 0.0
  speckle: float = 0.0
  noise: float = 0.0


def disturb(
  key: Key[Array, ""], image: Float[Array, "height width C"], ranges: Photometry
) -> Float[Array, "height width C"]:
  """Returns a slice, with its neighbours as channels, as another instrument may have recorded it.

  Gray levels stay within 0 to 255. Light is blurred and shaded before the detector's gain, curve
  and noise; noise is each channel's own, all else is common to them.

  Args:
    key: of this view.
    image: gray levels.
    ranges: how far it may go.
  """
  chance, blur, shade, gain, gamma, speckle, noise = jax.random.split(key, 7)
  height, width, _ = image.shape
  to_either_side = lambda key, most: most ** jax.random.uniform(key, minval=-1.0)
  seen = _blurred(image, ranges.blur_px * jax.random.uniform(blur)) if ranges.blur_px else image
  light = _shading(shade, height, width, ranges.shading)[..., None] * to_either_side(
    gain, ranges.gain
  )
  seen = jnp.clip(seen * light, 0, WHITE)
  seen = WHITE * (seen / WHITE) ** to_either_side(gamma, ranges.gamma)
  relative = _noise(speckle, image.shape, ranges.speckle)
  seen = seen * (1 + relative) + _noise(noise, image.shape, ranges.noise)
  changed = jax.random.bernoulli(chance, ranges.share)
  return jnp.where(changed, jnp.clip(seen, 0, WHITE), image)


def _noise(key: Key[Array, ""], shape: tuple[int, ...], most: float) -> Array:
  if not most:
    return jnp.zeros(())
  size, values = jax.random.split(key)
  return most * jax.random.uniform(size) * jax.random.normal(values, shape)


def _shading(key: Key[Array, ""], height: int, width: int, most: float) -> Array:
  """A smooth factor over the field with geometric mean near 1."""
  size, values = jax.random.split(key)
  waves = jnp.arange(_WAVES + 1)
  along = lambda n: jnp.cos(jnp.pi * waves[:, None] * (jnp.arange(n) + 0.5) / n)
  weights = jax.random.normal(values, (_WAVES + 1, _WAVES + 1)).at[0, 0].set(0.0)
  field = along(height).T @ (weights / jnp.sqrt(jnp.sum(weights**2) + 1e-6)) @ along(width)
  return jnp.exp(most * jax.random.uniform(size) * field)


def _blurred(image: Array, sigma: Array) -> Array:
  """Blurs along both axes; beyond the borders the image is mirrored."""
  reach = _TAPS // 2
  offsets = jnp.arange(_TAPS) - reach
  weights = jax.nn.softmax(-0.5 * (offsets / jnp.maximum(sigma, 1e-3)) ** 2)
  for axis in (0, 1):
    pads = [(reach, reach) if axis == i else (0, 0) for i in range(image.ndim)]
    padded = jnp.pad(image, pads, mode="reflect")
    part = lambda k, p=padded, axis=axis: jax.lax.slice_in_dim(
      p, k, k + image.shape[axis], axis=axis
    )
    image = sum(weights[k] * part(k) for k in range(_TAPS))
  return image
