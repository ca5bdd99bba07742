"""Every program that a GPU run starts, at the sizes of the `paper` preset, lowered for described devices."""

from __future__ import annotations

from collections.abc import Callable, Sequence
import dataclasses
import functools
from typing import Any

from flax import nnx
import jax
import jax.numpy as jnp
import numpy as np

from benchmarks import gru as gru_benchmark
from benchmarks import heads as heads_benchmark
from benchmarks import toeplitz as toeplitz_benchmark
from rcm_jax.anatomy import PAPER
from rcm_jax.arrays import MAX_SLICES
from rcm_jax.cnn import folded_inception, inception, train_step
from rcm_jax.cnn.augmentation import augmentation_of, views
from rcm_jax.cnn.spec import CnnSpec
from rcm_jax.configs import base
from rcm_jax.decoding import intervals, strata
from rcm_jax.heads.attention import AttentionSpec
from rcm_jax.heads.head import HeadSpec
from rcm_jax.heads.member_parallel import lower_run, over_members
from rcm_jax.heads.objective import Member
from rcm_jax.heads.train_epochs import make_train
from rcm_jax.ops import toeplitz
from rcm_jax.ops.gru import bidirectional_gru
from rcm_jax.runtime import devices

NUM_STRATA = len(PAPER)

STACKS, VALIDATION, BATCH, EPOCHS = 245, 61, 4, 20  # of the paper; epochs a call
STEPS = -(-STACKS // BATCH)
SIDE = 299
MEMBERS = (1, 8, 64, 120)
CNN_BATCHES = (32, 64, 128, 256)
TOEPLITZ = AttentionSpec("toeplitz", 7)
# What `HeadSpec` has besides, by kind of head.
KINDS = {
  "full sequence": {},
  "toeplitz": {"attention": TOEPLITZ},
  "toeplitz, feedback": {"attention": TOEPLITZ, "feedback": "own"},
  "partial sequence": {"window": 3},
  "ordered": {"attention": TOEPLITZ, "likelihood": "boundaries"},
  "global attention": {"attention": AttentionSpec("additive"), "decoder": "gru", "feedback": "own"},
  "LSTM": {"cell": "lstm"},
  "RNN": {"cell": "rnn"},
  "one direction": {"bidirectional": False},
}


@dataclasses.dataclass(frozen=True)
class Program:
  """One program.

  Attributes:
    name: what it is.
    group: heads, ops, cnn or decoding.
    devices: that it is for.
    lower: called while tracing for them, with the sharding of arrays on the first one.
    steps: of training that one call does.
  """

  name: str
  group: str
  devices: int
  lower: Callable[[Any], jax.stages.Lowered]
  steps: int = 1


def programs() -> list[Program]:
  """Returns all of them."""
  return [*_heads(), *_ops(), *_cnn(), *_decoding()]


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
  of_members = _on((state, who, epoch), split)
  return lower_run(training, mesh, *of_members, _on(training.data, whole))


def _on(tree: Any, place: Any) -> Any:
  """Describes arrays that lie there."""
  describe = lambda a: jax.ShapeDtypeStruct(np.shape(a), a.dtype, sharding=place)
  return jax.tree.map(describe, tree)


def _lower(function: Callable, place: Any, *args: Any) -> jax.stages.Lowered:
  return jax.jit(function).lower(*_on(args, place))


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
  return _lower(step, place, params, x, mask)


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
  return _lower(both, place, h, weights, mask, h)


def cnn_spec(batch: int, *, groups: int = 8, width: float = 1.0) -> CnnSpec:
  """Returns the paper preset's CNN with another batch."""
  config = base.get_config("paper")
  return CnnSpec(
    **{**config.cnn, "batch_size": batch, "norm_groups": groups, "width": width},
    augmentation=augmentation_of(config.augmentation.to_dict()),
  )


def _cnn() -> list[Program]:
  out = [
    Program(
      f"CNN step, {SIDE} px, batch {batch}",
      "cnn",
      1,
      functools.partial(_lower_step, batch, 1 if batch > 32 else 8),
    )
    for batch in CNN_BATCHES
  ]
  out += [
    Program(
      f"CNN step, {SIDE} px, batch {batch}", "cnn", 8, functools.partial(_lower_step, batch, 8)
    )
    for batch in (32, 256)
  ]
  out += [
    Program(f"CNN validation, {SIDE} px, batch 32", "cnn", 1, _lower_hits),
    Program(f"extraction, {SIDE} px, batch 64", "cnn", 1, functools.partial(_lower_extract, 64)),
    Program(f"extraction, {SIDE} px, batch 256", "cnn", 1, functools.partial(_lower_extract, 256)),
    Program(f"extraction, {SIDE} px, batch 256", "cnn", 8, functools.partial(_lower_extract, 256)),
    Program(f"augmentation, {SIDE} px, batch 32", "cnn", 1, _lower_views),
  ]
  return out


def _lower_step(batch: int, groups: int, place: Any) -> jax.stages.Lowered:
  del place
  spec = cnn_spec(batch, groups=groups)
  mesh = devices.device_mesh(spec.norm_groups)
  programs = train_step.build(spec, 100, mesh)
  split, whole = devices.split_leading(mesh), devices.replicated(mesh)
  images = np.broadcast_to(np.uint8(0), (batch, SIDE, SIDE, 1))
  rows = np.zeros(batch, np.int32)
  number = np.zeros((), np.int32)
  return programs.train.lower(
    _on(programs.start, whole),
    _on(number.astype(np.uint32), whole),
    _on(number, whole),
    *_on((rows, images, rows), split),
  )


def _lower_hits(place: Any) -> jax.stages.Lowered:
  programs = train_step.build(cnn_spec(32), 100, devices.device_mesh(1))
  images = np.broadcast_to(np.uint8(0), (32, SIDE, SIDE, 1))
  return programs.hits.lower(*_on((programs.start, images, np.zeros(32, np.int32)), place))


def _lower_extract(batch: int, place: Any) -> jax.stages.Lowered:
  del place
  mesh = devices.local_mesh()
  network = inception.InceptionV3(NUM_STRATA, dtype=jnp.bfloat16, rngs=nnx.Rngs(0))
  params = folded_inception.fold(network, jnp.bfloat16)
  images = np.broadcast_to(np.uint8(0), (batch, SIDE, SIDE, 1))
  return jax.jit(folded_inception.compute_fn(network)).lower(
    _on(params, devices.replicated(mesh)), _on(images, devices.split_leading(mesh))
  )


def _lower_views(place: Any) -> jax.stages.Lowered:
  augmentation = cnn_spec(32).augmentation
  images = np.broadcast_to(np.uint8(0), (32, SIDE, SIDE, 1))
  make = lambda seed, x: views(jax.random.split(jax.random.key(seed), 32), x, augmentation)
  return _lower(make, place, np.zeros((), np.uint32), images)


def _decoding() -> list[Program]:
  count, length = 198, MAX_SLICES
  values = np.zeros((count, length, NUM_STRATA), np.float32)
  mask, depth = np.ones((count, length), bool), np.zeros((count, length), np.float32)
  likeliest = np.zeros((count, length), np.int32)
  calibration = intervals.Calibration(1.0, (1.0, 1.0), 0.9)
  of_stack = lambda p, d, m: intervals.boundary_intervals_um(p, d, m, calibration)
  known: Sequence[tuple[str, Callable, tuple]] = [
    ("median_then_max", strata.median_then_max, (likeliest, mask)),
    ("monotone", strata.monotone, (values, mask)),
    ("calibrated intervals", of_stack, (values, depth, mask)),
  ]
  return [
    Program(
      f"decoding: {name}; {count} stacks",
      "decoding",
      1,
      lambda place, f=function, a=args: _lower(jax.vmap(f), place, *a),
    )
    for name, function, args in known
  ]
