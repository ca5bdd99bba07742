"""The GRU's recurrence as two short loops: the backward one carries only the gradient of the state.

Everything that is not recurrent stays outside as one large product: the input
projection before the loop, and after the backward loop the gradients of the
weights, inputs and biases (as in cuDNN).

How the gradients stay flat under `vmap`. A `custom_vjp` whose arguments include
the weights returns one weight gradient a stack, [B, H, 3H], and JAX sums them.
Here the custom rule (`_attach`) returns only the gradient of the
pre-activations, as two additive inputs; the recurrent one is fed by `_probe`, a
function that is zero but has the derivative of h · U. Its transpose is the
gradient of `flat_dots`: one product over T · B.

How one loop serves stacks, directions and members. Arrays in the loops are
[G, T, B, …]: G sets of weights (directions, members), B stacks that share
them. `_batched` is the batching rule of both loops: a batch axis with its own
weights joins G, any other joins B.
"""

from __future__ import annotations

from collections.abc import Callable
import functools

import jax
from jax import lax
from jax.custom_batching import custom_vmap
import jax.numpy as jnp
from jaxtyping import Array, Float

from rcm_jax.ops import gru_unrolled
from rcm_jax.ops.flat_dot import flat_dots


def recurrence(
  projected: Float[Array, "G T threeH"],
  recurrent_kernel: Float[Array, "G H threeH"],
  bias: Float[Array, "G H"],
  real: Float[Array, "G T 1"],
  recurrent_mask: Float[Array, "G H"] | None,
  *,
  form: str = "scan",
) -> Float[Array, "G T H"]:
  """States of G recurrences of one stack.

  Args:
    projected: x W plus every bias but the one below, in the order of the steps.
    recurrent_kernel: U, gates z, r, h.
    bias: recurrent bias of the candidate, which the reset gate multiplies.
    real: 1 on real steps, 0 on padded ones.
    recurrent_mask: multiplies the state that enters the product.
    form: "scan" for these loops, "unrolled" for those of `gru_unrolled`, "pallas" for the kernels of
      `gru_mosaic`, "gpu" for these where they fit and the unrolled loops where not.

  Returns:
    State after each step.
  """
  x, kernel, candidate_bias, scale = lax.stop_gradient(
    (projected, recurrent_kernel, bias, recurrent_mask)
  )
  scale = None if scale is None else scale[:, None]
  run = _batched(_loops(form)[0])
  h, zr, g, q = (a[:, :, 0] for a in run((x[:, :, None], scale), (kernel, candidate_bias)))
  before = jnp.concatenate([jnp.zeros_like(h[:, :1]), h[:, :-1]], axis=1)
  scaled = before if scale is None else before * scale
  recurrent = _probe(scaled, recurrent_kernel, real, bias)
  return _attach(form, projected, recurrent, h, (before, zr, g, q), (scale, kernel))


def _loops(form: str) -> tuple[Callable, Callable]:
  """The loop forward and the one backward."""
  if form == "scan":
    return forward, backward
  if form == "unrolled":
    return gru_unrolled.forward, gru_unrolled.backward
  from rcm_jax.ops import gru_mosaic  # takes a while to import, for nothing on a CPU

  def choose(kernel, loop):
    def run(stacks, weights):
      hidden, batch, dtype = weights[0].shape[1], stacks[0].shape[2], stacks[0].dtype
      if gru_mosaic.fits(hidden, batch, dtype):
        return kernel(stacks, weights)
      if form == "gpu":
        return loop(stacks, weights)
      raise ValueError(
        f"gru: the kernels take float32, up to {gru_mosaic.MAX_HIDDEN} units and up to "
        f"{gru_mosaic.MAX_STACKS} stacks that share weights, got {dtype}, {hidden} and {batch}; leave "
        "implementation at 'auto'"
      )

    return run

  return (
    choose(gru_mosaic.forward, gru_unrolled.forward),
    choose(gru_mosaic.backward, gru_unrolled.backward),
  )


def _batched(loop: Callable) -> Callable:
  """`loop(stacks, weights)` that vmap folds into its own G or B axis."""
  call = custom_vmap(loop)

  @call.def_vmap
  def rule(size, batched, stacks, weights):
    spread = functools.partial(
      jax.tree.map, lambda a, is_batched: a if is_batched else jnp.broadcast_to(a, (size, *a.shape))
    )
    stacks = spread(stacks, batched[0])
    own_weights = any(jax.tree.leaves(batched[1]))
    if own_weights:  # [V, G, …] → [V · G, …]
      fold = lambda a: a.reshape(-1, *a.shape[2:])
      unfold = lambda a: a.reshape(size, -1, *a.shape[1:])
      weights = jax.tree.map(fold, spread(weights, batched[1]))
    else:  # [V, …, B, H] → […, V · B, H]
      fold = lambda a: jnp.moveaxis(a, 0, -3).reshape(*a.shape[1:-2], -1, a.shape[-1])
      unfold = lambda a: jnp.moveaxis(a.reshape(*a.shape[:-2], size, -1, a.shape[-1]), -3, 0)
    out = jax.tree.map(unfold, call(jax.tree.map(fold, stacks), weights))
    return out, jax.tree.map(lambda _: True, out)

  return call


def forward(
  stacks: tuple[Array, Array | None], weights: tuple[Array, Array]
) -> tuple[Array, Array, Array, Array]:
  """The forward loop.

  Args:
    stacks: projected inputs [G, T, B, 3H]; dropout of the state [G, B, H] or None.
    weights: recurrent kernel [G, H, 3H]; recurrent bias of the candidate [G, H].

  Returns:
    For every step [G, T, B, …]: the state [H], the gates z and r [2H], the candidate g [H], and the
    candidate's recurrent part q [H].
  """
  projected, scale = stacks
  kernel, bias = weights
  groups, length, batch, _ = projected.shape
  hidden = kernel.shape[1]

  def step(t, carry):
    h, hs, zrs, gs, qs = carry
    x = _at(projected, t)
    recurrent = _product(h if scale is None else h * scale, kernel)
    # Each value is written to its buffer and read back, so that XLA:CPU computes it once; written as
    # plain expressions the last fusion evaluates every gate again, four times as slowly.
    zrs = _put(zrs, jax.nn.sigmoid(x[..., : 2 * hidden] + recurrent[..., : 2 * hidden]), t)
    zr = _at(zrs, t)
    q = recurrent[..., 2 * hidden :] + bias[:, None]
    gs = _put(gs, jnp.tanh(x[..., 2 * hidden :] + zr[..., hidden:] * q), t)
    g = _at(gs, t)
    h = g + zr[..., :hidden] * (h - g)
    return h, _put(hs, h, t), zrs, gs, _put(qs, q, t)

  buffers = (jnp.zeros((groups, length, batch, n * hidden), projected.dtype) for n in (1, 2, 1, 1))
  start = jnp.zeros((groups, batch, hidden), projected.dtype)
  return lax.fori_loop(0, length, step, (start, *buffers))[1:]


def backward(
  stacks: tuple[Array, Array, Array, Array, Array, Array | None], weights: tuple[Array]
) -> tuple[Array, Array]:
  """The backward loop.

  Args:
    stacks: gradient of the states, the states before each step, and z r, g, q of `forward`, all
      [G, T, B, …]; dropout of the state [G, B, H] or None.
    weights: recurrent kernel [G, H, 3H].

  Returns:
    Gradients [G, T, B, 3H] of the pre-activations: with respect to the projected inputs, and with
    respect to the recurrent product. They differ in the candidate, by the reset gate.
  """
  d_h, before, zr, g, q, scale = stacks
  groups, length, batch, hidden = d_h.shape
  transposed = jnp.swapaxes(weights[0], 1, 2)

  def step(i, carry):
    d_state, d_candidates, d_recurrents = carry
    t = length - 1 - i
    d_state = d_state + _at(d_h, t)
    z, r = _at(zr, t)[..., :hidden], _at(zr, t)[..., hidden:]
    candidate, state = _at(g, t), _at(before, t)
    # Each gate's gradient goes to its place in the buffer: as one concatenation, here or after the
    # loop, they take twice the time on a CPU.
    d_candidates = _put(d_candidates, d_state * (1 - z) * (1 - candidate * candidate), t)
    d_candidate = _at(d_candidates, t)
    gates = (
      d_state * (state - candidate) * z * (1 - z),
      d_candidate * _at(q, t) * r * (1 - r),
      d_candidate * r,
    )
    for gate, value in enumerate(gates):
      d_recurrents = _put(d_recurrents, value, t, gate * hidden)
    back = _product(_at(d_recurrents, t), transposed)
    return z * d_state + (back if scale is None else back * scale), d_candidates, d_recurrents

  start = (
    jnp.zeros_like(d_h[:, 0]),
    jnp.zeros_like(d_h),
    jnp.zeros((groups, length, batch, 3 * hidden), d_h.dtype),
  )
  _, d_candidates, d_recurrent = lax.fori_loop(0, length, step, start)
  d_projected = lax.dynamic_update_slice_in_dim(d_recurrent, d_candidates, 2 * hidden, axis=3)
  return d_projected, d_recurrent


def _product(rows: Array, kernel: Array) -> Array:
  return jnp.einsum("gbi,gij->gbj", rows, kernel)


def _at(array: Array, step: Array) -> Array:
  return lax.dynamic_index_in_dim(array, step, axis=1, keepdims=False, allow_negative_indices=False)


def _put(array: Array, value: Array, step: Array, column: int = 0) -> Array:
  return lax.dynamic_update_slice(
    array, value[:, None], (0, step, 0, column), allow_negative_indices=False
  )


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _attach(form, projected, recurrent, h, saved, fixed):
  """The states `h`, already computed, with their gradient in both pre-activations."""
  del form, projected, recurrent, saved, fixed
  return h


def _attach_forward(form, projected, recurrent, h, saved, fixed):
  del form, projected, recurrent
  return h, (saved, fixed)


def _attach_backward(form, residuals, d_h):
  saved, (scale, kernel) = residuals
  run = _batched(_loops(form)[1])
  stacks = (*(a[:, :, None] for a in (d_h, *saved)), scale)
  d_projected, d_recurrent = run(stacks, (kernel,))
  return d_projected[:, :, 0], d_recurrent[:, :, 0], None, None, None


_attach.defvjp(_attach_forward, _attach_backward)


@jax.custom_jvp
def _probe(before, kernel, real, bias):
  """Zero, with the derivative of before · kernel + bias in kernel and bias; the bias acts on the candidate only."""
  del real, bias
  return jnp.zeros((*before.shape[:-1], kernel.shape[-1]), before.dtype)


@_probe.defjvp
def _probe_jvp(primals, tangents):
  before, _, real, bias = primals
  _, d_kernel, _, d_bias = tangents
  zeros = jnp.zeros((*bias.shape[:-1], 2 * bias.shape[-1]), bias.dtype)
  d_biases = jnp.concatenate([zeros, d_bias], axis=-1)[:, None]
  return _probe(*primals), flat_dots(before, d_kernel) + flat_dots(real, d_biases)
