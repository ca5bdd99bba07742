"""Plain recurrent network and LSTM over one stack, with the variables of Keras' SimpleRNN and LSTM.

Conventions are those of `ops.gru`: a padded step carries the state through.
"""

from __future__ import annotations

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from rcm_jax.ops.backend import backend, unroll
from rcm_jax.ops.flat_dot import flat_dot
from rcm_jax.ops.gru import check_recurrent


def simple_rnn(
  x: Float[Array, "T F"],
  params: dict[str, Array],
  mask: Bool[Array, "T"],
  *,
  reverse: bool = False,
  recurrent_mask: Float[Array, "H"] | None = None,
) -> Float[Array, "T H"]:
  """States of the plain recurrent network h' = tanh(x W + h U + b).

  Args:
    x: inputs; padded rows may hold anything, NaN too.
    params: kernel [F, H], recurrent_kernel [H, H], bias [H].
    mask: True on real slices.
    reverse: run from the deepest real slice up; outputs stay in slice order.
    recurrent_mask: recurrent dropout, as for `ops.gru.gru`.

  Returns:
    States [T, H] in slice order.

  Raises:
    ValueError: shapes disagree.
  """
  check_recurrent("simple_rnn", x, params, mask, recurrent_mask, gates=1)
  x_proj = flat_dot(jnp.where(mask[:, None], x, 0), params["kernel"]) + params["bias"]

  def step(h, inputs):
    xp, real = inputs
    rec = (h if recurrent_mask is None else h * recurrent_mask) @ params["recurrent_kernel"]
    h = jnp.where(real, jnp.tanh(xp + rec), h)
    return h, h

  start = jnp.zeros(params["recurrent_kernel"].shape[0], x_proj.dtype)
  return jax.lax.scan(step, start, (x_proj, mask), reverse=reverse, unroll=unroll())[1]


def lstm(
  x: Float[Array, "T F"],
  params: dict[str, Array],
  mask: Bool[Array, "T"],
  *,
  reverse: bool = False,
  recurrent_mask: Float[Array, "H"] | None = None,
) -> Float[Array, "T H"]:
  """States of an LSTM, gates in the order i, f, g, o.

  Args:
    x: inputs; padded rows may hold anything, NaN too.
    params: kernel [F, 4H], recurrent_kernel [H, 4H], bias [4H].
    mask: True on real slices.
    reverse: run from the deepest real slice up; outputs stay in slice order.
    recurrent_mask: recurrent dropout, as for `ops.gru.gru`.

  Returns:
    States [T, H] in slice order.

  Raises:
    ValueError: shapes disagree.
  """
  check_recurrent("lstm", x, params, mask, recurrent_mask, gates=4)
  x_proj = flat_dot(jnp.where(mask[:, None], x, 0), params["kernel"]) + params["bias"]

  def step(carry, inputs):
    h, cell = carry
    xp, real = inputs
    rec = (h if recurrent_mask is None else h * recurrent_mask) @ params["recurrent_kernel"]
    i, f, g, o = jnp.split(xp + rec, 4)
    new_cell = jax.nn.sigmoid(f) * cell + jax.nn.sigmoid(i) * jnp.tanh(g)
    new_h = jax.nn.sigmoid(o) * jnp.tanh(new_cell)
    h, cell = jnp.where(real, new_h, h), jnp.where(real, new_cell, cell)
    return (h, cell), h

  start = jnp.zeros(params["recurrent_kernel"].shape[0], x_proj.dtype)
  return jax.lax.scan(step, (start, start), (x_proj, mask), reverse=reverse, unroll=unroll())[1]


def bidirectional(
  layer: Callable,
  x: Float[Array, "T F"],
  params: dict[str, Array],
  mask: Bool[Array, "T"],
  *,
  recurrent_mask: Float[Array, "2 H"] | None = None,
) -> Float[Array, "T twoH"]:
  """Both directions of `simple_rnn` or `lstm`, shallow→deep first in every leading axis of 2.

  Args:
    layer: `simple_rnn` or `lstm`.
    x: inputs, as for the layer.
    params: the layer's, each with a leading axis of 2.
    mask: True on real slices.
    recurrent_mask: one recurrent dropout mask a direction.

  Returns:
    States [T, 2H], the shallow→deep half first.

  Raises:
    ValueError: shapes disagree.
  """
  if backend() != "cpu":  # one loop for both, which has half the kernels of two
    turn = lambda steps: jnp.stack([steps, steps[::-1]])
    run = lambda *args: layer(*args[:3], recurrent_mask=args[3])
    states = jax.vmap(run, (0, 0, 0, None if recurrent_mask is None else 0))(
      turn(x), params, turn(mask), recurrent_mask
    )
    return jnp.concatenate([states[0], states[1, ::-1]], axis=-1)
  halves = [
    layer(
      x,
      jax.tree.map(lambda p: p[d], params),
      mask,
      reverse=bool(d),
      recurrent_mask=None if recurrent_mask is None else recurrent_mask[d],
    )
    for d in (0, 1)
  ]
  return jnp.concatenate(halves, axis=-1)
