"""Heads as modules: what equals what, what padding may not change, and what is refused."""

import dataclasses
import functools
import json

from flax import nnx
import jax
import jax.numpy as jnp
import numpy as np
import precision
import pytest

from rcm_jax.heads.attention import AttentionSpec
from rcm_jax.heads.head import Head, HeadSpec, dropout_masks, spec_of
from tfds_rcm.errors import UserError

pytestmark = pytest.mark.kernels

T, F = 9, 4
FULL = HeadSpec(
  num_features=F,
  hidden=5,
  cell="gru",
  bidirectional=True,
  window=None,
  attention=AttentionSpec("none", 0, units=6),
  max_slices=16,
  decoder="dense",
  feedback="none",
)
GLOBAL = dataclasses.replace(
  FULL, attention=AttentionSpec("additive", units=6), decoder="gru", feedback="own"
)
TOEPLITZ = AttentionSpec("toeplitz", half_width=2)
SPECS = {
  "full": FULL,
  "forward": dataclasses.replace(FULL, bidirectional=False),
  "rnn": dataclasses.replace(FULL, cell="rnn"),
  "lstm": dataclasses.replace(FULL, cell="lstm", bidirectional=False),
  "partial": dataclasses.replace(FULL, window=3),
  "toeplitz": dataclasses.replace(FULL, attention=TOEPLITZ, feedback="own"),
  "renormalized": dataclasses.replace(
    FULL, attention=dataclasses.replace(TOEPLITZ, edge_mode="renormalize"), feedback="own"
  ),
  "additive": GLOBAL,
  "location": dataclasses.replace(GLOBAL, attention=AttentionSpec("location", units=6)),
}


def make(spec: HeadSpec, seed: int = 0) -> Head:
  """A head whose weights are all random, biases and attention too."""
  head = Head(spec, nnx.Rngs(seed))
  state = nnx.state(head, nnx.Param)
  leaves, tree = jax.tree.flatten(state)
  keys = jax.random.split(jax.random.key(seed + 1), len(leaves))
  noisy = [x + 0.3 * jax.random.normal(k, x.shape) for x, k in zip(leaves, keys, strict=True)]
  nnx.update(head, jax.tree.unflatten(tree, noisy))
  return head


@pytest.fixture
def stack():
  return jax.random.normal(jax.random.key(7), (T, F)), jnp.ones(T, bool)


@pytest.mark.parametrize("name", SPECS)
def test_padding_equals_truncation_in_value_and_gradient(name, stack):
  x, mask = stack
  graph, params = nnx.split(make(SPECS[name]))
  padded = jnp.pad(x, ((0, 4), (0, 0)), constant_values=jnp.nan)
  padded_mask = jnp.pad(mask, (0, 4))

  def total(params, x, mask):
    logits = nnx.merge(graph, params)(x, mask)
    return jnp.where(mask[:, None], logits**2, 0).sum(), logits

  gradient = jax.jit(jax.grad(total, argnums=(0, 1), has_aux=True))
  exact, plain = precision.references(gradient, params, x, mask)
  (d_params, d_x), logits = gradient(params, padded, padded_mask)
  precision.assert_close(((d_params, d_x[:T]), logits[:T]), exact, plain)
  assert not np.any(logits[T:])
  assert not np.any(d_x[T:])


@pytest.mark.parametrize("name", SPECS)
def test_attention_rows_sum_to_one_and_give_the_context(name, stack):
  x, mask = stack
  mask = mask.at[-2:].set(False)
  head = make(SPECS[name])
  weights = jax.jit(head.attention_weights)(x, mask)
  if SPECS[name].attention == TOEPLITZ:
    inner = slice(2, -4)  # rows that reach over an end lack what lies there
  else:
    inner = slice(None, -2)
  sums = weights.sum(1)[inner]
  precision.assert_close(sums, np.ones(sums.shape))
  assert not np.any(weights[-2:])
  assert not np.any(weights[:, -2:])
  h, context = jax.jit(lambda x: (h := head.encode(x, mask), head.attention(h, mask)))(x)
  product = lambda weights, h: (weights @ jnp.where(mask[:, None], h, 0))[:-2]
  precision.assert_close(context[:-2], *precision.references(product, weights, h))


@pytest.mark.parametrize("feedback", ["none", "own"])
@pytest.mark.parametrize("edge_mode", ["zero", "renormalize"])
def test_a_dense_decoder_before_toeplitz_attention_is_one_after_it(edge_mode, feedback, stack):
  attention = dataclasses.replace(TOEPLITZ, edge_mode=edge_mode)
  spec = dataclasses.replace(SPECS["toeplitz"], attention=attention, feedback=feedback)
  graph, params = nnx.split(make(spec))
  x, mask = stack[0], stack[1].at[-2:].set(False)

  def as_drawn(params):
    head = nnx.merge(graph, params)
    return head.decoder(head.attention(head.encode(x, mask), mask), mask)

  evidence = lambda params: nnx.merge(graph, params).unary_scores(x, mask)

  def both(function, params):
    return function(params), jax.grad(lambda p: (function(p) ** 2).sum())(params)

  ours, drawn = (functools.partial(both, function) for function in (evidence, as_drawn))
  precision.assert_close(jax.jit(ours)(params), *precision.references(drawn, params))


def test_toeplitz_of_width_one_without_feedback_is_the_full_sequence_model(stack):
  same = dataclasses.replace(FULL, attention=AttentionSpec("toeplitz"))
  toeplitz, full = Head(same, nnx.Rngs(3)), Head(FULL, nnx.Rngs(3))
  np.testing.assert_array_equal(toeplitz(*stack), full(*stack))


def test_partial_sequence_as_long_as_the_stack_sees_all_of_it_from_the_middle(stack):
  partial = make(dataclasses.replace(FULL, window=T))
  graph, params = nnx.split(make(FULL))
  full = lambda params, x: nnx.merge(graph, params)(x, stack[1])[T // 2]
  got = jax.jit(lambda x: partial(x, stack[1])[T // 2])(stack[0])
  precision.assert_close(got, *precision.references(full, params, stack[0]))


@pytest.mark.parametrize(
  ("name", "n", "sees"),
  [
    ("partial", 4, {3, 4, 5}),
    ("full", 4, set(range(T))),
    ("forward", 4, {0, 1, 2, 3, 4}),
    ("additive", 0, set(range(T))),
  ],
)
def test_which_slices_a_slice_depends_on(name, n, sees, stack):
  x, mask = stack
  head = make(SPECS[name])
  gradient = jax.jit(jax.jacobian(lambda x: head(x, mask)[n].sum()))(x)
  assert set(np.flatnonzero(np.abs(gradient).max(1) > 0)) == sees


def test_traced_half_width_equals_a_narrower_kernel(stack):
  wide = make(SPECS["toeplitz"])
  narrow = Head(
    dataclasses.replace(SPECS["toeplitz"], attention=AttentionSpec("toeplitz", 1)), nnx.Rngs(0)
  )
  state = nnx.state(wide, nnx.Param)
  state["attention"]["logits"] = nnx.Param(wide.attention.logits[1:-1])
  nnx.update(narrow, state)
  traced = jax.jit(lambda d: wide(*stack, half_width=d))(1)
  graph, params = nnx.split(narrow)
  plain = lambda params, x: nnx.merge(graph, params)(x, stack[1])
  precision.assert_close(traced, *precision.references(plain, params, stack[0]))


def test_dropout_scales_what_it_keeps():
  keys = jax.random.split(jax.random.key(0), 4000)
  masks = jax.vmap(lambda key: dropout_masks(GLOBAL, key, 0.25))(keys)
  assert masks.encoder.shape == (4000, 2, 5)
  assert masks.decoder.shape == (4000, 5)
  kept = np.asarray(masks.encoder)
  precision.assert_close(np.unique(kept), np.array([0, 4 / 3]))
  np.testing.assert_allclose(kept.mean(), 1, atol=0.02)


@pytest.mark.parametrize(
  ("change", "message"),
  [
    (
      {"attention": AttentionSpec("toplitz")},
      r"config.head.attention: 'toplitz' is none of .*; did you mean 'toeplitz'\?",
    ),
    ({"window": 4}, r"config.head.window: 4 .* odd"),
    (
      {"attention": AttentionSpec("toeplitz", 16)},
      r"config.head.half_widths: 16 is outside 0 to 15",
    ),
    ({"decoder": "gru"}, r"config.head.decoder: .* feedback"),
  ],
)
def test_impossible_architectures_are_refused(change, message):
  with pytest.raises(UserError, match=message):
    dataclasses.replace(FULL, **change)


@pytest.mark.parametrize("name", SPECS)
def test_an_architecture_is_read_back_from_its_fields_and_from_those_of_version_0_1(name):
  spec = SPECS[name]
  fields = json.loads(json.dumps(dataclasses.asdict(spec)))
  assert spec_of(fields) == spec
  attention = fields.pop("attention")
  fields |= {
    "attention": attention["kind"],
    "half_width": attention["half_width"],
    "boundary": attention["edge_mode"],
    "units": attention["units"],
    "input_dropout": 0.4,
    "average": 0.9,
  }
  assert spec_of(fields) == spec


@pytest.mark.parametrize("bidirectional", [False, True])
def test_forget_gates_of_an_lstm_start_where_kerass_do(bidirectional):
  keras = pytest.importorskip("keras")
  theirs = keras.layers.LSTM(5)
  theirs.build((1, T, F))
  lstm = dataclasses.replace(FULL, cell="lstm", bidirectional=bidirectional)
  for spec, expected in (
    (lstm, np.zeros(20)),
    (dataclasses.replace(lstm, forget_bias=1.0), np.asarray(theirs.cell.bias)),
    (dataclasses.replace(FULL, cell="rnn", forget_bias=1.0), np.zeros(5)),
  ):
    bias = np.asarray(Head(spec, nnx.Rngs(0)).encoder.bias[...])
    np.testing.assert_array_equal(bias, np.broadcast_to(expected, bias.shape))


def test_location_attention_refuses_longer_stacks():
  head = make(SPECS["location"])
  with pytest.raises(ValueError, match="scores 16 slices, got a stack of 17"):
    head(jnp.zeros((17, F)), jnp.ones(17, bool))
