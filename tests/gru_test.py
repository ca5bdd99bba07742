"""The GRU: every form against the plain scan, Keras and flax, in value and gradient, alone and in company."""

from __future__ import annotations

import functools
import itertools
import re

import jax
import jax.numpy as jnp
import jaxtyping
import numpy as np
import precision
import pytest

from rcm_jax.ops import backend, gru

pytestmark = pytest.mark.kernels

B, T, F, H, M = 3, 9, 5, 4, 2
KERNEL = pytest.param(
  "pallas",
  marks=pytest.mark.skipif(
    not backend.knows_kernels(), reason="the kernels need jax 0.11 or later"
  ),
)
FAST = ("scan", "unrolled", KERNEL)
MASK = jnp.array([[1] * 9, [1] * 5 + [0] * 4, [1, 0, 0, 1, 1, 0, 1, 0, 0]], bool)


def _normal(rng, *shape, dtype=np.float32):
  return jnp.asarray(rng.normal(size=shape) / 2, dtype)


def _params(rng, *lead, features=F, hidden=H, dtype=np.float32):
  return {
    "kernel": _normal(rng, *lead, features, 3 * hidden, dtype=dtype),
    "recurrent_kernel": _normal(rng, *lead, hidden, 3 * hidden, dtype=dtype),
    "bias": _normal(rng, *lead, 2, 3 * hidden, dtype=dtype),
  }


def _batch_loss(params, x, mask, recurrent_mask, weights, implementation):
  layer = lambda x, m, r: gru.bidirectional_gru(
    x, params, m, recurrent_mask=r, implementation=implementation
  )
  out = jax.vmap(layer)(x, mask, recurrent_mask)
  return jnp.vdot(out, weights), out


_gradient = jax.jit(
  jax.value_and_grad(_batch_loss, argnums=(0, 1), has_aux=True), static_argnames="implementation"
)


_reference = functools.partial(_gradient, implementation="reference")


@pytest.mark.parametrize(
  ("implementation", "dtype"),
  [
    *itertools.product(("scan", "unrolled"), (np.float32, np.float64)),
    pytest.param(*KERNEL.values, np.float32, marks=KERNEL.marks),
  ],
)
@pytest.mark.parametrize("dropout", [True, False])
def test_fast_forms_equal_reference_with_nan_in_padding(implementation, dtype, dropout):
  with jax.enable_x64(dtype == np.float64):
    rng = np.random.default_rng(0)
    params, x = _params(rng, 2, dtype=dtype), _normal(rng, B, T, F, dtype=dtype)
    dropped = jnp.asarray(rng.integers(0, 2, (B, 2, H)) * 1.25, dtype) if dropout else None
    rest = (dropped, _normal(rng, B, T, 2 * H, dtype=dtype))
    plain = _reference(params, x, MASK, *rest)
    spoiled = jnp.where(MASK[:, :, None], x, jnp.nan)
    got = _gradient(params, spoiled, MASK, *rest, implementation=implementation)
  exact = precision.in_float64(_reference, params, x, MASK, *rest)
  precision.assert_close(got, exact, plain)
  assert not got[1][1][~MASK].any()


@pytest.mark.skipif(not backend.knows_kernels(), reason="the kernels need jax 0.11 or later")
@pytest.mark.parametrize(
  ("hidden", "stacks", "dtype"), [(65, 3, np.float32), (4, 33, np.float32), (4, 3, np.float64)]
)
def test_what_the_kernels_cannot_take_is_told_and_left_to_auto(hidden, stacks, dtype):
  with jax.enable_x64(dtype == np.float64):
    rng = np.random.default_rng(4)
    params = _params(rng, hidden=hidden, dtype=dtype)
    x, mask = _normal(rng, stacks, T, F, dtype=dtype), jnp.ones((stacks, T), bool)

    def states(implementation):
      layer = lambda x, m: gru.gru(x, params, m, implementation=implementation)
      return jax.jit(jax.vmap(layer))(x, mask)

    with pytest.raises(
      ValueError, match=f"take float32, up to 64 units.*got {np.dtype(dtype)}, {hidden} "
    ):
      states("pallas")
    assert states("auto").shape == (stacks, T, hidden)


@pytest.mark.parametrize("implementation", FAST)
@pytest.mark.parametrize("order", ["stacks in members", "members in stacks"])
def test_members_in_company_equal_members_alone(order, implementation):
  rng = np.random.default_rng(1)
  params, x = _params(rng, M, 2), _normal(rng, B, T, F)
  weights = _normal(rng, B, T, 2 * H)

  def loss(params, x, mask, weights):
    out = gru.bidirectional_gru(x, params, mask, implementation=implementation)
    return jnp.vdot(out, weights)

  stack_axes, member_axes = (None, 0, 0, 0), (0, None, None, None)
  if order == "stacks in members":
    company = jax.vmap(jax.grad(lambda *a: jax.vmap(loss, stack_axes)(*a).sum()), member_axes)
    got = jax.jit(company)(params, x, MASK, weights)
  else:
    company = jax.vmap(jax.vmap(jax.grad(loss), member_axes), stack_axes)
    got = jax.tree.map(lambda g: g.sum(0), jax.jit(company)(params, x, MASK, weights))
  for m in range(M):
    alone = jax.tree.map(lambda p: p[m], params)
    plain = _reference(alone, x, MASK, None, weights)[1][0]
    exact = precision.in_float64(_reference, alone, x, MASK, None, weights)[1][0]
    precision.assert_close(jax.tree.map(lambda g: g[m], got), exact, plain)


@pytest.mark.parametrize("implementation", ["reference", *FAST])
@pytest.mark.parametrize("reverse", [False, True])
def test_each_direction_is_one_half(implementation, reverse):
  rng = np.random.default_rng(2)
  params, x = _params(rng, 2), _normal(rng, T, F)
  columns = slice(H, None) if reverse else slice(H)

  def both(form, x, params):
    return gru.bidirectional_gru(x, params, MASK[2], implementation=form)[:, columns]

  def half(x, params):
    mine = jax.tree.map(lambda p: p[int(reverse)], params)
    return gru.gru(x, mine, MASK[2], reverse=reverse, implementation=implementation)

  exact, plain = precision.references(functools.partial(both, "reference"), x, params)
  for ours in (half, functools.partial(both, implementation)):
    precision.assert_close(jax.jit(ours)(x, params), exact, plain)


@pytest.mark.parametrize("dropout", [False, True])
def test_equals_keras(dropout):
  keras = pytest.importorskip("keras")
  rng = np.random.default_rng(3)
  params, x = _params(rng, 2), _normal(rng, B, T, F)
  mask = jnp.arange(T) < jnp.array([9, 6, 1])[:, None]
  layer = keras.layers.Bidirectional(
    keras.layers.GRU(H, return_sequences=True, recurrent_dropout=0.5 if dropout else 0.0)
  )
  layer.build(x.shape)
  layer.set_weights([np.asarray(params[k][d]) for d in (0, 1) for k in params])
  dropped = None
  if dropout:
    dropped = jnp.asarray(rng.integers(0, 2, (B, 2, H)) * 2.0, jnp.float32)
    for d, half in enumerate((layer.forward_layer, layer.backward_layer)):
      half.cell._recurrent_dropout_mask = [dropped[:, d]] * 3
  weights = _normal(rng, B, T, 2 * H) * mask[:, :, None]
  variables = [v.value for v in layer.trainable_variables]

  def keras_loss(variables, x):
    out, _ = layer.stateless_call(
      variables, [v.value for v in layer.non_trainable_variables], x, mask=mask, training=dropout
    )
    return jnp.vdot(out, weights), out

  if dropout:  # Keras draws its masks anew in each call of the layer; hold them
    for half in (layer.forward_layer, layer.backward_layer):
      half.cell.reset_recurrent_dropout_mask = lambda: None
  keras_gradient = jax.jit(jax.value_and_grad(keras_loss, argnums=(0, 1), has_aux=True))
  (_, out), (d_variables, d_x) = keras_gradient(variables, x)
  # In float64 ours alone can run; theirs must come as near to it as ours in float32 does.
  arguments = (params, x, mask, dropped, weights)
  ours = lambda values: (values[0][1] * mask[:, :, None], *values[1])
  names = ("kernel", "recurrent_kernel", "bias")
  d_params = {n: jnp.stack([d_variables[k], d_variables[3 + k]]) for k, n in enumerate(names)}
  theirs = (out * mask[:, :, None], d_params, d_x)
  exact = ours(precision.in_float64(_reference, *arguments))
  precision.assert_close(theirs, exact, ours(_reference(*arguments)))


def test_equals_flax():
  """flax.nnx.GRUCell is the same formula with the gates named r, z, n and one bias on z and r."""
  nnx = pytest.importorskip("flax.nnx")
  rng = np.random.default_rng(4)
  x = _normal(rng, T, F)
  cell = nnx.GRUCell(F, H, rngs=nnx.Rngs(0))
  ours = lambda r, z, n: jnp.concatenate([z, r, n], axis=-1)
  split = lambda a: ours(*jnp.split(a, 3, axis=-1))
  bias_in, bias_n = _normal(rng, 3 * H), _normal(rng, H)
  cell.dense_i.bias[...] = bias_in
  hidden_bias = jnp.zeros(3 * H)
  if cell.dense_h.bias is not None and cell.dense_h.bias[...] is not None:
    hidden_bias = hidden_bias.at[2 * H :].set(bias_n)
    cell.dense_h.bias[...] = hidden_bias
  params = {
    "kernel": split(cell.dense_i.kernel[...]),
    "recurrent_kernel": split(cell.dense_h.kernel[...]),
    "bias": jnp.stack([split(bias_in), split(hidden_bias)]),
  }
  run = lambda x, params: gru.gru(x, params, jnp.ones(T, bool), implementation="reference")
  precision.assert_close(nnx.RNN(cell)(x[None])[0], *precision.references(run, x, params))


def test_padding_carries_the_state():
  rng = np.random.default_rng(5)
  out = gru.bidirectional_gru(_normal(rng, T, F), _params(rng, 2), MASK[1])
  np.testing.assert_array_equal(out[5:, :H], jnp.broadcast_to(out[4, :H], (4, H)))
  assert not out[5:, H:].any()


def _instructions(text: str, computation: str) -> list[str]:
  """Of one computation of compiled HLO, without those that only name or address."""
  start = rf"^(?:ENTRY )?%?{re.escape(computation)} .*?\{{\n(.*?)^\}}"
  body = re.search(start, text, re.MULTILINE | re.DOTALL).group(1)
  free = r" (parameter|get-tuple-element|tuple|bitcast|constant)\("
  return [line for line in body.splitlines() if not re.search(free, line)]


@pytest.mark.parametrize(("members", "outside"), [(None, 32), (4, 36)])
def test_program_stays_short(members, outside):
  """What XLA:CPU runs one by one is counted here: a regression shows without a stopwatch."""
  rng = np.random.default_rng(6)
  lead = () if members is None else (members,)
  params, x = _params(rng, *lead, 2, features=32, hidden=16), _normal(rng, 4, 12, 32)
  mask, weights = jnp.ones((4, 12), bool), _normal(rng, 4, 12, 32)
  dropped = jnp.ones((4, 2, 16))
  step = lambda p, x: jax.grad(lambda p: _batch_loss(p, x, mask, dropped, weights, "scan")[0])(p)
  if members:
    step = jax.vmap(step, (0, None))
  text = jax.jit(step).lower(params, x).compile().as_text()
  names = re.findall(r"while\(.*?body=%?([\w.\-]+)", text)
  bodies = [_instructions(text, name) for name in names]
  # One loop forward and one backward serve both directions, with one matrix product a step.
  assert len(bodies) == 2
  assert max(map(len, bodies)) <= 9
  assert min(map(len, bodies)) <= 8
  for body in bodies:
    assert sum(" dot(" in line or "kCustom" in line for line in body) == 1
  entry = re.search(r"^ENTRY %?([\w.\-]+)", text, re.MULTILINE).group(1)
  assert len(_instructions(text, entry)) <= outside
  # Outside the loops: the projection, and the gradients of both kernels and of both biases. A
  # weight's gradient is one product over all stacks and steps, not one a stack.
  assert len(re.findall(r" dot\(", text)) == 2 + 5


@pytest.mark.parametrize(
  ("change", "message"),
  [
    ({"x": (9, 6)}, r"kernel must be \(6, 12\)"),
    ({"mask": (8,)}, r"x \(9, 5\) and mask \(8,\)"),
    ({"recurrent_kernel": (4, 15)}, "must be"),
    ({"bias": (12,)}, r"bias must be \(2, 12\)"),
    ({"recurrent_mask": (5,)}, r"recurrent_mask must be \(4,\), got \(5,\)"),
  ],
)
@pytest.mark.usefixtures("without_type_checks")
def test_wrong_shapes_are_named_at_trace_time(change, message):
  shapes = {"x": (T, F), "mask": (T,), "recurrent_mask": (H,)}
  shapes |= {"kernel": (F, 3 * H), "recurrent_kernel": (H, 3 * H), "bias": (2, 3 * H)} | change
  a = {k: jnp.ones(s, bool if k == "mask" else jnp.float32) for k, s in shapes.items()}
  params = {k: a[k] for k in ("kernel", "recurrent_kernel", "bias")}
  call = lambda: gru.gru(a["x"], params, a["mask"], recurrent_mask=a["recurrent_mask"])
  with pytest.raises(ValueError, match=message):
    jax.eval_shape(call)


@pytest.mark.skipif(not backend.knows_kernels(), reason="the kernels need jax 0.11 or later")
@pytest.mark.parametrize("precision", ["default", "highest"])
@pytest.mark.parametrize(("stacks", "hidden"), [(3, 16), (9, 64)])
def test_kernels_are_as_exact_as_float32_allows(precision, stacks, hidden):
  """In the interpreter, which multiplies in float32: with parts of numbers, and with whole ones."""
  steps = 7
  errors = {}
  for implementation in ("scan", "pallas"):
    rng = np.random.default_rng(8)
    params, x = _params(rng, 2, hidden=hidden), _normal(rng, stacks, steps, F)
    dropped = jnp.asarray(rng.integers(0, 2, (stacks, 2, hidden)) * 1.25, np.float32)
    mask = jnp.arange(steps) < jnp.arange(2, 2 + stacks)[:, None]
    rest = (mask, dropped, _normal(rng, stacks, steps, 2 * hidden))
    with jax.enable_x64(True):
      wide = jax.tree.map(lambda a: a.astype(np.float64), (params, x, rest[1], rest[2]))
      exact = _gradient(*wide[:2], mask, *wide[2:], implementation="reference")
    with jax.default_matmul_precision(precision):
      got = _gradient(params, x, *rest, implementation=implementation)
    errors[implementation] = [
      np.abs(np.asarray(a, np.float64) - np.asarray(b)).max()
      for a, b in zip(*map(jax.tree.leaves, (got, exact)))
    ]
  for plain, kernel in zip(errors["scan"], errors["pallas"]):
    assert kernel < 3 * plain + 1e-6


def test_numbers_are_divided_into_what_tensor_cores_hold_and_the_rest():
  if not backend.knows_kernels():
    pytest.skip("the kernels need jax 0.11 or later")
  from rcm_jax.ops import gru_mosaic

  values = _normal(np.random.default_rng(9), 1000)
  held, rest = gru_mosaic._split(values)
  np.testing.assert_array_equal(held + rest, values)
  assert not np.any(np.asarray(held).view(np.int32) & 0x1FFF)
  assert np.all(np.abs(rest) <= np.abs(values) * 2.0**-10)


@pytest.mark.usefixtures("without_type_checks")
def test_unknown_implementation_is_named():
  rng = np.random.default_rng(7)
  with pytest.raises(ValueError, match="'fast'"):
    gru.gru(_normal(rng, T, F), _params(rng), MASK[0], implementation="fast")


@pytest.fixture
def without_type_checks():
  """What users run: the annotations are checked in tests only."""
  jaxtyping.config.update("jaxtyping_disable", True)
  yield
  jaxtyping.config.update("jaxtyping_disable", False)
