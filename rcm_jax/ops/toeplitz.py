"""Toeplitz attention: one short convex kernel shared by every slice of a stack (paper, "Toeplitz attention").

The attention map of a stack of T slices is a T × T band with the same 2 D + 1
weights along every row: slice n attends to slices n - D … n + D. The weights
are learned parameters, the same for all stacks.
"""

from __future__ import annotations

from typing import Literal

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

Boundary = Literal["zero", "renormalize"]
Implementation = Literal["auto", "reference", "shift", "band", "conv", "pallas"]


def toeplitz_weights(
  logits: Float[Array, "K"], half_width: Int[Array, ""] | int | None = None
) -> Float[Array, "K"]:
  """Convex weights of the band from free logits.

  Args:
    logits: one logit a tap, K = 2 D + 1, shallow to deep.
    half_width: taps further than this from the center get weight zero and no gradient.
      May be traced, so that models of every D share one program. None keeps all taps.

  Returns:
    Weights [K] that sum to one.

  Raises:
    ValueError: K is even.
  """
  _check_taps("logits", logits)
  if half_width is not None:
    offsets = jnp.arange(logits.shape[0]) - logits.shape[0] // 2
    logits = jnp.where(jnp.abs(offsets) <= half_width, logits, -jnp.inf)
  return jax.nn.softmax(logits)


def toeplitz_attention(
  h: Float[Array, "T H"],
  weights: Float[Array, "K"],
  mask: Bool[Array, "T"],
  *,
  boundary: Boundary = "zero",
  implementation: Implementation = "auto",
) -> Float[Array, "T H"]:
  """out[n] = Σ_k weights[k + D] · h[n + k] over real slices.

  Args:
    h: one vector a slice. Padded rows may hold anything, NaN too.
    weights: K = 2 D + 1 taps; k < 0 looks shallower, k > 0 deeper.
    mask: True on real slices.
    boundary: "zero" leaves the weights as they are where the band reaches outside the stack (the paper's
      map); "renormalize" divides by the sum of the weights that fall on real slices.
    implementation: "reference" is the plain band matrix; the others compute the same faster.

  Returns:
    Context vectors [T, H], zero on padding.

  Raises:
    ValueError: shapes disagree, K is even, or an option is unknown.
  """
  _check_taps("weights", weights)
  if h.ndim != 2 or mask.shape != h.shape[:1]:
    raise ValueError(
      f"toeplitz_attention: h must be [T, H] and mask [T], got h {h.shape} and mask {mask.shape}"
    )
  if boundary not in ("zero", "renormalize"):
    raise ValueError(f"toeplitz_attention: boundary {boundary!r} is not 'zero' or 'renormalize'")
  h = jnp.where(mask[:, None], h, 0)
  if implementation == "auto":
    implementation = "shift"
  if implementation not in _IMPLEMENTATIONS:
    known = ", ".join(("auto", *_IMPLEMENTATIONS))
    raise ValueError(f"toeplitz_attention: implementation {implementation!r} is not one of {known}")
  out = _IMPLEMENTATIONS[implementation](h, weights)
  if boundary == "renormalize":
    covered = _reference(mask[:, None].astype(weights.dtype), weights)
    out = out / jnp.where(covered > 0, covered, 1)
  return jnp.where(mask[:, None], out, 0)


def _check_taps(name: str, taps: Array) -> None:
  if taps.ndim != 1 or taps.shape[0] % 2 == 0:
    raise ValueError(f"{name} must be [K] with K = 2 D + 1 odd, got shape {taps.shape}")


def _band(weights: Array, length: int) -> Array:
  """The attention map [T, T]: weights[m - n + D] at row n, column m."""
  offset = jnp.arange(length)[None, :] - jnp.arange(length)[:, None]
  half = weights.shape[0] // 2
  tap = jnp.clip(offset + half, 0, 2 * half)
  return jnp.where(jnp.abs(offset) <= half, weights[tap], 0)


def _reference(h: Array, weights: Array) -> Array:
  return _band(weights, h.shape[0]) @ h


def _shift(h: Array, weights: Array) -> Array:
  half = weights.shape[0] // 2
  padded = jnp.pad(h, ((half, half), (0, 0)))
  return sum(w * padded[k : k + h.shape[0]] for k, w in enumerate(weights))


def _conv(h: Array, weights: Array) -> Array:
  half = weights.shape[0] // 2
  out = jax.lax.conv_general_dilated(
    h.T[:, :, None],
    weights[:, None, None],
    window_strides=(1,),
    padding=[(half, half)],
    dimension_numbers=("NWC", "WIO", "NWC"),
  )
  return out[:, :, 0].T


_IMPLEMENTATIONS = {"reference": _reference, "band": _reference, "shift": _shift, "conv": _conv}
