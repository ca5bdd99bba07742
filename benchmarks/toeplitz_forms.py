"""Other ways to compute Toeplitz attention, which were slower: blocks of the band, a convolution."""

from __future__ import annotations

import jax
from jax import lax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

_ROWS = 32  # rows of a block: blocks of 32 × (32 + 2 D), not T × T


def band(
  h: Float[Array, "T H"], weights: Float[Array, "K"], mask: Bool[Array, "T"]
) -> Float[Array, "T H"]:
  """`toeplitz_attention` as products with blocks of the band matrix."""
  h = jnp.where(mask[:, None], h, 0)
  half, length = weights.shape[0] // 2, h.shape[0]
  rows = min(_ROWS, length)
  tap = jnp.arange(rows + 2 * half)[None, :] - jnp.arange(rows)[:, None]
  inside = (tap >= 0) & (tap < weights.shape[0])
  matrix = jnp.where(inside, weights[jnp.clip(tap, 0, weights.shape[0] - 1)], 0)
  padded = jnp.pad(h, ((half, -length % rows + half), (0, 0)))
  blocks = [matrix @ padded[n : n + rows + 2 * half] for n in range(0, length, rows)]
  return jnp.where(mask[:, None], jnp.concatenate(blocks)[:length], 0)


def conv(
  h: Float[Array, "T H"], weights: Float[Array, "K"], mask: Bool[Array, "T"]
) -> Float[Array, "T H"]:
  """The same as XLA's convolution."""
  half = weights.shape[0] // 2
  out = lax.conv_general_dilated(
    jnp.where(mask[:, None], h, 0).T[:, :, None],
    weights[:, None, None],
    window_strides=(1,),
    padding=[(half, half)],
    dimension_numbers=("NWC", "WIO", "NWC"),
  )
  return jnp.where(mask[:, None], out[:, :, 0].T, 0)


BATCHED = {name: jax.vmap(form, (0, None, 0)) for name, form in (("band", band), ("conv", conv))}
