"""Heads as modules: what equals what, what padding may not change, and what is refused."""

import dataclasses
import json

from flax import nnx
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rcm_jax.heads.attention import AttentionSpec
from rcm_jax.heads.head import Head, HeadSpec, dropout_masks, spec_of
from tfds_rcm.errors import UserError

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
  short, logits = gradient(params, x, mask)
  long, longer = gradient(params, padded, padded_mask)
  np.testing.assert_allclose(longer[:T], logits, atol=1e-5)
  assert not np.any(longer[T:])
  np.testing.assert_allclose(long[1][:T], short[1], atol=2e-4)
  assert not np.any(long[1][T:])
  jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=2e-4), long[0], short[0])


@pytest.mark.parametrize("name", SPECS)
def test_attention_rows_sum_to_one_and_give_the_context(name, stack):
  x, mask = stack
  mask = mask.at[-2:].set(False)
  head = make(SPECS[name])
  weights = head.attention_weights(x, mask)
  if SPECS[name].attention == TOEPLITZ:
    inner = slice(2, -4)  # rows that reach over an end lack what lies there
  else:
    inner = slice(None, -2)
  np.testing.assert_allclose(weights.sum(1)[inner], 1, atol=1e-6)
  assert not np.any(weights[-2:])
  assert not np.any(weights[:, -2:])
  h = head.encode(x, mask)
  context = head.attention(h, mask)
  np.testing.assert_allclose(
    context[:-2], (weights @ jnp.where(mask[:, None], h, 0))[:-2], atol=1e-5
  )


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
  np.testing.assert_allclose(evidence(params), as_drawn(params), atol=1e-5)
  gradients = [jax.grad(lambda p, f=f: (f(p) ** 2).sum())(params) for f in (evidence, as_drawn)]
  jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-3, rtol=1e-4), *gradients)


def test_toeplitz_of_width_one_without_feedback_is_the_full_sequence_model(stack):
  same = dataclasses.replace(FULL, attention=AttentionSpec("toeplitz"))
  toeplitz, full = Head(same, nnx.Rngs(3)), Head(FULL, nnx.Rngs(3))
  np.testing.assert_array_equal(toeplitz(*stack), full(*stack))


def test_partial_sequence_as_long_as_the_stack_sees_all_of_it_from_the_middle(stack):
  partial = make(dataclasses.replace(FULL, window=T))
  full = make(FULL)
  np.testing.assert_allclose(partial(*stack)[T // 2], full(*stack)[T // 2], atol=1e-6)


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
  gradient = jax.jacobian(lambda x: make(SPECS[name])(x, mask)[n].sum())(x)
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
  np.testing.assert_allclose(traced, narrow(*stack), atol=1e-6)


def test_dropout_scales_what_it_keeps():
  keys = jax.random.split(jax.random.key(0), 4000)
  masks = jax.vmap(lambda key: dropout_masks(GLOBAL, key, 0.25))(keys)
  assert masks.encoder.shape == (4000, 2, 5)
  assert masks.decoder.shape == (4000, 5)
  kept = np.asarray(masks.encoder)
  np.testing.assert_allclose(np.unique(kept), [0, 4 / 3], rtol=1e-6)
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


def test_location_attention_refuses_longer_stacks():
  head = make(SPECS["location"])
  with pytest.raises(ValueError, match="scores 16 slices, got a stack of 17"):
    head(jnp.zeros((17, F)), jnp.ones(17, bool))
