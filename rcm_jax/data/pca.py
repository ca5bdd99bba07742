"""Principal components of features: few inputs for heads that would overfit their training stacks."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
import dataclasses
from typing import NamedTuple

from jaxtyping import Float
import numpy as np

from rcm_jax.arrays import Features

_LEAST_SHARE = 1e-9  # of the first component's variance


class Components(NamedTuple):
  """A linear map; (x - mean) @ matrix has unit variance where it was learned.

  Attributes:
    mean: of the features.
    matrix: the first principal directions over their standard deviations.
  """

  mean: Float[np.ndarray, " W"]
  matrix: Float[np.ndarray, "W F"]

  def __call__(self, values: Float[np.ndarray, "*dims W"]) -> Float[np.ndarray, "*dims F"]:
    """Returns the components."""
    return (values - self.mean) @ self.matrix

  def of_padded(self, features: Features) -> Float[np.ndarray, "N T F"]:
    """Returns the components of stacks, 0 on padding."""
    return np.where(np.asarray(features.mask)[..., None], self(features.values), 0)


def learn(values: Float[np.ndarray, "n W"], count: int) -> Components:
  """Returns the first `count` components of rows; zero where fewer directions vary."""
  return _leading(values.mean(0), np.cov(values, rowvar=False, dtype=np.float64), count)


def learn_in_blocks(blocks: Iterable[np.ndarray], count: int) -> Components:
  """Returns what `learn` does of rows that come block by block, [n, W] each, but for rounding."""
  total, sums, products, origin = 0, 0.0, 0.0, None
  for block in blocks:
    origin = block[:1].astype(np.float64) if origin is None else origin
    rows = block - origin  # near the mean, so that the products do not cancel
    total += len(rows)
    sums = sums + rows.sum(0)
    products = products + rows.T @ rows
  mean = sums / total
  covariance = (products - total * np.outer(mean, mean)) / (total - 1)
  return _leading((mean + origin[0]).astype(np.float32), covariance, count)


def _leading(
  mean: Float[np.ndarray, " W"], covariance: Float[np.ndarray, "W W"], count: int
) -> Components:
  variances, directions = np.linalg.eigh(covariance)
  kept = slice(None, -count - 1, -1)  # eigenvalues rise
  # What does not vary here would be blown up where it does.
  varies = variances[kept] > _LEAST_SHARE * variances[-1]
  scale = np.sqrt(np.where(varies, variances[kept], np.inf))
  return Components(mean, (directions[:, kept] / scale).astype(np.float32))


def of_splits(
  features: Mapping[str, Features], count: int
) -> tuple[Components, dict[str, Features]]:
  """Learns on the training slices; returns the map, and all splits' components, 0 on padding."""
  train = features["train"]
  components = learn(np.asarray(train.values)[np.asarray(train.mask)], count)
  seen = {
    name: dataclasses.replace(split, values=components.of_padded(split))
    for name, split in features.items()
  }
  return components, seen
