"""Three synthetic textures that differ in grain alone, one for each stratum."""

from __future__ import annotations

import numpy as np
from scipy.ndimage import gaussian_filter


def textured_slices(count: int, *, seed: int, side: int = 40) -> tuple[np.ndarray, np.ndarray]:
  """Slices of noise blurred over 0.5, 1 or 2 pixels, and their labels.

  Brightness and contrast vary at random, so that neither tells the class.
  """
  rng = np.random.default_rng(seed)
  labels = np.arange(count) % 3
  slices = np.empty((count, side, side), np.uint8)
  for n, label in enumerate(labels):
    grain = gaussian_filter(rng.standard_normal((side, side)), (0.5, 1.0, 2.0)[label])
    gray = rng.uniform(90, 160) + rng.uniform(15, 35) * grain / grain.std()
    slices[n] = np.clip(gray + rng.normal(0, 4, grain.shape), 0, 255)
  return slices, labels
