"""Gated recurrent unit over one stack, with the variables and the arithmetic of Keras' GRU(reset_after=True).

    z = σ(x W_z + b_z + h U_z + c_z)        r = σ(x W_r + b_r + h U_r + c_r)
    g = tanh(x W_h + b_h + r · (h U_h + c_h))
    h' = z · h + (1 - z) · g

(Cho et al. 2014, in the form of cuDNN and PyTorch.) A padded step carries the
state through: its output repeats the state, which is zero before the first real step.

`gru_loop.py` has the fast recurrence, `gru_mosaic.py` and `gru_unrolled.py` its forms for GPUs; here
are the layer around it and the reference.
"""

from __future__ import annotations

from typing import Literal, TypedDict, get_args

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from rcm_jax.ops import gru_loop
from rcm_jax.ops.backend import backend, check_implementation, has_kernels, knows_kernels
from rcm_jax.ops.flat_dot import flat_dot

Implementation = Literal["auto", "reference", "scan", "unrolled", "pallas"]

# Added to the update gate of padded steps: σ is then exactly 1 and the state passes, so that
# neither loop needs a mask and every gradient of a padded step is exactly zero.
_CLOSED = 1e4


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

  Written for one stack. `vmap` over stacks (params unbatched) makes each recurrent product one
  [B, H] × [H, 3H] product and each weight gradient one flat product over B · T; `vmap` over members
  (params batched) adds a batch axis to both.

  Args:
    x: inputs; padded rows may hold anything, NaN too.
    params: kernel [F, 3H], recurrent_kernel [H, 3H], bias [2, 3H].
    mask: True on real slices.
    reverse: run from the deepest real slice up; outputs stay in slice order.
    recurrent_mask: recurrent dropout: multiplies the state wherever it enters the recurrent product, the
      same at every step (0 or 1 / keep probability). Shared by the three gates (Gal and Ghahramani 2016,
      tied weights), which keeps one matrix product a step; Keras draws one mask a gate.
    implementation: "reference" is a plain scan that JAX differentiates, "scan" the recurrence that is
      fast on a CPU, "unrolled" the same for a GPU, "pallas" one kernel for Hopper GPUs with the
      time loop inside. "auto" is "scan" on a CPU. Elsewhere it is "unrolled", but on a GPU with jax
      0.11 or later "pallas" for float32, up to 64 units and up to 32 stacks that share weights.

  Returns:
    States [T, H] in slice order.

  Raises:
    ValueError: shapes disagree, or the implementation is unknown or cannot take them.

  Examples:
    >>> params = {
    ...   "kernel": jnp.ones((2, 3 * 4)),
    ...   "recurrent_kernel": jnp.zeros((4, 3 * 4)),
    ...   "bias": jnp.zeros((2, 3 * 4)),
    ... }
    >>> mask = jnp.array([True, True, False])
    >>> states = rcm_jax.gru(jnp.ones((3, 2)), params, mask)
    >>> states.shape
    (3, 4)
    >>> bool((states[2] == states[1]).all())  # padding carries the state through
    True
  """
  check_recurrent("gru", x, params, mask, recurrent_mask, gates=3, bias_rows=(2,))
  lifted = jax.tree.map(lambda leaf: leaf[None], params)
  dropped = None if recurrent_mask is None else recurrent_mask[None]
  return _directions(x, lifted, mask, dropped, (reverse,), implementation)[0]


def bidirectional_gru(
  x: Float[Array, "T F"],
  params: GruParams,
  mask: Bool[Array, "T"],
  *,
  recurrent_mask: Float[Array, "2 H"] | None = None,
  implementation: Implementation = "auto",
) -> Float[Array, "T _"]:
  """Both directions of `gru` in one loop, shallow→deep first in the concatenation and in every leading axis of 2.

  Args:
    x: inputs, as for `gru`.
    params: kernel [2, F, 3H], recurrent_kernel [2, H, 3H], bias [2, 2, 3H].
    mask: True on real slices.
    recurrent_mask: one recurrent dropout mask a direction.
    implementation: as for `gru`.

  Returns:
    States [T, 2H].

  Raises:
    ValueError: shapes disagree, or the implementation is unknown or cannot take them.

  Examples:
    >>> params = {
    ...   "kernel": jnp.ones((2, 5, 3 * 4)),
    ...   "recurrent_kernel": jnp.zeros((2, 4, 3 * 4)),
    ...   "bias": jnp.zeros((2, 2, 3 * 4)),
    ... }
    >>> rcm_jax.bidirectional_gru(jnp.ones((7, 5)), params, jnp.ones(7, bool)).shape
    (7, 8)
  """
  check_recurrent(
    "bidirectional_gru", x, params, mask, recurrent_mask, gates=3, bias_rows=(2,), directions=(2,)
  )
  states = _directions(x, params, mask, recurrent_mask, (False, True), implementation)
  return jnp.moveaxis(states, 0, 1).reshape(x.shape[0], -1)


def check_recurrent(
  name: str,
  x,
  params,
  mask,
  recurrent_mask,
  *,
  gates: int,
  bias_rows: tuple[int, ...] = (),
  directions=(),
) -> None:
  """Raises ValueError, naming arrays and shapes, unless a recurrent layer's arguments fit each other."""
  if x.ndim != 2 or mask.shape != x.shape[:1]:
    raise ValueError(
      f"{name}: x must be [T, F] and mask [T], got x {x.shape} and mask {mask.shape}"
    )
  hidden = params["recurrent_kernel"].shape[-1] // gates
  expected = {
    "kernel": (*directions, x.shape[1], gates * hidden),
    "recurrent_kernel": (*directions, hidden, gates * hidden),
    "bias": (*directions, *bias_rows, gates * hidden),
  }
  for key, shape in expected.items():
    if params[key].shape != shape:
      raise ValueError(
        f"{name}: {key} must be {shape} for x {x.shape} and {hidden} units, got {params[key].shape}"
      )
  if recurrent_mask is not None and recurrent_mask.shape != (*directions, hidden):
    raise ValueError(
      f"{name}: recurrent_mask must be {(*directions, hidden)}, got {recurrent_mask.shape}"
    )


def _directions(
  x, params, mask, recurrent_mask, reverse: tuple[bool, ...], implementation: str
) -> Float[Array, "directions T H"]:
  """States of each direction; every leaf of params has the directions as leading axis."""
  check_implementation("gru", implementation, get_args(Implementation))
  if implementation == "pallas" and not knows_kernels():
    raise ValueError(f"gru: the kernels need jax 0.11 or later, this is {jax.__version__}")
  x = jnp.where(mask[:, None], x, 0)
  kernel, recurrent, bias = params["kernel"], params["recurrent_kernel"], params["bias"]
  if implementation == "reference":
    dropped = (
      jnp.ones((len(reverse), recurrent.shape[1]), x.dtype)
      if recurrent_mask is None
      else recurrent_mask
    )
    states = [
      _reference(x @ kernel[d] + bias[d, 0], recurrent[d], bias[d, 1], dropped[d], mask, backwards)
      for d, backwards in enumerate(reverse)
    ]
    return jnp.stack(states)
  hidden = recurrent.shape[1]
  gate = jnp.arange(3 * hidden)
  real = mask[:, None].astype(x.dtype)
  # The recurrent bias of z and r only ever adds to the input's: one of them leaves the loop.
  hoisted = bias[:, 0] + jnp.where(gate < 2 * hidden, bias[:, 1], 0)
  closed = jnp.where(gate < hidden, jnp.asarray(_CLOSED, x.dtype), 0)
  # One product for all directions: two of half the width take a third longer on a CPU.
  wide = jnp.moveaxis(kernel, 0, 1).reshape(x.shape[1], -1)
  projected = flat_dot(x, wide) + flat_dot(real, hoisted.reshape(1, -1))
  projected = (
    projected.reshape(x.shape[0], -1, 3 * hidden) + jnp.where(mask, 0, 1)[:, None, None] * closed
  )
  projected = _turn(jnp.moveaxis(projected, 1, 0), reverse)
  h = gru_loop.recurrence(
    projected,
    recurrent,
    bias[:, 1, 2 * hidden :],
    _turn(jnp.broadcast_to(real, (len(reverse), *real.shape)), reverse),
    recurrent_mask,
    form=_auto() if implementation == "auto" else implementation,
  )
  return _turn(h, reverse)


def _auto() -> str:
  if backend() == "cpu":
    return "scan"
  return "gpu" if has_kernels() else "unrolled"


def _turn(steps: Array, reverse: tuple[bool, ...]) -> Array:
  """[directions, T, …] with the steps of backward directions in opposite order."""
  backwards = jnp.array(reverse).reshape(-1, *(1,) * (steps.ndim - 1))
  return jnp.where(backwards, steps[:, ::-1], steps)


def _reference(projected, recurrent, bias, dropped, mask, reverse):
  """The equations above, one step after the other."""

  def step(h, inputs):
    x_t, real = inputs
    x_z, x_r, x_h = jnp.split(x_t, 3)
    h_z, h_r, h_h = jnp.split((h * dropped) @ recurrent + bias, 3)
    z, r = jax.nn.sigmoid(x_z + h_z), jax.nn.sigmoid(x_r + h_r)
    g = jnp.tanh(x_h + r * h_h)
    h = jnp.where(real, z * h + (1 - z) * g, h)
    return h, h

  start = jnp.zeros(recurrent.shape[0], projected.dtype)
  return jax.lax.scan(step, start, (projected, mask), reverse=reverse)[1]
