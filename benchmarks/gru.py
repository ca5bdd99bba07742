"""The bidirectional GRU alone, forward and backward, against PyTorch, Keras 3 on JAX and flax."""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
import numpy as np

from benchmarks import peer, timing
from rcm_jax.ops.gru import bidirectional_gru

FEATURES, HIDDEN, LENGTH = 256, 64, 71
CASES = [(4, 1), (32, 1), (4, 8)]  # stacks, members


def rows(peers: bool) -> list[dict]:
  """Value and gradient in the weights: features are data and need none."""
  return [r for stacks, members in CASES for r in _case(stacks, members, peers)]


def flops(stacks: int) -> float:
  """Multiplications and additions of the products of one forward and backward pass."""
  steps = stacks * LENGTH * 2  # both directions
  projection, recurrent = FEATURES * 3 * HIDDEN, HIDDEN * 3 * HIDDEN
  return 2 * steps * (2 * projection + 3 * recurrent)  # the inputs' gradient is not needed


def _case(stacks: int, members: int, peers: bool) -> list[dict]:
  x = inputs(stacks)
  calls = {"ours": ours(x, members, "auto"), "ours/reference": ours(x, members, "reference")}
  if jax.default_backend() == "gpu":  # what "auto" takes where the kernels do not fit
    calls["ours/unrolled"] = ours(x, members, "unrolled")
  if peers and members == 1:
    makers = {"torch": "_torch", "keras": "_keras", "flax": "_flax"}
    names = {"keras": "keras-jax"}
    for name, maker in makers.items():
      if timing.peer(name):
        calls[names.get(name, name)] = peer.call(__name__, maker, stacks)
  timed = timing.alternate(calls, repeats=11)
  case = f"{stacks} × {LENGTH} × {FEATURES}, H = {HIDDEN}, forward + backward"
  if members > 1:
    case += f", {members} members"
  floor = members * flops(stacks) / timing.matmul_flops_per_second()
  return [timing.row("gru", case, name, t, floor) for name, t in timed.items()]


def inputs(stacks: int) -> np.ndarray:
  """Returns noise in place of features."""
  rng = np.random.default_rng(0)
  return rng.normal(size=(stacks, LENGTH, FEATURES)).astype(np.float32)


def _params(rng: np.random.Generator, *lead: int) -> dict[str, jax.Array]:
  shapes = {
    "kernel": (FEATURES, 3 * HIDDEN),
    "recurrent_kernel": (HIDDEN, 3 * HIDDEN),
    "bias": (2, 3 * HIDDEN),
  }
  return {
    k: jnp.asarray(rng.normal(size=(*lead, 2, *s)) / 16, jnp.float32) for k, s in shapes.items()
  }


def ours(x: np.ndarray, members: int, implementation: str):
  """Returns a compiled call: value and gradient in the weights."""
  lead = () if members == 1 else (members,)
  params = _params(np.random.default_rng(1), *lead)
  mask = jnp.ones(x.shape[:2], bool)

  def loss(params, x):
    layer = functools.partial(bidirectional_gru, implementation=implementation)
    return jax.vmap(layer, (0, None, 0))(x, params, mask).sum()

  step = jax.value_and_grad(loss)
  if members > 1:
    step = jax.vmap(step, (0, None))
  return functools.partial(jax.jit(step).lower(params, x).compile(), params, jnp.asarray(x))


def _torch(stacks: int):
  import torch

  x = inputs(stacks)
  layer = torch.nn.GRU(x.shape[2], HIDDEN, batch_first=True, bidirectional=True)
  values = torch.tensor(x, device="cuda" if torch.cuda.is_available() else "cpu")
  layer.to(values.device)

  def call():
    layer.zero_grad()
    layer(values)[0].sum().backward()
    if values.is_cuda:
      torch.cuda.synchronize()

  return call


def _keras(stacks: int):
  import keras

  x = inputs(stacks)
  layer = keras.layers.Bidirectional(keras.layers.GRU(HIDDEN, return_sequences=True))
  layer.build(x.shape)
  variables = [v.value for v in layer.trainable_variables]
  fixed = [v.value for v in layer.non_trainable_variables]
  mask = jnp.ones(x.shape[:2], bool)

  def loss(variables, x):
    return layer.stateless_call(variables, fixed, x, mask=mask)[0].sum()

  step = functools.partial(jax.jit(jax.value_and_grad(loss)), variables, jnp.asarray(x))
  return lambda: jax.block_until_ready(step())


def _flax(stacks: int):
  from flax import nnx

  x = inputs(stacks)
  cells = [nnx.RNN(nnx.GRUCell(FEATURES, HIDDEN, rngs=nnx.Rngs(d))) for d in (0, 1)]
  graph, params = nnx.split(nnx.Bidirectional(*cells))
  lengths = jnp.full(x.shape[0], x.shape[1])

  def loss(params, x):
    return nnx.merge(graph, params)(x, seq_lengths=lengths).sum()

  step = jax.jit(jax.value_and_grad(loss, allow_int=True))
  step = functools.partial(step, params, jnp.asarray(x))
  return lambda: jax.block_until_ready(step())
