"""Principal components: few features for heads that would learn their training stacks by heart."""

from __future__ import annotations

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp

from rcm_jax.data.pca import Components
from rcm_jax.heads.encoders import CELLS
from rcm_jax.heads.head import HeadSpec


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
