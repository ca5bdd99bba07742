"""Toeplitz attention: one short convex kernel shared by every slice of a stack (paper, "Toeplitz attention").

The attention map of a stack of T slices is a T × T band with the same 2 D + 1
weights along every row: slice n attends to slices n - D … n + D. The weights
are learned parameters, the same for all stacks.
"""

from __future__ import annotations

from typing import Literal

import jax
from jax import lax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

EdgeMode = Literal["zero", "renormalize"]
Implementation = Literal["auto", "reference", "shift"]


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

  Examples:
    >>> logits = jnp.array([9.0, 0.0, jnp.log(2.0), 0.0, 9.0])
    >>> [f"{weight:.2f}" for weight in rcm_jax.toeplitz_weights(logits, half_width=1)]
    ['0.00', '0.25', '0.50', '0.25', '0.00']
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
  edge_mode: EdgeMode = "zero",
  implementation: Implementation = "auto",
) -> Float[Array, "T H"]:
  """out[n] = Σ_k weights[k + D] · h[n + k] over real slices.

  Args:
    h: one vector a slice. Padded rows may hold anything, NaN too.
    weights: K = 2 D + 1 taps; k < 0 looks shallower, k > 0 deeper.
    mask: True on real slices.
    edge_mode: "zero" leaves the weights as they are where the band reaches outside the stack (the paper's
      map); "renormalize" divides by the sum of the weights that fall on real slices.
    implementation: "reference" is the plain T × T band matrix, "shift" 2 D + 1 shifted multiply-adds,
      which XLA fuses into one pass and into its neighbors. "auto" is "shift", and "reference" for
      kernels of more than a third of the stack's slices, whose gradient costs less as a dense product.

  Returns:
    Context vectors [T, H], zero on padding.

  Raises:
    ValueError: shapes disagree, K is even, or an option is unknown.

  Examples:
    Each slice sees itself by half and its neighbours by a quarter each; the last is padding:

    >>> h = jnp.array([[4.0], [8.0], [0.0], [jnp.nan]])
    >>> mask = jnp.array([True, True, True, False])
    >>> weights = jnp.array([0.25, 0.5, 0.25])
    >>> rcm_jax.toeplitz_attention(h, weights, mask)[:, 0].tolist()
    [4.0, 5.0, 2.0, 0.0]

    A batch of stacks, all of one kernel:

    >>> batched = jax.vmap(rcm_jax.toeplitz_attention, in_axes=(0, None, 0))
    >>> batched(h[None], weights, mask[None]).shape
    (1, 4, 1)
  """
  _check_taps("weights", weights)
  if h.ndim != 2 or mask.shape != h.shape[:1]:
    raise ValueError(
      f"toeplitz_attention: h must be [T, H] and mask [T], got h {h.shape} and mask {mask.shape}"
    )
  if edge_mode not in ("zero", "renormalize"):
    raise ValueError(f"toeplitz_attention: edge_mode {edge_mode!r} is not 'zero' or 'renormalize'")
  if implementation not in _IMPLEMENTATIONS:
    known = ", ".join(_IMPLEMENTATIONS)
    raise ValueError(f"toeplitz_attention: implementation {implementation!r} is not one of {known}")
  out = _IMPLEMENTATIONS[implementation](jnp.where(mask[:, None], h, 0), weights)
  if edge_mode == "renormalize":
    covered = _shifted(mask[:, None].astype(weights.dtype), weights, apart=False)
    out = out / jnp.where(covered > 0, covered, 1)
  return jnp.where(mask[:, None], out, 0)


def _check_taps(name: str, taps: Array) -> None:
  if taps.ndim != 1 or taps.shape[0] % 2 == 0:
    raise ValueError(f"{name} must be [K] with K = 2 D + 1 odd, got shape {taps.shape}")


def _reference(h: Array, weights: Array) -> Array:
  """The band matrix, weights[m - n + D] at row n and column m, times h."""
  slices = jnp.arange(h.shape[0])
  tap = slices[None, :] - slices[:, None] + weights.shape[0] // 2
  inside = (tap >= 0) & (tap < weights.shape[0])
  return jnp.where(inside, weights[jnp.clip(tap, 0, weights.shape[0] - 1)], 0) @ h


def _taps(h: Array, count: int) -> list[Array]:
  """h[n + k] for every k from -D to D, zero outside."""
  half = count // 2
  padded = jnp.pad(h, ((half, half), (0, 0)))
  return [padded[k : k + h.shape[0]] for k in range(count)]


def _inner_taps(h: Array, count: int) -> list[Array]:
  """The same for the slices from D to T - D, whose taps all lie inside."""
  return [h[k : h.shape[0] - count + 1 + k] for k in range(count)]


def _weighted(taps: list[Array], weights: Array) -> Array:
  return sum(w * tap for w, tap in zip(weights, taps))


def _shifted(h: Array, weights: Array, *, apart: bool) -> Array:
  """2 D + 1 multiply-adds; `apart`, without a padded array wherever none is needed.

  XLA:CPU asks of every value whether it is padding, and then cannot use vector instructions: a
  narrow kernel takes twice as long.
  """
  count, half = weights.shape[0], weights.shape[0] // 2
  if half == 0 or not apart:
    return _weighted(_taps(h, count), weights)
  first, last = (_weighted(_taps(part, count), weights) for part in (h[: 2 * half], h[-2 * half :]))
  return jnp.concatenate([first[:half], _weighted(_inner_taps(h, count), weights), last[half:]])


def _tap_sums(products: list[list[Array]]) -> Array:
  """Sums [K, 2], over either half of the columns, of each tap's products, which may come in parts.

  All at once: one accumulator a product reads everything once, where separate sums read it K times.
  The halves are a bidirectional encoder's two directions, so that those may lie on two devices.
  """
  terms = [part for parts in products for part in parts]
  halves = 2 if terms[0].shape[1] % 2 == 0 else 1
  terms = tuple(term.reshape(term.shape[0], halves, -1) for term in terms)
  zeros = (jnp.zeros((), terms[0].dtype),) * len(terms)
  sums = lax.reduce(terms, zeros, lambda a, b: tuple(x + y for x, y in zip(a, b)), (0, 2))
  return jnp.stack(sums).reshape(len(products), -1, halves).sum(1)


@jax.custom_vjp
def _shift(h: Array, weights: Array) -> Array:
  return _shifted(h, weights, apart=7 * weights.shape[0] <= h.shape[0])


def _shift_forward(h: Array, weights: Array):
  # Apart if at all possible, because XLA computes the padded form again for every reader of it.
  return _shifted(h, weights, apart=not _is_wide(h, weights)), (h, weights)


def _shift_backward(residuals, d_out: Array):
  h, weights = residuals
  count, half = weights.shape[0], weights.shape[0] // 2
  d_h = _shifted(d_out, weights[::-1], apart=not _is_wide(h, weights))
  if half == 0 or _is_wide(h, weights):
    sums = _tap_sums([[d_out * tap] for tap in _taps(h, count)])
    return d_h, sums.sum(1).astype(weights.dtype)
  # In two parts: a processor adds to six accumulators as fast as to three.
  rows = (h.shape[0] - 2 * half) // 2
  parts = [slice(half, half + rows), slice(half + rows, half + 2 * rows)]
  shifted = lambda part, k: h[part.start + k - half : part.stop + k - half]
  sums = _tap_sums([[d_out[part] * shifted(part, k) for part in parts] for k in range(count)])
  first, last = h[: 2 * half], h[2 * rows :]
  sums += _tap_sums([[d_out[:half] * tap[:half]] for tap in _taps(first, count)])
  end = d_out[half + 2 * rows :]
  sums += _tap_sums([[end * tap[half:]] for tap in _taps(last, count)])
  return d_h, sums.sum(1).astype(weights.dtype)


def _is_wide(h: Array, weights: Array) -> bool:
  """Whether the band fills so much of its matrix that a dense product is faster (measured on a CPU)."""
  return 3 * weights.shape[0] > h.shape[0]


def _auto(h: Array, weights: Array) -> Array:
  return _reference(h, weights) if _is_wide(h, weights) else _shift(h, weights)


_shift.defvjp(_shift_forward, _shift_backward)


_IMPLEMENTATIONS = {
  "auto": _auto,
  "reference": _reference,
  "shift": _shift,
}
