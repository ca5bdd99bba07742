"""Toeplitz attention as Pallas kernels, for many stacks or members at once: one program a stack.

The backward kernel makes one pass: it reads the stack and its gradient once and
writes the gradient of the stack and 2 D + 1 partial sums for the weights.

Tested in the interpreter, which is also what runs where there is no GPU. No GPU
was at hand when it was written: neither its speed nor its lowering through
Mosaic GPU has been tried, so `implementation="auto"` does not choose it.
"""

from __future__ import annotations

import jax
from jax.experimental import pallas as pl
import jax.numpy as jnp
from jaxtyping import Array


@jax.custom_vjp
def apply(h: Array, weights: Array) -> Array:
  """Σ_k weights[k + D] · h[n + k] for h [T, H], which is zero on padding, and weights [K]."""
  shape = jax.ShapeDtypeStruct(h.shape, h.dtype)
  return _call(_forward, shape)(_padded(h, weights), weights)


def _apply_forward(h: Array, weights: Array):
  return apply(h, weights), (h, weights)


def _apply_backward(residuals, d_out: Array):
  h, weights = residuals
  shapes = (
    jax.ShapeDtypeStruct(h.shape, h.dtype),
    jax.ShapeDtypeStruct(weights.shape, weights.dtype),
  )
  return tuple(_call(_backward, shapes)(_padded(h, weights), _padded(d_out, weights), weights))


apply.defvjp(_apply_forward, _apply_backward)


def _padded(h: Array, weights: Array) -> Array:
  half = weights.shape[0] // 2
  return jnp.pad(h, ((half, half), (0, 0)))


def _call(kernel, out_shape):
  return pl.pallas_call(kernel, out_shape=out_shape, interpret=jax.default_backend() != "gpu")


def _forward(h_ref, weights_ref, out_ref):
  length = out_ref.shape[0]
  out = jnp.zeros(out_ref.shape, out_ref.dtype)
  for k in range(weights_ref.shape[0]):
    out += weights_ref[k] * h_ref[pl.ds(k, length), :]
  out_ref[...] = out


def _backward(h_ref, d_out_ref, weights_ref, d_h_ref, d_weights_ref):
  length, count = d_h_ref.shape[0], weights_ref.shape[0]
  d_out = d_out_ref[pl.ds(count // 2, length), :]
  d_h = jnp.zeros(d_h_ref.shape, d_h_ref.dtype)
  for k in range(count):
    d_h += weights_ref[count - 1 - k] * d_out_ref[pl.ds(k, length), :]
    d_weights_ref[k] = jnp.sum(d_out * h_ref[pl.ds(k, length), :])
  d_h_ref[...] = d_h
