"""Training stacks as they would be at another scale or with more noise.

Whoever has seen what is unlike training tells it better from training (outlier exposure, Hendrycks et
al., ICLR 2019, arXiv 1812.04606).
"""

from __future__ import annotations

from jaxtyping import Float, UInt8
import numpy as np
from PIL import Image
from scipy import ndimage

from rcm_jax.inference import appearance

KINDS = ("larger", "smaller", "noise")
FACTOR = 2.0  # by which cells are larger or smaller
_KEPT_NOISE = (0.5, 1.1)  # share of the noise a pixel that a magnified slice has again
_GRAIN_PX = (0.2, 0.8)  # standard deviation of its grains
_SPECKLE, _NOISE = (0.1, 0.3), (1.0, 3.0)  # relative; gray levels
_SPECKLE_PX = 0.45
_WHITE = 255.0


def alter(images: UInt8[np.ndarray, "T h w"], kind: str, number: int) -> UInt8[np.ndarray, "T h w"]:
  """Alters a stack.

  Args:
    images: gray levels, at the model's scale.
    kind: one of `KINDS`: cells twice as large, half as large, or more noise.
    number: of the stack. Every second one that changes its scale gets back the noise that resampling
      took away: an instrument's noise goes by pixels.
  """
  rng = np.random.default_rng([number, KINDS.index(kind)])
  if kind == "noise":
    return noisier(images, rng)
  changed = zoom(images, FACTOR if kind == "larger" else 1 / FACTOR)
  return _with_noise_of(images, changed, rng) if number % 2 else changed


def zoom(images: UInt8[np.ndarray, "T h w"], factor: float) -> UInt8[np.ndarray, "T h w"]:
  """Magnifies the centre; below 1, shrinks a field that is extended by mirroring."""
  size = images.shape[1:]
  shown = [max(round(n / factor), 1) for n in size]
  if factor < 1:
    more = [(m - n + 1) // 2 for n, m in zip(size, shown)]
    images = np.pad(images, [(0, 0), *((m, m) for m in more)], mode="symmetric")
  top, left = ((n - m) // 2 for n, m in zip(images.shape[1:], shown))
  cut = images[:, top : top + shown[0], left : left + shown[1]]
  filtered = [Image.fromarray(c).resize(size[::-1], Image.Resampling.BICUBIC) for c in cut]
  return np.stack([np.asarray(image) for image in filtered])


def noisier(
  images: UInt8[np.ndarray, "T h w"], rng: np.random.Generator
) -> UInt8[np.ndarray, "T h w"]:
  """Adds speckle, the intensity of a sum of waves, and the detector's noise."""
  speckle, noise = rng.uniform(*_SPECKLE), rng.uniform(*_NOISE)
  waves = rng.standard_normal((2, *images.shape), np.float32)
  waves = ndimage.gaussian_filter(waves, (0, 0, _SPECKLE_PX, _SPECKLE_PX))
  intensity = (waves**2).sum(0) / (2 * waves.var())
  level = images * (1 + speckle * (intensity - 1))
  shot = 1 + np.sqrt(images / _WHITE)
  return _as_gray(level + noise * shot * rng.standard_normal(images.shape, np.float32))


def _with_noise_of(
  original: UInt8[np.ndarray, "T h w"],
  changed: UInt8[np.ndarray, "T h w"],
  rng: np.random.Generator,
) -> UInt8[np.ndarray, "T h w"]:
  level = changed.astype(np.float32)
  lost = np.maximum(
    appearance.noise(original.astype(np.float32)) ** 2 - appearance.noise(level) ** 2, 0
  )
  grain = rng.uniform(*_GRAIN_PX)
  noise = ndimage.gaussian_filter(rng.standard_normal(level.shape, np.float32), (0, grain, grain))
  noise /= appearance.noise(noise).mean()
  strength = rng.uniform(*_KEPT_NOISE) * np.sqrt(lost)[:, None, None]
  share = rng.uniform(0.5, 1.0)  # of the noise that grows with brightness
  relative = level / (level.mean((1, 2), keepdims=True) + 1e-3)
  return _as_gray(level + strength * noise * (1 - share + share * relative))


def _as_gray(level: Float[np.ndarray, "T h w"]) -> UInt8[np.ndarray, "T h w"]:
  return np.clip(np.round(level), 0, _WHITE).astype(np.uint8)
