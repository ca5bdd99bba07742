"""Class feedback as two kernels for NVIDIA GPUs: a thread a stack and member, the time loop inside.

A step of `feedback.class_feedback` is a product of 3 × 3 and a softmax of three numbers. XLA
launches 12 kernels for each, forward and backward; here three numbers and nine weights stay in a
thread's registers for all steps.
"""

from __future__ import annotations

import functools
from typing import Any

import jax
from jax import lax
from jax.custom_batching import custom_vmap
from jax.experimental import pallas as pl
import jax.numpy as jnp
from jaxtyping import Array

from rcm_jax.ops import mosaic

_THREADS = 128  # of a program, one a stack and member


@jax.custom_vjp
def feed(base: Array, kernel: Array, real: Array, told: Array, take: Array) -> Array:
  """logits[n] = base[n] + p[n - 1] U of one stack, as the loop of `feedback.class_feedback`.

  Args:
    base: [T, C], what does not depend on the slice above.
    kernel: U, [C, C].
    real: [T], 1 on real slices; a padded one passes p on.
    told: [T, C], labels of the slices above.
    take: [T], 1 where the label takes the place of p.

  Returns:
    Logits [T, C], on padding too.
  """
  return _feed_forward(base, kernel, real, told, take)[0]


def _feed_forward(base, kernel, real, told, take):
  lanes = tuple(a[..., None] for a in (base, kernel, real, told, take))
  logits, fed = (a[..., 0] for a in _batched(_run_forward)(*lanes))
  return logits, (logits, fed, kernel, real, take)


def _feed_backward(saved, d_logits):
  logits, fed, kernel, real, take = saved
  lanes = tuple(a[..., None] for a in (d_logits, logits, kernel, real, take))
  (d_base,) = (a[..., 0] for a in _batched(_run_backward)(*lanes))
  return d_base, fed.T @ d_base, None, None, None


feed.defvjp(_feed_forward, _feed_backward)


def _batched(run):
  """`run` of arrays whose last axis is that of stacks and members, which any vmap joins."""
  call = custom_vmap(run)

  @call.def_vmap
  def rule(size, batched, *args):
    def join(array, is_batched):
      array = array if is_batched else jnp.broadcast_to(array, (size, *array.shape))
      return jnp.moveaxis(array, 0, -2).reshape(*array.shape[1:-1], -1)

    out = call(*map(join, args, batched))
    divide = lambda a: jnp.moveaxis(a.reshape(*a.shape[:-1], size, -1), -2, 0)
    return tuple(map(divide, out)), (True,) * len(out)

  return call


def _run_forward(base, kernel, real, told, take):
  return _call(_forward, 2, base.shape, (base, kernel, real, told, take))


def _run_backward(d_logits, logits, kernel, real, take):
  return _call(_backward, 1, logits.shape, (d_logits, logits, kernel, real, take))


def _call(kernel, results: int, shape: tuple[int, ...], args: tuple[Array, ...]):
  lanes = shape[-1]
  more = -lanes % _THREADS
  filled = [jnp.pad(a, [(0, 0)] * (a.ndim - 1) + [(0, more)]) for a in args]
  out = jax.ShapeDtypeStruct((*shape[:-1], lanes + more), jnp.float32)
  run = functools.partial(kernel, length=shape[0], classes=shape[1])
  found = mosaic.call(run, filled, [out] * results, programs=(lanes + more) // _THREADS)
  return tuple(a[..., :lanes] for a in found)


def _mine() -> Any:
  return pl.ds(pl.multiple_of(lax.axis_index("program") * _THREADS, _THREADS), _THREADS)


def _softmax(logits: list[Array]) -> list[Array]:
  largest = functools.reduce(jnp.maximum, logits)
  powers = [jnp.exp(x - largest) for x in logits]
  total = functools.reduce(jnp.add, powers)
  return [x / total for x in powers]


def _matrix(kernel_ref, classes: int, mine) -> list[list[Array]]:
  return [[mosaic.read(kernel_ref, i, j, mine) for j in range(classes)] for i in range(classes)]


def _forward(
  base_ref, kernel_ref, real_ref, told_ref, take_ref, logits_ref, fed_ref, *, length, classes
):
  mine = _mine()
  weights = _matrix(kernel_ref, classes, mine)

  def step(t, before):
    real, take = mosaic.read(real_ref, t, mine), mosaic.read(take_ref, t, mine)
    told = [mosaic.read(told_ref, t, c, mine) for c in range(classes)]
    fed = [p + take * (label - p) for p, label in zip(before, told)]
    logits = []
    for j in range(classes):
      value = mosaic.read(base_ref, t, j, mine)
      for i in range(classes):
        value = value + fed[i] * weights[i][j]
      logits.append(value)
      logits_ref[t, j, mine] = value
      fed_ref[t, j, mine] = fed[j]
    return tuple(p + real * (new - p) for p, new in zip(before, _softmax(logits)))

  zeros = tuple(jnp.zeros((_THREADS,), jnp.float32) for _ in range(classes))
  lax.fori_loop(0, length, step, zeros)


def _backward(
  d_logits_ref, logits_ref, kernel_ref, real_ref, take_ref, d_base_ref, *, length, classes
):
  mine = _mine()
  weights = _matrix(kernel_ref, classes, mine)

  def step(i, d_after):
    t = length - 1 - i
    real, take = mosaic.read(real_ref, t, mine), mosaic.read(take_ref, t, mine)
    p = _softmax([mosaic.read(logits_ref, t, c, mine) for c in range(classes)])
    along = functools.reduce(jnp.add, [a * b for a, b in zip(d_after, p)])
    d_logits = []
    for c in range(classes):
      value = mosaic.read(d_logits_ref, t, c, mine) + real * p[c] * (d_after[c] - along)
      d_logits.append(value)
      d_base_ref[t, c, mine] = value
    found = []
    for c in range(classes):
      d_fed = functools.reduce(jnp.add, [w * d for w, d in zip(weights[c], d_logits)])
      found.append((1 - real) * d_after[c] + (1 - take) * d_fed)
    return tuple(found)

  zeros = tuple(jnp.zeros((_THREADS,), jnp.float32) for _ in range(classes))
  lax.fori_loop(0, length, step, zeros)
