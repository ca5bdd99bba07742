"""Toeplitz attention against XLA's convolution, the dense band product and masked dot-product attention."""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
import numpy as np

from benchmarks import timing, toeplitz_forms
from rcm_jax.ops.toeplitz import toeplitz_attention

# stacks, slices, width, half-width: one training batch; 64 MB at the paper's length and at a longer one
CASES = [
  (4, 71, 128, 1),
  (4, 71, 128, 7),
  (4, 512, 128, 15),
  (1850, 71, 128, 1),
  (1850, 71, 128, 7),
  (1850, 71, 128, 15),
  (256, 512, 128, 7),
]


def rows(peers: bool) -> list[dict]:
  """Forward, and forward + backward in both arguments, of every form."""
  return [r for case in CASES for r in case_rows(*case, peers=peers)]


def case_rows(stacks: int, length: int, hidden: int, half: int, *, peers: bool) -> list[dict]:
  """The rows of one case."""
  rng = np.random.default_rng(0)
  h, d_out = jnp.asarray(rng.normal(size=(2, stacks, length, hidden)), jnp.float32)
  weights = jnp.asarray(rng.dirichlet(np.ones(2 * half + 1)), jnp.float32)
  mask = jnp.ones((stacks, length), bool)
  forms = {"ours": _ours("auto")}
  if peers:
    forms |= {
      "lax.conv": toeplitz_forms.BATCHED["conv"],
      "dense band": _ours("reference"),
      "blocked band": toeplitz_forms.BATCHED["band"],
    }
    if stacks * length**2 * 4 < 2**31:
      forms["jax.nn.dot_product_attention"] = _dot_product
  size = h.nbytes
  name = f"{stacks} × {length} × {hidden}, D = {half}"
  out = []
  for label, traffic, wrap in (
    ("forward", 2 * size, lambda f: lambda h, weights, mask, d_out: f(h, weights, mask)),
    # forward reads h and writes out; backward reads h and the gradient and writes the gradient of h
    ("forward + backward", 5 * size, _with_gradient),
  ):
    calls = {}
    for form, function in forms.items():
      arguments = (h, weights, mask, d_out)
      calls[form] = functools.partial(
        jax.jit(wrap(function)).lower(*arguments).compile(), *arguments
      )
    calls["copy"] = functools.partial(jax.jit(lambda h: h + 1), h)
    timed = timing.alternate(
      calls, repeats=15 if size < 2**22 else 9, min_seconds=0.01, settle=True
    )
    floor = traffic / (2 * size) * timed["copy"]["median"]
    out += [timing.row("toeplitz", f"{name}, {label}", k, t, floor) for k, t in timed.items()]
  return out


def _ours(implementation: str):
  one = functools.partial(toeplitz_attention, implementation=implementation)
  return jax.vmap(one, (0, None, 0))


def _dot_product(h, weights, mask):
  """The same map through softmax attention: log-weights as bias, masked outside the band."""
  length, half = h.shape[1], weights.shape[0] // 2
  offset = jnp.arange(length)[None, :] - jnp.arange(length)[:, None]
  inside = jnp.abs(offset) <= half
  bias = jnp.where(inside, jnp.log(weights)[jnp.clip(offset + half, 0, 2 * half)], 0)
  value = h[:, :, None, :]
  nothing = jnp.zeros_like(value)  # the scores are the bias alone
  seen = inside[None, None] & mask[:, None, None, :]
  out = jax.nn.dot_product_attention(nothing, nothing, value, bias=bias[None, None], mask=seen)
  return out[:, :, 0]


def _with_gradient(function):
  def both(h, weights, mask, d_out):
    out, pull = jax.vjp(lambda h, w: function(h, w, mask), h, weights)
    return out, pull(d_out)

  return both
