"""Gated recurrent unit over one stack, with the variables and the arithmetic of Keras' GRU(reset_after=True).

    z = σ(x W_z + b_z + h U_z + c_z)        r = σ(x W_r + b_r + h U_r + c_r)
    g = tanh(x W_h + b_h + r · (h U_h + c_h))
    h' = z · h + (1 - z) · g

(Cho et al. 2014, in the form of cuDNN and PyTorch.) A padded step carries the
state through: its output repeats the state, which is zero before the first real step.
"""

from __future__ import annotations

from typing import Literal, TypedDict

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

Implementation = Literal["auto", "reference", "scan", "pallas"]


class GruParams(TypedDict):
  """Keras' three variables; gates in the order z, r, h. Bidirectional: a leading axis of 2 on each."""

  kernel: Array  # [F, 3H]
  recurrent_kernel: Array  # [H, 3H]
  bias: Array  # [2, 3H]: input bias, recurrent bias


def gru(
  x: Float[Array, "T F"],
  params: GruParams,
  mask: Bool[Array, "T"],
  *,
  reverse: bool = False,
  recurrent_mask: Float[Array, "H"] | None = None,
  implementation: Implementation = "auto",
) -> Float[Array, "T H"]:
  """Hidden states of a GRU that starts from zero.

  Args:
    x: inputs; padded rows may hold anything, NaN too.
    params: kernel [F, 3H], recurrent_kernel [H, 3H], bias [2, 3H].
    mask: True on real slices.
    reverse: run from the deepest real slice up; outputs stay in slice order.
    recurrent_mask: recurrent dropout: multiplies the state wherever it enters the recurrent product, the
      same at every step (0 or 1 / keep probability). Shared by the three gates (Gal and Ghahramani 2016,
      tied weights), which keeps one matrix product a step; Keras draws one mask a gate.
    implementation: "reference" is the plain scan; the others compute the same faster.

  Returns:
    States [T, H] in slice order.

  Raises:
    ValueError: shapes disagree or the implementation is unknown.
  """
  _check(x, params, mask, recurrent_mask, gates=3, name="gru")
  x = jnp.where(mask[:, None], x, 0)
  x_proj = x @ params["kernel"] + params["bias"][0]
  u, c = params["recurrent_kernel"], params["bias"][1]
  hidden = u.shape[0]

  def step(h, inputs):
    xp, real = inputs
    rec = (h if recurrent_mask is None else h * recurrent_mask) @ u + c
    z = jax.nn.sigmoid(xp[:hidden] + rec[:hidden])
    r = jax.nn.sigmoid(xp[hidden : 2 * hidden] + rec[hidden : 2 * hidden])
    g = jnp.tanh(xp[2 * hidden :] + r * rec[2 * hidden :])
    h = jnp.where(real, z * h + (1 - z) * g, h)
    return h, h

  return jax.lax.scan(step, jnp.zeros(hidden, x_proj.dtype), (x_proj, mask), reverse=reverse)[1]


def bidirectional_gru(
  x: Float[Array, "T F"],
  params: GruParams,
  mask: Bool[Array, "T"],
  *,
  recurrent_mask: Float[Array, "2 H"] | None = None,
  implementation: Implementation = "auto",
) -> Float[Array, "T 2*H"]:
  """Both directions of `gru`, shallow→deep first in the concatenation and in each leading axis of 2.

  Args:
    x: inputs, as for `gru`.
    params: kernel [2, F, 3H], recurrent_kernel [2, H, 3H], bias [2, 2, 3H].
    mask: True on real slices.
    recurrent_mask: one recurrent dropout mask a direction.
    implementation: as for `gru`.

  Returns:
    States [T, 2H].

  Raises:
    ValueError: shapes disagree or the implementation is unknown.
  """
  halves = [
    gru(
      x,
      jax.tree.map(lambda p: p[d], params),
      mask,
      reverse=bool(d),
      recurrent_mask=None if recurrent_mask is None else recurrent_mask[d],
      implementation=implementation,
    )
    for d in (0, 1)
  ]
  return jnp.concatenate(halves, axis=-1)


def _check(x, params, mask, recurrent_mask, *, gates, name):
  kernel, recurrent = params["kernel"], params["recurrent_kernel"]
  if x.ndim != 2 or mask.shape != x.shape[:1]:
    raise ValueError(f"{name}: x must be [T, F] and mask [T], got x {x.shape} and mask {mask.shape}")
  hidden = recurrent.shape[0]
  if kernel.shape != (x.shape[1], gates * hidden) or recurrent.shape != (hidden, gates * hidden):
    raise ValueError(
      f"{name}: for x {x.shape} kernel must be [F, {gates}H] and recurrent_kernel [H, {gates}H], "
      f"got {kernel.shape} and {recurrent.shape}"
    )
  if recurrent_mask is not None and recurrent_mask.shape != (hidden,):
    raise ValueError(f"{name}: recurrent_mask must be [{hidden}], got {recurrent_mask.shape}")
