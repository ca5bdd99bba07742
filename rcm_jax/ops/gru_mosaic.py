"""The GRU's recurrence as two kernels for Hopper GPUs: the time loop inside, one program a weight set.

Same arguments and results as the two loops of `gru_loop`, of which XLA launches every step by
itself: 1,090 kernels for 71 steps forward and backward, where there are two here.

The recurrent matrix stays in shared memory, the state in registers. Tensor cores want 64 rows on
the left and 8 columns on the right: states stand upright, [H, stacks], and H is padded to 64.
Their products take TF32, 11 bits of a number. Where JAX is asked for more precision
(`jax_default_matmul_precision`), each factor is divided into what TF32 holds and the rest,
and three products leave out the rest times the rest alone (3xTF32): an error near float32's.

A step waits for nothing but the step before: what it reads was asked for one step earlier.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
import functools
from typing import Any

import jax
from jax import lax
from jax.experimental import pallas as pl
from jax.experimental.pallas import mosaic_gpu as plgpu
import jax.numpy as jnp
from jaxtyping import Array

from rcm_jax.ops import mosaic

MAX_HIDDEN = 64  # rows of one product; two such recurrent matrices fill half of a shared memory
MAX_STACKS = 32  # more columns do not fit the registers
_GATES = 3
_COLUMNS = 8  # a product's columns come in eights
_TF32_BITS = -(1 << 13)  # sign, exponent and the 10 bits of the mantissa that TF32 has
_SWIZZLE = 128  # bytes
_TRANSFORMS = (
  plgpu.TilingTransform((8, _SWIZZLE // 4)),
  plgpu.SwizzleTransform(_SWIZZLE),
)


def fits(hidden: int, stacks: int, dtype: Any) -> bool:
  """Whether the kernels can take a recurrence of this size."""
  return hidden <= MAX_HIDDEN and stacks <= MAX_STACKS and dtype == jnp.float32


def forward(
  stacks: tuple[Array, Array | None], weights: tuple[Array, Array]
) -> tuple[Array, Array, Array, Array]:
  """As `gru_loop.forward`."""
  projected, scale = stacks
  kernel, bias = weights
  batch, hidden = projected.shape[2], kernel.shape[1]
  x = _upright(projected, _GATES, hidden)
  matrix = jnp.swapaxes(_by_gate(kernel, hidden), -1, -2)  # [G, gate, out, in]
  matrix = matrix.reshape(-1, _GATES * MAX_HIDDEN, MAX_HIDDEN)
  bias = jnp.broadcast_to(_padded(bias[..., None], -2, MAX_HIDDEN), (*x.shape[:1], *x.shape[3:]))
  h, saved = _call(
    _forward,
    (1, 4),
    (x, _upright_scale(scale, x.shape), bias),
    [matrix],
    operands=1,
  )
  gates = _lying(saved, batch, hidden)
  h = _lying(h, batch, hidden)
  return h, *jnp.split(gates, (2 * hidden, 3 * hidden), axis=-1)


def backward(
  stacks: tuple[Array, Array, Array, Array, Array, Array | None], weights: tuple[Array]
) -> tuple[Array, Array]:
  """As `gru_loop.backward`."""
  *seen, scale = stacks  # gradient of the states, states before, z r, g, q
  batch, hidden = seen[0].shape[2:]
  seen = _upright(jnp.concatenate(seen, axis=-1), 6, hidden)
  matrices = _by_gate(weights[0], hidden)  # [G, gate, in, out]
  (found,) = _call(
    _backward,
    (4,),
    (seen, _upright_scale(scale, seen.shape)),
    [matrices[:, gate] for gate in range(_GATES)],
    operands=_GATES,
  )
  found = _lying(found, batch, hidden)  # of z, r, the candidate, and its recurrent part
  d_recurrent = jnp.concatenate([found[..., : 2 * hidden], found[..., 3 * hidden :]], axis=-1)
  return found[..., : 3 * hidden], d_recurrent


def _upright(steps: Array, gates: int, hidden: int) -> Array:
  """[G, T, B, gates · H] → [G, T, gates, 64, N]."""
  apart = steps.reshape(*steps.shape[:3], gates, hidden)
  columns = -(-steps.shape[2] // _COLUMNS) * _COLUMNS
  return _padded(_padded(jnp.moveaxis(apart, 2, -1), -2, MAX_HIDDEN), -1, columns)


def _lying(steps: Array, batch: int, hidden: int) -> Array:
  """[G, T, gates, 64, N] → [G, T, B, gates · H]."""
  apart = jnp.moveaxis(steps[..., :hidden, :batch], -1, 2)
  return apart.reshape(*apart.shape[:3], -1)


def _upright_scale(scale: Array | None, like: tuple[int, ...]) -> Array:
  """Dropout of the state, upright; ones where there is none."""
  groups, _, _, rows, columns = like
  if scale is None:
    return jnp.ones((groups, rows, columns), jnp.float32)
  return _padded(_padded(jnp.swapaxes(scale, 1, 2), 1, rows), 2, columns)


def _padded(array: Array, axis: int, size: int) -> Array:
  widths = [(0, 0)] * array.ndim
  widths[axis] = (0, size - array.shape[axis])
  return jnp.pad(array, widths)


def _by_gate(kernel: Array, hidden: int) -> Array:
  """[G, H, 3H] → [G, gate, 64, 64]."""
  apart = jnp.moveaxis(kernel.reshape(*kernel.shape[:2], _GATES, hidden), 2, 1)
  return _padded(_padded(apart, 2, MAX_HIDDEN), 3, MAX_HIDDEN)


def _split(values: Array) -> tuple[Array, Array]:
  """What TF32 holds of each number, and the rest."""
  bits = lax.bitcast_convert_type(values, jnp.int32) & jnp.int32(_TF32_BITS)
  held = lax.bitcast_convert_type(bits, jnp.float32)
  return held, values - held


def _parts(values: Array) -> tuple[Array, ...]:
  return _split(values) if mosaic.is_precise() else (values,)


def _call(
  kernel: Callable[..., None],
  gates: Sequence[int],
  args: Sequence[Array],
  matrices: Sequence[Array],
  *,
  operands: int,
) -> tuple[Array, ...]:
  """Calls `kernel` once a group.

  Args:
    kernel: of references to args, matrices, results, and in shared memory: the matrices, each in
      its parts; the operands, likewise; a barrier.
    gates: of each result [G, T, gates, 64, N].
    args: the first one is [G, T, …, 64, N].
    matrices: [G, rows, 64] each.
    operands: [N, 64] each, what the matrices are multiplied by.
  """
  groups, length, _, rows, columns = args[0].shape
  parts = [part for matrix in matrices for part in _parts(matrix)]
  count = len(parts) // len(matrices)
  shared = functools.partial(plgpu.SMEM, dtype=jnp.float32, transforms=_TRANSFORMS)
  return mosaic.call(
    functools.partial(kernel, length=length),
    [*args, parts],
    [jax.ShapeDtypeStruct((groups, length, n, rows, columns), jnp.float32) for n in gates],
    programs=groups,
    scratch=(
      [shared(part.shape[1:]) for part in parts],
      [[shared((columns, rows)) for _ in range(count)] for _ in range(operands)],
      plgpu.Barrier(num_barriers=len(parts)),
    ),
  )


def _fetch(matrices: Sequence[Any], shared: Sequence[Any], barrier: Any) -> None:
  """Copies this group's matrices into shared memory."""
  group = lax.axis_index("program")
  for i, (source, target) in enumerate(zip(matrices, shared)):
    plgpu.copy_gmem_to_smem(source.at[group], target, barrier.at[i])
  for i in range(len(shared)):
    plgpu.barrier_wait(barrier.at[i])


def _place(value: Array, operand: Sequence[Any]) -> None:
  """Writes an upright value [64, N] into shared memory for a product: [N, 64], in its parts."""
  for part, target in zip(_parts(value), operand):
    target.transpose((1, 0))[...] = plgpu.layout_cast(part, plgpu.Layout.WGMMA_TRANSPOSED)


def _products(shared: Sequence[Any], operands: Sequence[Sequence[Any]]) -> Array:
  """Σ matrix · operand, each in one part or in two."""
  plgpu.commit_smem()
  count = len(operands[0])
  pairs = ((0, 0), (0, 1), (1, 0))[: 1 if count == 1 else 3]

  def accumulate(sums):
    for i, operand in enumerate(operands):
      for left, right in pairs:
        plgpu.wgmma(sums, shared[count * i + left], operand[right].transpose((1, 0)))
    return sums[...]

  shape = (shared[0].shape[0], operands[0][0].shape[0])
  return pl.run_scoped(accumulate, plgpu.ACC(shape, jnp.float32))


def _read(ref: Any, *index: Any) -> Array:
  return mosaic.read(ref, *index, layout=plgpu.Layout.WGMMA)


def _zeros(columns: int) -> Array:
  return plgpu.layout_cast(jnp.zeros((MAX_HIDDEN, columns), jnp.float32), plgpu.Layout.WGMMA)


def _forward(
  x_ref, scale_ref, bias_ref, matrices, h_ref, saved_ref, shared, operands, barrier, *, length
):
  group = lax.axis_index("program")
  scale, bias = _read(scale_ref, group), _read(bias_ref, group)
  at = lambda t: [_read(x_ref, group, t, gate) for gate in range(_GATES)]
  _fetch(matrices, shared, barrier)

  def step(t, carry):
    h, x_z, x_r, x_g = carry
    coming = at(jnp.minimum(t + 1, length - 1))
    _place(h * scale, operands[0])
    recurrent = _products(shared, operands)
    z, r, q = (recurrent[i * MAX_HIDDEN : (i + 1) * MAX_HIDDEN] for i in range(_GATES))
    z, r, q = jax.nn.sigmoid(x_z + z), jax.nn.sigmoid(x_r + r), q + bias
    g = jnp.tanh(x_g + r * q)
    h = g + z * (h - g)
    h_ref[group, t, 0] = h
    for i, value in enumerate((z, r, g, q)):
      saved_ref[group, t, i] = value
    return h, *coming

  lax.fori_loop(0, length, step, (_zeros(x_ref.shape[-1]), *at(0)))


def _backward(seen_ref, scale_ref, matrices, out_ref, shared, operands, barrier, *, length):
  group = lax.axis_index("program")
  scale = _read(scale_ref, group)
  at = lambda t: [_read(seen_ref, group, t, i) for i in range(6)]
  _fetch(matrices, shared, barrier)

  def step(i, carry):
    d_state, d_h, before, z, r, g, q = carry
    t = length - 1 - i
    coming = at(jnp.maximum(t - 1, 0))
    d_state = d_state + d_h
    d_candidate = d_state * (1 - z) * (1 - g * g)
    d_z = d_state * (before - g) * z * (1 - z)
    d_r = d_candidate * q * r * (1 - r)
    d_q = d_candidate * r
    for n, value in enumerate((d_z, d_r, d_candidate, d_q)):
      out_ref[group, t, n] = value
    for operand, value in zip(operands, (d_z, d_r, d_q)):
      _place(value, operand)
    return z * d_state + _products(shared, operands) * scale, *coming

  lax.fori_loop(0, length, step, (_zeros(seen_ref.shape[-1]), *at(length - 1)))
