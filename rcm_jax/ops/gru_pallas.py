"""The GRU's recurrence as Pallas kernels: the time loop inside, one program a weight set, its matrix resident.

Same signatures as the two loops of `gru_loop`, which see a launch or a thunk for
every operation of every step; here a step is a few vector instructions. One
program per group G = member × direction; stacks B are rows of its product.

Tested in the interpreter, which is also what runs where there is no GPU. No GPU
was at hand when it was written: neither its speed nor its lowering through
Mosaic GPU has been tried, so `implementation="auto"` does not choose it.
"""

from __future__ import annotations

import jax
from jax import lax
from jax.experimental import pallas as pl
import jax.numpy as jnp
from jaxtyping import Array


def forward(
  stacks: tuple[Array, Array | None], weights: tuple[Array, Array]
) -> tuple[Array, Array, Array, Array]:
  """As `gru_loop.forward`."""
  projected, scale = stacks
  kernel, bias = weights
  hidden = kernel.shape[1]
  return _call(
    _forward, (1, 2, 1, 1), hidden, (projected, _rows(scale, projected, hidden), kernel, bias)
  )


def backward(
  stacks: tuple[Array, Array, Array, Array, Array, Array | None], weights: tuple[Array]
) -> tuple[Array, Array]:
  """As `gru_loop.backward`."""
  *steps, scale = stacks
  hidden = steps[0].shape[-1]
  return _call(_backward, (3, 3), hidden, (*steps, _rows(scale, steps[0], hidden), *weights))


def _rows(scale: Array | None, like: Array, hidden: int) -> Array:
  groups, _, batch, _ = like.shape
  return jnp.ones((groups, batch, hidden), like.dtype) if scale is None else scale


def _call(
  kernel, gates: tuple[int, ...], hidden: int, args: tuple[Array, ...]
) -> tuple[Array, ...]:
  """Calls `kernel` once a group; it sees its group's block of every array. `gates`: widths of the outputs in H."""

  def block(shape: tuple[int, ...]) -> pl.BlockSpec:
    return pl.BlockSpec((None, *shape[1:]), lambda group: (group, *(0 for _ in shape[1:])))

  shapes = [(*args[0].shape[:3], n * hidden) for n in gates]
  out = pl.pallas_call(
    kernel,
    grid=(args[0].shape[0],),
    in_specs=[block(a.shape) for a in args],
    out_specs=[block(s) for s in shapes],
    out_shape=[jax.ShapeDtypeStruct(s, args[0].dtype) for s in shapes],
    interpret=jax.default_backend() != "gpu",
  )(*args)
  return tuple(out)


def _forward(x_ref, scale_ref, kernel_ref, bias_ref, h_ref, zr_ref, g_ref, q_ref):
  length, hidden = x_ref.shape[0], bias_ref.shape[0]
  kernel, bias, scale = kernel_ref[...], bias_ref[...], scale_ref[...]

  def step(t, h):
    x = x_ref[t]
    recurrent = jnp.dot(h * scale, kernel)
    zr = jax.nn.sigmoid(x[:, : 2 * hidden] + recurrent[:, : 2 * hidden])
    q = recurrent[:, 2 * hidden :] + bias
    g = jnp.tanh(x[:, 2 * hidden :] + zr[:, hidden:] * q)
    h = g + zr[:, :hidden] * (h - g)
    h_ref[t], zr_ref[t], g_ref[t], q_ref[t] = h, zr, g, q
    return h

  lax.fori_loop(0, length, step, jnp.zeros(scale.shape, x_ref.dtype))


def _backward(
  d_h_ref, before_ref, zr_ref, g_ref, q_ref, scale_ref, kernel_ref, d_projected_ref, d_recurrent_ref
):
  length, hidden = d_h_ref.shape[0], d_h_ref.shape[-1]
  transposed, scale = kernel_ref[...].T, scale_ref[...]

  def step(i, d_state):
    t = length - 1 - i
    z, r, g = zr_ref[t][:, :hidden], zr_ref[t][:, hidden:], g_ref[t]
    d_state = d_state + d_h_ref[t]
    d_candidate = d_state * (1 - z) * (1 - g * g)
    d_z = d_state * (before_ref[t] - g) * z * (1 - z)
    d_r = d_candidate * q_ref[t] * r * (1 - r)
    d_recurrent = jnp.concatenate([d_z, d_r, d_candidate * r], axis=-1)
    d_recurrent_ref[t] = d_recurrent
    d_projected_ref[t] = jnp.concatenate([d_z, d_r, d_candidate], axis=-1)
    return z * d_state + jnp.dot(d_recurrent, transposed) * scale

  lax.fori_loop(0, length, step, jnp.zeros(scale.shape, d_h_ref.dtype))
