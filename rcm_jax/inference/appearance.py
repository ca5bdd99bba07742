"""What a slice's gray levels are described by, at the model's scale, without any network."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from jaxtyping import Float, UInt8
import numpy as np
from scipy import ndimage

_SCALES = 4  # of structure: 1, 2, 4, 8 pixels
_LAGS = (1, 2, 3, 4, 6, 8, 12, 16)  # of the autocorrelation, in pixels
_NEIGHBOURHOOD = 5  # pixels a side, over which brightness is averaged
_LEAST = 1e-3  # of what a logarithm is taken of, in shares of white


class Images(NamedTuple):
  """A stack's gray levels, described.

  Attributes:
    structure: of each slice, see `structure`.
    texture: of each slice, see `texture`.
    alike: of each pair of neighbours, see `alike`.
  """

  structure: Float[np.ndarray, "T S"]
  texture: Float[np.ndarray, "T X"]
  alike: Float[np.ndarray, "n"]


def describe(images: UInt8[np.ndarray, "T h w"]) -> Images:
  """Describes a stack's gray levels."""
  return Images(structure(images), texture(images), alike(images))


def join(parts: Sequence[Images]) -> Images:
  """Returns the description of stacks that follow each other."""
  return Images(*map(np.concatenate, zip(*parts)))


def structure(images: UInt8[np.ndarray, "T h w"]) -> Float[np.ndarray, "T S"]:
  """Describes gray levels: mean, contrast, skewness, ends of the range, and contrast by scale."""
  level = images.astype(np.float32) / 255
  mean, deviation = level.mean((1, 2)), level.std((1, 2)) + 1e-3
  third = ((level - mean[:, None, None]) ** 3).mean((1, 2)) / deviation**3
  dark, bright = (images <= 2).mean((1, 2)), (images >= 253).mean((1, 2))
  columns = [mean, np.log(deviation), np.cbrt(third), np.sqrt(dark), np.sqrt(bright)]
  for _ in range(_SCALES):
    steps = [np.diff(level, axis=axis) ** 2 for axis in (1, 2)]
    columns.append(np.log(1e-3 + np.sqrt(sum(step.mean((1, 2)) for step in steps))))
    if min(level.shape[1:]) >= 4:
      height, width = (n // 2 * 2 for n in level.shape[1:])
      level = (
        level[:, :height, :width].reshape(len(level), height // 2, 2, width // 2, 2).mean((2, 4))
      )
  return np.stack(columns, 1)


def texture(images: UInt8[np.ndarray, "T h w"]) -> Float[np.ndarray, "T X"]:
  """Describes noise and the size of what is seen.

  Noise is what a mask that knows no plane and no edge along the axes leaves (Immerkaer 1996): its
  median, its tail, and its mean where the slice is dark and where it is bright. Size is the
  autocorrelation by distance.
  """
  level = images.astype(np.float32) / 255
  mean, deviation = level.mean((1, 2)), level.std((1, 2)) + _LEAST
  third = ((level - mean[:, None, None]) ** 3).mean((1, 2)) / deviation**3
  noise = np.abs(_second_differences(level))
  around = ndimage.uniform_filter(level, (0, _NEIGHBOURHOOD, _NEIGHBOURHOOD))[:, 1:-1, 1:-1]
  dark, bright = (np.quantile(around, share, axis=(1, 2), keepdims=True) for share in (0.25, 0.75))
  log = lambda value: np.log(_LEAST + value)
  where = lambda chosen, values: (values * chosen).sum((1, 2)) / np.maximum(chosen.sum((1, 2)), 1)
  median = log(np.median(noise, axis=(1, 2)))
  columns = [
    log(mean),
    np.log(deviation),
    np.cbrt(third),
    median,
    log(noise.mean((1, 2))) - median,
    log(where(around <= dark, noise)),
    log(where(around >= bright, noise)),
    log(where(around >= bright, around)),
  ]
  centred = level - mean[:, None, None]
  variance = (centred**2).mean((1, 2)) + 1e-6
  for lag in _LAGS:
    if lag < min(level.shape[1:]):
      products = (
        (centred[:, lag:] * centred[:, :-lag]).mean((1, 2)),
        (centred[..., lag:] * centred[..., :-lag]).mean((1, 2)),
      )
      columns.append(sum(products) / 2 / variance)
    else:
      columns.append(np.zeros(len(level), np.float32))
  return np.stack(columns, 1)


def _second_differences(level: Float[np.ndarray, "T h w"]) -> Float[np.ndarray, "T h-2 w-2"]:
  """The mask [1, -2, 1] along both axes."""
  rows = level[:, 2:] - 2 * level[:, 1:-1] + level[:, :-2]
  return rows[..., 2:] - 2 * rows[..., 1:-1] + rows[..., :-2]


def noise(images: Float[np.ndarray, "T h w"]) -> Float[np.ndarray, "T"]:
  """Estimates the standard deviation of white noise in each slice (Immerkaer 1996)."""
  return np.sqrt(np.pi / 2) / 6 * np.abs(_second_differences(images)).mean((1, 2))


def alike(images: UInt8[np.ndarray, "T h w"]) -> Float[np.ndarray, "n"]:
  """Correlation of each slice with the next, as Fisher's z."""
  level = images.astype(np.float32).reshape(len(images), -1)
  level -= level.mean(1, keepdims=True)
  norm = np.linalg.norm(level, axis=1)
  products, norms = (level[:-1] * level[1:]).sum(1), norm[:-1] * norm[1:]
  # Slices without contrast are copies of each other.
  correlation = np.where(norms > 0, products / np.maximum(norms, 1e-9), 1)
  return np.arctanh(np.clip(correlation, -0.9999, 0.9999)).astype(np.float64)
