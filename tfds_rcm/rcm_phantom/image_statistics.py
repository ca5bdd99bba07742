"""Figures of an image's coarse structure, by which simulated slices are set beside real ones.

All are taken at one size of pixel, 5.5 µm, that of the published slices: what is finer than that
was lost there. A figure is NaN where the field is too small or too flat for it.
"""

from __future__ import annotations

import dataclasses

from jaxtyping import Float, Num
import numpy as np
import scipy.fft

PIXEL_UM = 5.5
_COARSE_UM = 125.0  # wavelengths above it are uneven light and relief
_CELLS_UM = (35.0, 60.0)  # papillae and bundles
_SLOPE_UM = (12.0, 200.0)  # between which a power law is fitted


@dataclasses.dataclass(frozen=True)
class Statistics:
  """Of one slice.

  Attributes:
    coarse: standard deviation over mean of all wavelengths above 125 µm.
    medium: the same between 35 and 60 µm.
    length_um: distance at which the autocorrelation has fallen to 1/e.
    slope: exponent of the radial power spectrum between wavelengths of 12 and 200 µm.
    skewness: of gray levels.
    mean: gray level.
  """

  coarse: float
  medium: float
  length_um: float
  slope: float
  skewness: float
  mean: float


def measure(image: Num[np.ndarray, "height width"], pixel_um: float) -> Statistics:
  """Measures a slice of gray levels 0 to 255, averaged down to `PIXEL_UM` if it is finer."""
  seen, pixel_um = _averaged(np.asarray(image, np.float64), pixel_um)
  mean = seen.mean()
  departure = seen - mean
  deviation = departure.std()
  if deviation < 1e-9:
    return Statistics(0.0, 0.0, np.nan, np.nan, np.nan, float(mean))
  # Faded out towards the borders: a field does not repeat, and its seam would count as detail.
  window = np.outer(*(np.hanning(n + 2)[1:-1] for n in seen.shape))
  faded = (seen - np.average(seen, weights=window)) * window
  power = np.abs(scipy.fft.fft2(faded)) ** 2 / (np.square(window).mean() * seen.size**2)
  number = np.hypot(*np.ix_(*(scipy.fft.fftfreq(n, pixel_um) for n in seen.shape)))

  def contrast(low: float, high: float) -> float:
    inside = (number >= low) & (number < high)
    return float(np.sqrt(power[inside].sum()) / mean) if inside.any() else np.nan

  return Statistics(
    coarse=contrast(1e-9, 1 / _COARSE_UM),
    medium=contrast(1 / _CELLS_UM[1], 1 / _CELLS_UM[0]),
    length_um=_correlation_length(departure, pixel_um),
    slope=_slope(power, number, pixel_um),
    skewness=float(np.mean(departure**3) / deviation**3),
    mean=float(mean),
  )


def _averaged(image: np.ndarray, pixel_um: float) -> tuple[np.ndarray, float]:
  """Averages pixels to about `PIXEL_UM`: each new one covers a whole share of the old ones."""
  for axis in range(2):
    side = image.shape[axis]
    count = min(side, max(1, round(side * pixel_um / PIXEL_UM)))
    edges = np.linspace(0, side, count + 1)
    total = np.concatenate([np.zeros_like(image.take([0], axis)), image.cumsum(axis)], axis)
    below = np.floor(edges).astype(int)
    above = np.minimum(below + 1, side)
    share = (edges - below).reshape([-1 if a == axis else 1 for a in range(2)])
    at_edges = total.take(below, axis) * (1 - share) + total.take(above, axis) * share
    image = np.diff(at_edges, axis=axis) * (count / side)
  return image, max(pixel_um, PIXEL_UM)


def _correlation_length(departure: Float[np.ndarray, "h w"], pixel_um: float) -> float:
  """Where the mean of the autocorrelation over both axes first crosses 1/e."""
  shape = [2 * n for n in departure.shape]
  spectrum = np.abs(scipy.fft.rfft2(departure, shape)) ** 2
  products = scipy.fft.irfft2(spectrum, shape)
  lags = min(departure.shape) // 2
  shares = [1 - np.arange(lags) / n for n in departure.shape]  # pairs of pixels that far apart
  mean = (products[:lags, 0] / shares[0] + products[0, :lags] / shares[1]) / (2 * products[0, 0])
  (below,) = np.nonzero(mean < np.exp(-1))
  if not len(below):
    return np.nan
  last = below[0] - 1
  step = (mean[last] - np.exp(-1)) / (mean[last] - mean[last + 1])
  return float((last + step) * pixel_um)


def _slope(power: np.ndarray, number: np.ndarray, pixel_um: float) -> float:
  """Fits log power to log wavenumber over rings of equal width on the logarithmic axis."""
  low = max(1 / _SLOPE_UM[1], 1.5 / (min(power.shape) * pixel_um))
  edges = np.geomspace(low, 1 / _SLOPE_UM[0], 13)
  ring = np.digitize(number, edges)
  points = [
    (np.log(number[ring == r].mean()), np.log(power[ring == r].mean()))
    for r in range(1, len(edges))
    if np.any(power[ring == r] > 0)
  ]
  return float(np.polyfit(*zip(*points), 1)[0]) if len(points) > 4 else np.nan
