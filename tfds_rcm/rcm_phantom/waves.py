"""Smooth random fields as sums of plane waves: the relief of one stack, without JAX."""

from __future__ import annotations

from jaxtyping import Float
import numpy as np

Waves = tuple[np.ndarray, np.ndarray, np.ndarray]


def draw(rng: np.random.Generator, wavelength_um: float, count: int = 24) -> Waves:
  """Draws a smooth isotropic random field of unit variance, see `evaluate`."""
  number = 2 * np.pi / (wavelength_um * rng.uniform(0.65, 1.6, count))
  angle = rng.uniform(0, 2 * np.pi, count)
  phase = rng.uniform(0, 2 * np.pi, count)
  return number * np.cos(angle), number * np.sin(angle), phase


def evaluate(
  waves: Waves, x: Float[np.ndarray, " W"], y: Float[np.ndarray, " H"]
) -> Float[np.ndarray, "H W"]:
  """Evaluates a field on the grid y × x (µm); waves separate, so it is one matrix product."""
  number_x, number_y, phase = waves
  rows = np.exp(1j * (np.outer(y, number_y) + phase))
  columns = np.exp(1j * np.outer(number_x, x))
  return (rows @ columns).real * np.sqrt(2 / len(phase))
