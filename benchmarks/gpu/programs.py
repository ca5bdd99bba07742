"""Every program that a GPU run starts, at the sizes of the `paper` preset, lowered for described devices."""

from __future__ import annotations

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from benchmarks import gru as gru_benchmark
from benchmarks import heads as heads_benchmark
from benchmarks import toeplitz as toeplitz_benchmark
from benchmarks.gpu import cnn_programs, stack_programs
from benchmarks.gpu.program import Program, lower, on
from rcm_jax.arrays import MAX_SLICES
from rcm_jax.heads.attention import AttentionSpec
from rcm_jax.heads.head import HeadSpec
from rcm_jax.heads.member_parallel import lower_run, over_members
from rcm_jax.heads.objective import Member
from rcm_jax.heads.train_epochs import make_train
from rcm_jax.ops import toeplitz
from rcm_jax.ops.gru import bidirectional_gru
from rcm_jax.runtime import devices

STACKS, VALIDATION, BATCH, EPOCHS = 245, 61, 4, 20  # of the paper; epochs a call
STEPS = -(-STACKS // BATCH)
MEMBERS = (1, 8, 64, 120)
TOEPLITZ = AttentionSpec("toeplitz", 7)
# What `HeadSpec` has besides, by kind of head.
KINDS = {
  "full sequence": {},
  "toeplitz": {"attention": TOEPLITZ},
  "toeplitz, feedback": {"attention": TOEPLITZ, "feedback": "own"},
  "partial sequence": {"window": 3},
  "ordered": {"attention": TOEPLITZ, "likelihood": "boundaries"},
  "class feedback": {"feedback": "own"},
  "global attention": {"attention": AttentionSpec("additive"), "decoder": "gru", "feedback": "own"},
  "global attention by location": {
    "attention": AttentionSpec("location"),
    "decoder": "gru",
    "feedback": "own",
  },
  "LSTM": {"cell": "lstm"},
  "RNN": {"cell": "rnn"},
  "one direction": {"bidirectional": False},
}


def programs() -> list[Program]:
  """Returns all of them."""
  return [
    *_heads(),
    *_ops(),
    *cnn_programs.programs(),
    *stack_programs.programs(head_spec(attention=TOEPLITZ, feedback="own")),
  ]


def _heads() -> list[Program]:
  out = [
    Program(
      f"heads: toeplitz, feedback; {count} members",
      "heads",
      1,
      functools.partial(_lower_head, KINDS["toeplitz, feedback"], count),
      STEPS * EPOCHS,
    )
    for count in MEMBERS
  ]
  out += [
    Program(
      f"heads: {kind}; 120 members",
      "heads",
      1,
      functools.partial(_lower_head, more, 120),
      STEPS * EPOCHS,
    )
    for kind, more in KINDS.items()
    if kind != "toeplitz, feedback"
  ]
  out.append(
    Program(
      "heads: toeplitz, feedback; 120 members",
      "heads",
      8,
      functools.partial(_lower_head, KINDS["toeplitz, feedback"], 120),
      STEPS * EPOCHS,
    )
  )
  return out


def head_spec(**more: Any) -> HeadSpec:
  """Returns the paper's head, with whatever else is given."""
  return HeadSpec(
    **{
      "num_features": gru_benchmark.FEATURES,
      "hidden": gru_benchmark.HIDDEN,
      "cell": "gru",
      "bidirectional": True,
      "window": None,
      "attention": AttentionSpec(),
      "max_slices": MAX_SLICES,
      "decoder": "dense",
      "feedback": "none",
      **more,
    }
  )


def _lower_head(more: dict[str, Any], count: int, place: Any) -> jax.stages.Lowered:
  del place
  mesh = devices.local_mesh()
  training = make_train(
    head_spec(**more),
    heads_benchmark.features(STACKS, MAX_SLICES),
    heads_benchmark.features(VALIDATION, MAX_SLICES),
    batch_size=BATCH,
    epochs=EPOCHS,
    epochs_per_call=EPOCHS,
  )
  who = Member(*[np.zeros(count, np.int32)] * 2, *[np.zeros(count, np.float32)] * 4)
  state = jax.eval_shape(over_members(training.init), who)
  split, whole = devices.split_leading(mesh), devices.replicated(mesh)
  epoch = np.zeros(count, np.int32)
  of_members = on((state, who, epoch), split)
  return lower_run(training, mesh, *of_members, on(training.data, whole))


def _ops() -> list[Program]:
  out = []
  for form in ("auto", "reference", "scan", "unrolled", "pallas"):
    for stacks, members in ((4, 1), (4, 120), (32, 1)):
      name = f"GRU, {form}; {stacks} stacks, {members} members"
      lower = functools.partial(_lower_gru, form, stacks, members)
      out.append(Program(name, "ops", 1, lower))
  for form in ("auto", "reference", "shift"):
    for case in toeplitz_benchmark.CASES[:2] + toeplitz_benchmark.CASES[4:5]:
      name = f"Toeplitz, {form}; {' × '.join(map(str, case[:3]))}, D = {case[3]}"
      out.append(Program(name, "ops", 1, functools.partial(_lower_toeplitz, form, *case)))
  return out


def _lower_gru(form: str, stacks: int, members: int, place: Any) -> jax.stages.Lowered:
  def loss(params, x, mask):
    layer = functools.partial(bidirectional_gru, implementation=form)
    return jax.vmap(layer, (0, None, 0))(x, params, mask).sum()

  features, hidden = gru_benchmark.FEATURES, gru_benchmark.HIDDEN
  shapes = {
    "kernel": (features, 3 * hidden),
    "recurrent_kernel": (hidden, 3 * hidden),
    "bias": (2, 3 * hidden),
  }
  params = {k: jax.ShapeDtypeStruct((members, 2, *s), jnp.float32) for k, s in shapes.items()}
  x = jax.ShapeDtypeStruct((stacks, MAX_SLICES, features), jnp.float32)
  mask = jax.ShapeDtypeStruct((stacks, MAX_SLICES), jnp.bool_)
  step = jax.vmap(jax.value_and_grad(loss), (0, None, None))
  return lower(step, place, params, x, mask)


def _lower_toeplitz(
  form: str, stacks: int, length: int, width: int, half: int, place: Any
) -> jax.stages.Lowered:
  one = functools.partial(toeplitz.toeplitz_attention, implementation=form)

  def both(h, weights, mask, d_out):
    call = lambda h, w: jax.vmap(one, (0, None, 0))(h, w, mask)
    out, pull = jax.vjp(call, h, weights)
    return out, pull(d_out)

  h = jax.ShapeDtypeStruct((stacks, length, width), jnp.float32)
  weights = jax.ShapeDtypeStruct((2 * half + 1,), jnp.float32)
  mask = jax.ShapeDtypeStruct((stacks, length), jnp.bool_)
  return lower(both, place, h, weights, mask, h)
