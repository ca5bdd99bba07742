"""Principal components: few features for heads that would learn their training stacks by heart."""

from __future__ import annotations

from collections.abc import Mapping
import dataclasses
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Float
import numpy as np

from rcm_jax.arrays import Features
from rcm_jax.heads.encoders import CELLS
from rcm_jax.heads.head import HeadSpec

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


def learn(values: Float[np.ndarray, "n W"], count: int) -> Components:
  """Returns the first `count` components of rows; zero where fewer directions vary."""
  variances, directions = np.linalg.eigh(np.cov(values, rowvar=False, dtype=np.float64))
  kept = slice(None, -count - 1, -1)  # eigenvalues rise
  # What does not vary here would be blown up where it does.
  varies = variances[kept] > _LEAST_SHARE * variances[-1]
  scale = np.sqrt(np.where(varies, variances[kept], np.inf))
  return Components(values.mean(0), (directions[:, kept] / scale).astype(np.float32))


def of_splits(
  features: Mapping[str, Features], count: int
) -> tuple[Components, dict[str, Features]]:
  """Learns on the training slices; returns the map, and all splits' components, 0 on padding."""
  train = features["train"]
  components = learn(np.asarray(train.values)[np.asarray(train.mask)], count)
  seen = {
    name: dataclasses.replace(
      split, values=np.where(np.asarray(split.mask)[..., None], components(split.values), 0)
    )
    for name, split in features.items()
  }
  return components, seen


def unfold(spec: HeadSpec, params: Any, components: Components) -> tuple[HeadSpec, Any]:
  """Returns the same heads, for the features themselves.

  Args:
    spec: of heads that read components.
    params: theirs, with any leading axes.
    components: that they read.
  """
  mean, matrix = components
  kernel = jnp.einsum("fc,...cg->...fg", matrix, params["encoder"]["kernel"][...])
  shift = jnp.einsum("f,...fg->...g", mean, kernel)
  of_input = (..., 0, slice(None)) if CELLS[spec.cell][1] else ...  # a GRU has a second one

  def change(path: Any, leaf: Any) -> Any:
    name = jax.tree_util.keystr(path)
    if name.startswith("['encoder']['kernel']"):
      return kernel
    return leaf.at[of_input].add(-shift) if name.startswith("['encoder']['bias']") else leaf

  params = jax.tree_util.tree_map_with_path(change, jax.tree.map(jnp.asarray, params))
  return dataclasses.replace(spec, num_features=len(mean)), params
