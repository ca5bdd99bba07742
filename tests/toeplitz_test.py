"""Toeplitz attention: every form against the plain band matrix, in value and gradient."""

from __future__ import annotations

import functools
import itertools

import jax
import jax.numpy as jnp
import jaxtyping
import numpy as np
import precision
import pytest

from benchmarks import toeplitz_forms
from rcm_jax.ops import toeplitz

pytestmark = pytest.mark.kernels

FAST = ("auto", "shift")
MASKS = {
  "full": [1] * 12,
  "padded": [1] * 7 + [0] * 5,
  "one slice": [1] + [0] * 11,
  "holes": [1, 0, 1, 1, 0, 0] * 2,
}


def _case(length=12, hidden=5, half=2, dtype=jnp.float32, seed=0):
  rng = np.random.default_rng(seed)
  h, d_out = rng.normal(size=(2, length, hidden))
  weights = rng.dirichlet(np.ones(2 * half + 1))
  return (jnp.asarray(a, dtype) for a in (h, d_out, weights))


@functools.partial(jax.jit, static_argnames=("edge_mode", "implementation"))
def _value_and_gradient(h, weights, mask, d_out, **options):
  out, pull = jax.vjp(lambda h, w: toeplitz.toeplitz_attention(h, w, mask, **options), h, weights)
  return out, *pull(d_out)


_reference = functools.partial(_value_and_gradient, implementation="reference")


@pytest.mark.parametrize("edge_mode", ["zero", "renormalize"])
@pytest.mark.parametrize("mask", MASKS.values(), ids=MASKS)
def test_reference_is_the_sum_it_says(mask, edge_mode):
  h, _, weights = _case()
  out = np.zeros(h.shape)
  for n, k in itertools.product(range(12), range(-2, 3)):
    if mask[n] and 0 <= n + k < 12 and mask[n + k]:
      out[n] += float(weights[k + 2]) * np.asarray(h[n + k])
  if edge_mode == "renormalize":
    for n in range(12):
      out[n] /= max(
        1e-9, sum(float(weights[k + 2]) for k in range(-2, 3) if 0 <= n + k < 12 and mask[n + k])
      )
  got = toeplitz.toeplitz_attention(
    h, weights, jnp.asarray(mask, bool), edge_mode=edge_mode, implementation="reference"
  )
  precision.assert_close(got, out)


@pytest.mark.parametrize("implementation", FAST)
@pytest.mark.parametrize("edge_mode", ["zero", "renormalize"])
@pytest.mark.parametrize("mask", MASKS.values(), ids=MASKS)
def test_fast_forms_equal_reference_with_nan_in_padding(mask, edge_mode, implementation):
  h, d_out, weights = _case()
  mask = jnp.asarray(mask, bool)
  reference = functools.partial(_reference, edge_mode=edge_mode)
  spoiled = jnp.where(mask[:, None], h, jnp.nan)
  got = _value_and_gradient(
    spoiled, weights, mask, d_out, edge_mode=edge_mode, implementation=implementation
  )
  arguments = (h, weights, mask, d_out)
  terms = float(jnp.abs(h).max() * jnp.abs(d_out).max())  # a single weight's gradient cancels
  exact, plain = precision.references(reference, *arguments)
  precision.assert_close(got, exact, plain, scale=terms)
  assert not got[0][~mask].any()
  assert not got[1][~mask].any()


@pytest.mark.parametrize("implementation", FAST)
@pytest.mark.parametrize(("length", "half"), [(1, 3), (40, 0), (40, 3), (71, 1), (71, 15)])
def test_every_length_and_half_width(length, half, implementation):
  h, d_out, weights = _case(length, 3, half)
  mask = jnp.arange(length) < max(1, length - 2)
  arguments = (h, weights, mask, d_out)
  got = _value_and_gradient(*arguments, implementation=implementation)
  precision.assert_close(got, *precision.references(_reference, *arguments))


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16, jnp.float64])
@pytest.mark.parametrize("implementation", FAST)
def test_dtypes(dtype, implementation):
  with jax.enable_x64(dtype == jnp.float64):
    h, d_out, weights = _case(dtype=dtype)
    arguments = (h, weights, jnp.arange(12) < 9, d_out)
    got = _value_and_gradient(*arguments, implementation=implementation)
    plain = _reference(*arguments)
  assert {a.dtype for a in got} == {jnp.dtype(dtype)}
  precision.assert_close(got, precision.in_float64(_reference, *arguments), plain)


@pytest.mark.parametrize("implementation", FAST)
def test_batched_programs_equal_single_stacks(implementation):
  """Stacks share weights, members do not; compiled together they give what each gives alone."""
  rng = np.random.default_rng(1)
  h, d_out = jnp.asarray(rng.normal(size=(2, 3, 4, 12, 5)), jnp.float32)
  weights = jnp.asarray(rng.dirichlet(np.ones(5), size=3), jnp.float32)
  mask = jnp.arange(12) < jnp.array([12, 7, 1, 3])[:, None]

  def loss(h, w, d, implementation):
    one = lambda h, m: toeplitz.toeplitz_attention(h, w, m, implementation=implementation)
    return jnp.vdot(jax.vmap(one)(h, mask), d)

  members = jax.jit(jax.vmap(jax.grad(loss, argnums=(0, 1)), (0, 0, 0, None)), static_argnums=3)
  got = members(h, weights, d_out, implementation)
  alone = lambda *a: jax.grad(loss, argnums=(0, 1))(*a, "reference")
  for m in range(3):
    exact, plain = precision.references(alone, h[m], weights[m], d_out[m])
    precision.assert_close(tuple(a[m] for a in got), exact, plain)


def test_shifts_in_depth():
  """A unit weight at k = +1 brings the deeper neighbor's vector."""
  h, _, _ = _case()
  out = toeplitz.toeplitz_attention(h, jnp.array([0.0, 0.0, 1.0]), jnp.ones(12, bool))
  np.testing.assert_array_equal(out[:-1], h[1:])


def test_weights_are_convex_and_honor_traced_half_width():
  logits = jnp.linspace(-1, 2, 7)
  widths = jnp.arange(4)
  weights = jax.jit(jax.vmap(toeplitz.toeplitz_weights, (None, 0)))(logits, widths)
  precision.assert_close(weights.sum(1), np.ones(4))
  for d, row in enumerate(weights):
    assert (np.asarray(row) > 0).sum() == 2 * d + 1
    exact = precision.in_float64(toeplitz.toeplitz_weights, logits[3 - d : 4 + d])
    precision.assert_close(row[3 - d : 4 + d], exact)
  gradient = jax.grad(lambda x: toeplitz.toeplitz_weights(x, 1)[2])(logits)
  assert np.isfinite(gradient).all()
  assert not gradient[:2].any()
  assert not gradient[5:].any()


@pytest.mark.parametrize(
  ("h", "taps", "mask", "options", "message"),
  [
    ((6, 2), 4, 6, {}, "odd, got shape \\(4,\\)"),
    ((6, 2), 3, 5, {}, "h \\(6, 2\\) and mask \\(5,\\)"),
    ((6, 2), 3, 6, {"implementation": "fast"}, "'fast'"),
    ((6, 2), 3, 6, {"edge_mode": "wrap"}, "'wrap'"),
  ],
)
def test_wrong_arguments_are_named_at_trace_time(
  h, taps, mask, options, message, without_type_checks
):
  call = lambda: toeplitz.toeplitz_attention(
    jnp.zeros(h), jnp.zeros(taps), jnp.ones(mask, bool), **options
  )
  with pytest.raises(ValueError, match=message):
    jax.eval_shape(call)


@pytest.fixture
def without_type_checks():
  """What users run: the annotations are checked in tests only."""
  jaxtyping.config.update("jaxtyping_disable", True)
  yield
  jaxtyping.config.update("jaxtyping_disable", False)


@pytest.mark.parametrize("form", toeplitz_forms.BATCHED)
@pytest.mark.parametrize("half", [0, 2, 6])
def test_forms_that_are_timed_compute_the_same(form, half):
  h, d_out, weights = _case(half=half)
  mask = jnp.asarray(MASKS["padded"], bool)
  reference = functools.partial(_reference, edge_mode="zero")
  arguments = (h, weights, mask, d_out)

  def timed(h, weights, mask, d_out):
    one = lambda h, w: toeplitz_forms.BATCHED[form](h[None], w, mask[None])[0]
    out, pull = jax.vjp(one, h, weights)
    return out, *pull(d_out)

  exact, plain = precision.references(reference, *arguments)
  terms = float(jnp.abs(h).max() * jnp.abs(d_out).max())
  precision.assert_close(jax.jit(timed)(*arguments), exact, plain, scale=terms)
