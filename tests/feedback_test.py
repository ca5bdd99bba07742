"""Decoders with class feedback, against plain loops over the slices."""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
import jaxtyping
import numpy as np
import precision
import pytest

from rcm_jax.ops import backend, feedback, gru

pytestmark = pytest.mark.kernels

T, F, H, C = 8, 5, 4, 3
MASKS = [[1] * 8, [1] * 5 + [0] * 3, [1, 0, 1, 1, 0, 0, 1, 0]]


def _normal(rng, *shape):
  return jnp.asarray(rng.normal(size=shape), jnp.float32)


def _dense_params(rng):
  return {
    "kernel": _normal(rng, F, C),
    "feedback_kernel": _normal(rng, C, C),
    "bias": _normal(rng, C),
  }


def _gru_params(rng):
  cell = {
    "kernel": _normal(rng, F + C, 3 * H),
    "recurrent_kernel": _normal(rng, H, 3 * H),
    "bias": _normal(rng, 2, 3 * H),
  }
  return {"gru": cell, "kernel": _normal(rng, H, C), "bias": _normal(rng, C)}


def _dense_step(params, context, told, state):
  return context @ params["kernel"] + told @ params["feedback_kernel"] + params["bias"], state


def _gru_step(params, context, told, state):
  """One step of the GRU on [context, told], whose state enters as a first slice would leave it."""
  cell = params["gru"]
  x = jnp.concatenate([context, told]) @ cell["kernel"] + cell["bias"][0]
  rec = state @ cell["recurrent_kernel"] + cell["bias"][1]
  z, r = (jax.nn.sigmoid(x[i * H : (i + 1) * H] + rec[i * H : (i + 1) * H]) for i in (0, 1))
  state = z * state + (1 - z) * jnp.tanh(x[2 * H :] + r * rec[2 * H :])
  return state @ params["kernel"] + params["bias"], state


def _loop(step, params, context, mask, labels=None, use_label=None):
  """The decoder as one would write it on paper: only real slices exist."""
  told, state, out = jnp.zeros(C), jnp.zeros(H), []
  previous = None
  for n in range(T):
    if not mask[n]:
      out.append(jnp.zeros(C))
      continue
    given = told
    if labels is not None and (use_label is None or use_label[n]):
      given = jnp.zeros(C) if previous is None else labels[previous]
    logits, state = step(params, context[n], given, state)
    told, previous = jax.nn.softmax(logits), n
    out.append(logits)
  return jnp.stack(out)


CASES = {
  "class": (feedback.class_feedback, _dense_step, _dense_params),
  "gru": (feedback.gru_feedback, _gru_step, _gru_params),
  "kernel": (
    functools.partial(feedback.class_feedback, implementation="pallas"),
    _dense_step,
    _dense_params,
  ),
}


NEEDS_KERNELS = pytest.mark.skipif(
  not backend.knows_kernels(), reason="the kernels need jax 0.11 or later"
)


@pytest.mark.parametrize("mode", ["own", "teacher", "scheduled"])
@pytest.mark.parametrize("name", [*list(CASES)[:-1], pytest.param("kernel", marks=NEEDS_KERNELS)])
@pytest.mark.parametrize("mask", MASKS, ids=["full", "padded", "holes"])
def test_equals_a_plain_loop_with_nan_in_padding(mask, name, mode):
  decoder, step, make = CASES[name]
  rng = np.random.default_rng(0)
  params, context = make(rng), _normal(rng, T, F)
  labels = jax.nn.one_hot(rng.integers(0, C, T), C) if mode != "own" else None
  told = rng.integers(0, 2, T).astype(bool) if mode == "scheduled" else None
  weights = _normal(rng, T, C)
  real = jnp.asarray(mask, bool)
  use_label = None if told is None else jnp.asarray(told)
  run = lambda p, x: decoder(x, p, real, labels=labels, use_label=use_label)
  spoiled = jnp.where(real[:, None], context, jnp.nan)

  @jax.jit
  def got(params, context):
    out, pull = jax.vjp(run, params, context)
    return out, *pull(weights)

  def loop(params, context, labels, weights):
    out, pull = jax.vjp(lambda p, x: _loop(step, p, x, mask, labels, told), params, context)
    return out, *pull(weights)

  exact, plain = precision.references(loop, params, context, labels, weights)
  precision.assert_close(got(params, spoiled), exact, plain)


@NEEDS_KERNELS
def test_stacks_and_members_share_the_kernels_threads():
  rng = np.random.default_rng(6)
  members, stacks = 3, 50  # more than the 128 threads of one program
  params = jax.tree.map(lambda *p: jnp.stack(p), *(_dense_params(rng) for _ in range(members)))
  context, weights = _normal(rng, stacks, T, F), _normal(rng, members, stacks, T, C)
  real = jnp.asarray(rng.integers(0, 2, (stacks, T)), bool)

  def loss(implementation, params, context, weights):
    run = functools.partial(feedback.class_feedback, implementation=implementation)
    one = jax.vmap(run, (0, None, 0))
    return jnp.vdot(jax.vmap(one, (None, 0, None))(context, params, real), weights)

  got, expected = (
    jax.jit(jax.value_and_grad(functools.partial(loss, name), (0, 1)))(params, context, weights)
    for name in ("pallas", "scan")
  )
  jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-4), got, expected)


def test_gradient_flows_through_own_probabilities_but_not_through_labels():
  rng = np.random.default_rng(1)
  params, context, real = _dense_params(rng), _normal(rng, T, F), jnp.ones(T, bool)
  last = lambda x, labels: feedback.class_feedback(x, params, real, labels=labels)[-1].sum()
  gradient = jax.jit(jax.grad(last))
  assert jnp.abs(gradient(context, None)[0]).max() > 0
  assert not gradient(context, jnp.eye(C)[jnp.zeros(T, int)])[:-1].any()


def test_without_feedback_kernel_it_is_a_dense_layer():
  rng = np.random.default_rng(2)
  params, context = _dense_params(rng), _normal(rng, T, F)
  del params["feedback_kernel"]
  got = jax.jit(feedback.class_feedback)(context, params, jnp.ones(T, bool))
  dense = lambda x, p: x @ p["kernel"] + p["bias"]
  precision.assert_close(got, *precision.references(dense, context, params))


def test_without_kernel_it_goes_on_from_the_product_with_it():
  rng = np.random.default_rng(5)
  params, context, real = _dense_params(rng), _normal(rng, T, F), jnp.asarray(MASKS[2], bool)
  whole = lambda x, p: feedback.class_feedback(x, p, real)
  exact, plain = precision.references(whole, context, params)
  projected = context @ params.pop("kernel")
  precision.assert_close(jax.jit(whole)(projected, params), exact, plain)


def test_gru_decoder_without_feedback_rows_is_a_gru():
  """With a zero kernel for the classes the recurrence is that of `gru`."""
  rng = np.random.default_rng(3)
  params, context, real = _gru_params(rng), _normal(rng, T, F), jnp.ones(T, bool)
  params["gru"]["kernel"] = params["gru"]["kernel"].at[F:].set(0)
  dropped = jnp.array([2.0, 0.0, 2.0, 0.0])

  def plain(context, params):
    cell = params["gru"] | {"kernel": params["gru"]["kernel"][:F]}
    states = gru.gru(context, cell, real, recurrent_mask=dropped.astype(context.dtype))
    return states @ params["kernel"] + params["bias"]

  got = jax.jit(feedback.gru_feedback)(context, params, real, recurrent_mask=dropped)
  precision.assert_close(got, *precision.references(plain, context, params))


def test_wrong_shapes_are_named():
  rng = np.random.default_rng(4)
  jaxtyping.config.update("jaxtyping_disable", True)  # what users run
  try:
    with pytest.raises(ValueError, match=r"got \(8, 5\) and \(7,\)"):
      feedback.class_feedback(jnp.zeros((T, F)), _dense_params(rng), jnp.ones(T - 1, bool))
    with pytest.raises(ValueError, match=r"without kernel, context must be .* got \(8, 5\)"):
      feedback.class_feedback(jnp.zeros((T, F)), {"bias": jnp.zeros(C)}, jnp.ones(T, bool))
    with pytest.raises(ValueError, match="labels must be"):
      feedback.class_feedback(
        jnp.zeros((T, F)), _dense_params(rng), jnp.ones(T, bool), labels=jnp.zeros((T, C + 1))
      )
    with pytest.raises(ValueError, match="gru kernel must be"):
      feedback.gru_feedback(jnp.zeros((T, F + 1)), _gru_params(rng), jnp.ones(T, bool))
  finally:
    jaxtyping.config.update("jaxtyping_disable", False)


def test_an_implementation_that_cannot_be_is_told():
  with pytest.raises(ValueError, match="implementation 'palas' is none of auto, scan, pallas"):
    feedback._takes_kernel("palas", jnp.float32)  # annotations refuse it before, in tests
  rng = np.random.default_rng(9)
  half = jax.tree.map(
    lambda leaf: leaf.astype(jnp.bfloat16), (_normal(rng, T, F), _dense_params(rng))
  )
  with pytest.raises(ValueError, match=r"the kernel takes float32 and needs jax 0\.11"):
    feedback.class_feedback(*half, jnp.ones(T, bool), implementation="pallas")
