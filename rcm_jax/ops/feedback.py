"""Decoders that are told how the previous slice was classified (paper, "decoder").

Each takes the context of a slice and the class probabilities of the slice above
it; above the first slice they are zero. Padded steps carry the state through and
return zero logits.
"""

from __future__ import annotations

from typing import Literal, get_args

import jax
import jax.numpy as jnp
from jax.typing import DTypeLike
from jaxtyping import Array, Bool, Float

from rcm_jax.ops.backend import check_implementation, has_kernels, knows_kernels, unroll
from rcm_jax.ops.flat_dot import flat_dot
from rcm_jax.ops.gru import GruParams

Implementation = Literal["auto", "scan", "pallas"]


def class_feedback(
  context: Float[Array, "T F"],
  params: dict[str, Array],
  mask: Bool[Array, "T"],
  *,
  labels: Float[Array, "T C"] | None = None,
  use_label: Bool[Array, "T"] | None = None,
  implementation: Implementation = "auto",
) -> Float[Array, "T C"]:
  """logits[n] = context[n] W + p[n - 1] U + b with p = softmax(logits), p[-1] = 0.

  Args:
    context: one vector a slice; padded rows may hold anything, NaN too.
    params: kernel [F, C], feedback_kernel [C, C], bias [C]. Without feedback_kernel it is a dense layer;
      without kernel, `context` [T, C] already is the product with it.
    mask: True on real slices.
    labels: one-hot strata of every slice. Given, the previous slice's label takes the place of its
      probabilities (teacher forcing). None: the decoder's own probabilities, gradient flows through them.
    use_label: with labels, the slices that are told the label; the others are told the probabilities
      (scheduled sampling). None: all.
    implementation: "scan" is a loop of XLA's, "pallas" one kernel for GPUs; "auto" is "pallas" for
      float32 on a GPU with jax 0.11 or later.

  Returns:
    Logits [T, C], zero on padding.

  Raises:
    ValueError: shapes disagree, or the implementation is unknown or cannot take them.
  """
  bias = params["bias"]
  classes = bias.shape[-1]
  _check(context, mask, labels, use_label, classes=classes, name="class_feedback")
  if "kernel" in params and params["kernel"].shape != (context.shape[1], classes):
    raise ValueError(
      f"class_feedback: kernel must be [F, C] = {(context.shape[1], classes)}, got {params['kernel'].shape}"
    )
  if "kernel" not in params and context.shape[1] != classes:
    raise ValueError(
      f"class_feedback: without kernel, context must be [T, C] = {(mask.shape[0], classes)}, got {context.shape}"
    )
  context = jnp.where(mask[:, None], context, 0)
  hoisted = (flat_dot(context, params["kernel"]) if "kernel" in params else context) + bias
  if "feedback_kernel" not in params:
    return jnp.where(mask[:, None], hoisted, 0)
  told, forced = _told(labels, use_label, mask, hoisted.dtype, classes)
  if _takes_kernel(implementation, hoisted.dtype):
    from rcm_jax.ops import feedback_mosaic  # takes a while to import, for nothing on a CPU

    flags = mask.astype(hoisted.dtype), forced.astype(hoisted.dtype)
    logits = feedback_mosaic.feed(hoisted, params["feedback_kernel"], flags[0], told, flags[1])
    return jnp.where(mask[:, None], logits, 0)

  def step(p, inputs):
    base, real, label, take = inputs
    logits = base + jnp.where(take, label, p) @ params["feedback_kernel"]
    return jnp.where(real, jax.nn.softmax(logits), p), logits

  start = jnp.zeros(classes, hoisted.dtype)
  logits = jax.lax.scan(step, start, (hoisted, mask, told, forced), unroll=unroll())[1]
  return jnp.where(mask[:, None], logits, 0)


def _takes_kernel(implementation: str, dtype: DTypeLike) -> bool:
  """Whether the kernel computes it."""
  check_implementation("class_feedback", implementation, get_args(Implementation))
  if implementation == "auto":
    return has_kernels() and dtype == jnp.float32
  if implementation == "pallas" and not (knows_kernels() and dtype == jnp.float32):
    raise ValueError(
      f"class_feedback: the kernel takes float32 and needs jax 0.11 or later, got {dtype} and "
      f"{jax.__version__}; leave implementation at 'auto'"
    )
  return implementation == "pallas"


def gru_feedback(
  context: Float[Array, "T F"],
  params: dict[str, GruParams | Array],
  mask: Bool[Array, "T"],
  *,
  labels: Float[Array, "T C"] | None = None,
  use_label: Bool[Array, "T"] | None = None,
  recurrent_mask: Float[Array, "H"] | None = None,
) -> Float[Array, "T C"]:
  """A GRU over [context[n], p[n - 1]] and a dense layer on its state: the decoder of global attention.

  Args:
    context: one vector a slice; padded rows may hold anything, NaN too.
    params: "gru" with kernel [F + C, 3H], recurrent_kernel [H, 3H], bias [2, 3H]; kernel [H, C], bias [C].
    mask: True on real slices.
    labels: one-hot strata for teacher forcing, as for `class_feedback`.
    use_label: the slices that are told the label, as for `class_feedback`.
    recurrent_mask: recurrent dropout, as for `ops.gru.gru`.

  Returns:
    Logits [T, C], zero on padding.

  Raises:
    ValueError: shapes disagree.
  """
  cell, kernel, bias = params["gru"], params["kernel"], params["bias"]
  features, classes = context.shape[-1], bias.shape[-1]
  hidden = cell["recurrent_kernel"].shape[0]
  _check(context, mask, labels, use_label, classes=classes, name="gru_feedback")
  if cell["kernel"].shape != (features + classes, 3 * hidden) or kernel.shape != (hidden, classes):
    raise ValueError(
      f"gru_feedback: gru kernel must be [F + C, 3H] = {(features + classes, 3 * hidden)} and kernel [H, C] = "
      f"{(hidden, classes)}, got {cell['kernel'].shape} and {kernel.shape}"
    )
  hoisted = (
    flat_dot(jnp.where(mask[:, None], context, 0), cell["kernel"][:features]) + cell["bias"][0]
  )
  told, forced = _told(labels, use_label, mask, hoisted.dtype, classes)

  def step(carry, inputs):
    h, p = carry
    base, real, label, take = inputs
    xp = base + jnp.where(take, label, p) @ cell["kernel"][features:]
    rec = (h if recurrent_mask is None else h * recurrent_mask) @ cell["recurrent_kernel"]
    rec = rec + cell["bias"][1]
    z = jax.nn.sigmoid(xp[:hidden] + rec[:hidden])
    r = jax.nn.sigmoid(xp[hidden : 2 * hidden] + rec[hidden : 2 * hidden])
    g = jnp.tanh(xp[2 * hidden :] + r * rec[2 * hidden :])
    new_h = z * h + (1 - z) * g
    logits = new_h @ kernel + bias
    h = jnp.where(real, new_h, h)
    p = jnp.where(real, jax.nn.softmax(logits), p)
    return (h, p), logits

  start = (jnp.zeros(hidden, hoisted.dtype), jnp.zeros(classes, hoisted.dtype))
  logits = jax.lax.scan(step, start, (hoisted, mask, told, forced), unroll=unroll())[1]
  return jnp.where(mask[:, None], logits, 0)


def _told(labels, use_label, mask, dtype, classes):
  """The label of the real slice before each slice (zero above the first), and where it is told."""
  length = mask.shape[0]
  if labels is None:
    return jnp.zeros((length, classes), dtype), jnp.zeros(length, bool)
  last_real = jax.lax.cummax(jnp.where(mask, jnp.arange(length), -1))
  before = jnp.concatenate([jnp.full(1, -1), last_real[:-1]])
  told = jnp.where((before >= 0)[:, None], labels[jnp.maximum(before, 0)], 0).astype(dtype)
  return told, jnp.ones(length, bool) if use_label is None else use_label


def _check(context, mask, labels, use_label, *, classes, name):
  if context.ndim != 2 or mask.shape != context.shape[:1]:
    raise ValueError(
      f"{name}: context must be [T, F] and mask [T], got {context.shape} and {mask.shape}"
    )
  if labels is not None and labels.shape != (mask.shape[0], classes):
    raise ValueError(
      f"{name}: labels must be [T, C] = {(mask.shape[0], classes)}, got {labels.shape}"
    )
  if use_label is not None and (labels is None or use_label.shape != mask.shape):
    raise ValueError(f"{name}: use_label must be [T] = {mask.shape} and needs labels")
