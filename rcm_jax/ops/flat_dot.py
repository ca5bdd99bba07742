"""A matrix product whose weight gradient stays one product when stacks are batched by `vmap`.

Under `vmap`, `x @ kernel` has rows [B, T, I], and the gradient of the kernel
contracts two axes at once. XLA:CPU then transposes and copies the operands
before it multiplies, which costs as much as a quarter of the products. Here
stacks that share a kernel become rows of one [B · T, I] × [I, J] product, and its
gradient is one plain product of matrices.
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
  return _flat_dot.bind(rows, kernel)


def _dot(rows: Array, kernel: Array) -> Array:
  return lax.dot_general(rows, kernel, (((1,), (0,)), ((), ())))


def _batch(args, axes):
  rows, kernel = args
  rows_axis, kernel_axis = axes
  if kernel_axis is not None or rows_axis == 2:
    return jax.vmap(_dot, axes)(rows, kernel), 0
  out = _flat_dot.bind(rows.reshape(-1, rows.shape[2]), kernel)
  return out.reshape(*rows.shape[:2], kernel.shape[1]), rows_axis


def _rows_gradient(d_out, rows, kernel):
  del rows
  return lax.dot_general(d_out, kernel, (((1,), (1,)), ((), ())))


def _kernel_gradient(d_out, rows, kernel):
  del kernel
  return lax.dot_general(rows, d_out, (((0,), (0,)), ((), ())))


_flat_dot = Primitive("flat_dot")
_flat_dot.def_impl(jax.jit(_dot))
_flat_dot.def_abstract_eval(
  lambda rows, kernel: jax.core.ShapedArray(
    (rows.shape[0], kernel.shape[1]), jnp.result_type(rows, kernel)
  )
)
mlir.register_lowering(_flat_dot, mlir.lower_fun(_dot, multiple_results=False))
ad.defbilinear(_flat_dot, _rows_gradient, _kernel_gradient)
batching.primitive_batchers[_flat_dot] = _batch
