"""The GRU's recurrence in the form that suits XLA on a GPU: few, large kernels, several steps a turn.

Same arguments and results as the two loops of `gru_loop`. There every value is written to its
buffer at once, for XLA:CPU; on a GPU each such write is a kernel. Here a step hands out all that it
made together, and a turn of the loop holds several steps.
"""

from __future__ import annotations

import jax
from jax import lax
import jax.numpy as jnp
from jaxtyping import Array

from rcm_jax.ops.backend import unroll


def forward(
  stacks: tuple[Array, Array | None], weights: tuple[Array, Array]
) -> tuple[Array, Array, Array, Array]:
  """As `gru_loop.forward`."""
  projected, scale = stacks
  kernel, bias = weights
  hidden = kernel.shape[1]

  def step(h, x):
    recurrent = _product(h if scale is None else h * scale, kernel)
    zr = jax.nn.sigmoid(x[..., : 2 * hidden] + recurrent[..., : 2 * hidden])
    q = recurrent[..., 2 * hidden :] + bias[:, None]
    g = jnp.tanh(x[..., 2 * hidden :] + zr[..., hidden:] * q)
    h = g + zr[..., :hidden] * (h - g)
    return h, (h, zr, g, q)

  groups, _, batch, _ = projected.shape
  start = jnp.zeros((groups, batch, hidden), projected.dtype)
  _, found = lax.scan(step, start, jnp.moveaxis(projected, 1, 0), unroll=unroll())
  return tuple(jnp.moveaxis(steps, 0, 1) for steps in found)


def backward(
  stacks: tuple[Array, Array, Array, Array, Array, Array | None], weights: tuple[Array]
) -> tuple[Array, Array]:
  """As `gru_loop.backward`."""
  *seen, scale = stacks
  transposed = jnp.swapaxes(weights[0], 1, 2)
  hidden = seen[0].shape[-1]

  def step(d_state, inputs):
    d_h, before, zr, g, q = inputs
    z, r = zr[..., :hidden], zr[..., hidden:]
    d_state = d_state + d_h
    d_candidate = d_state * (1 - z) * (1 - g * g)
    d_z = d_state * (before - g) * z * (1 - z)
    d_r = d_candidate * q * r * (1 - r)
    d_recurrent = jnp.concatenate([d_z, d_r, d_candidate * r], axis=-1)
    back = _product(d_recurrent, transposed)
    d_state = z * d_state + (back if scale is None else back * scale)
    return d_state, (d_recurrent, d_candidate)

  steps = tuple(jnp.moveaxis(array, 1, 0) for array in seen)
  start = jnp.zeros_like(steps[0][0])
  _, found = lax.scan(step, start, steps, reverse=True, unroll=unroll())
  d_recurrent, d_candidate = (jnp.moveaxis(array, 0, 1) for array in found)
  d_projected = jnp.concatenate([d_recurrent[..., : 2 * hidden], d_candidate], axis=-1)
  return d_projected, d_recurrent


def _product(rows: Array, kernel: Array) -> Array:
  return jnp.einsum("gbi,gij->gbj", rows, kernel)
