"""A matrix product whose weight gradient stays one product when stacks are batched by `vmap`.

Under `vmap`, `x @ kernel` has rows [B, T, I], and the gradient of the kernel
contracts two axes at once. XLA:CPU then transposes and copies the operands
before it multiplies, which costs as much as a quarter of the products. Here
stacks that share a kernel become rows of one [T · B, I] × [I, J] product, and its
gradient is one plain product of matrices. Steps stand before stacks, as in the
loops of `gru_loop`, so that nothing is transposed between the two.
"""

from __future__ import annotations

import jax
from jax import lax
from jax.extend.core import Primitive
from jax.interpreters import ad, batching, mlir
import jax.numpy as jnp
from jaxtyping import Array, Float


def flat_dot(rows: Float[Array, "T I"], kernel: Float[Array, "I J"]) -> Float[Array, "T J"]:
  """Rows @ kernel; batched over rows only, it stays one flat product, forward and backward."""
  return flat_dots(rows[None], kernel[None])[0]


def flat_dots(rows: Float[Array, "G T I"], kernels: Float[Array, "G I J"]) -> Float[Array, "G T J"]:
  """`flat_dot` of G kernels, each with rows of its own, as one batched product."""
  return _flat_dots.bind(rows, kernels)


def _dots(rows: Array, kernels: Array) -> Array:
  return lax.dot_general(rows, kernels, (((2,), (1,)), ((0,), (0,))))


def _batch(args, axes):
  rows, kernels = args
  rows_axis, kernels_axis = axes
  if kernels_axis is None:
    rows = jnp.moveaxis(rows, rows_axis, 2)
    groups, length, stacks, _ = rows.shape
    out = _flat_dots.bind(rows.reshape(groups, length * stacks, -1), kernels)
    return out.reshape(groups, length, stacks, -1), 2
  kernels = jnp.moveaxis(kernels, kernels_axis, 0)
  if rows_axis is None:
    rows = jnp.broadcast_to(rows, (kernels.shape[0], *rows.shape))
  else:
    rows = jnp.moveaxis(rows, rows_axis, 0)
  out = _flat_dots.bind(rows.reshape(-1, *rows.shape[2:]), kernels.reshape(-1, *kernels.shape[2:]))
  return out.reshape(*kernels.shape[:2], *out.shape[1:]), 0


def _rows_gradient(d_out, rows, kernels):
  del rows
  return lax.dot_general(d_out, kernels, (((2,), (2,)), ((0,), (0,))))


def _kernels_gradient(d_out, rows, kernels):
  del kernels
  if d_out.shape[2] < 8:  # XLA:CPU is slow at products with so narrow a right side
    return lax.optimization_barrier(_outer(d_out, rows)).swapaxes(1, 2)
  return _outer(rows, d_out)


def _outer(a: Array, b: Array) -> Array:
  return lax.dot_general(a, b, (((1,), (1,)), ((0,), (0,))))


_flat_dots = Primitive("flat_dots")
_flat_dots.def_impl(jax.jit(_dots))
_flat_dots.def_abstract_eval(
  lambda rows, kernels: jax.core.ShapedArray(
    (*rows.shape[:2], kernels.shape[2]), jnp.result_type(rows, kernels)
  )
)
mlir.register_lowering(_flat_dots, mlir.lower_fun(_dots, multiple_results=False))
ad.defbilinear(_flat_dots, _rows_gradient, _kernels_gradient)
batching.primitive_batchers[_flat_dots] = _batch
