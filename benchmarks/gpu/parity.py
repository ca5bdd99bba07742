"""Whether a device computes what a CPU did: operations and small programs with values carried along.

python -m benchmarks.gpu.parity    writes parity.npz anew, on a CPU

Inputs come from numpy's generator; what a CPU computed from them lies in the file.
On a GPU each case runs with products at "highest" precision, which must agree as float32 does, and at
the default, TF32, which agrees to three digits.
"""

from __future__ import annotations

from collections.abc import Callable
import functools
import pathlib
from typing import Any

from flax import nnx
import jax
import jax.numpy as jnp
import numpy as np

from benchmarks.gpu import programs
from rcm_jax.anatomy import PAPER
from rcm_jax.arrays import Features
from rcm_jax.cnn import folded_inception, inception
from rcm_jax.cnn.batch_norm import batch_norm_relu
from rcm_jax.decoding import monotone_model, strata
from rcm_jax.heads.attention import AttentionSpec
from rcm_jax.heads.member_parallel import over_members
from rcm_jax.heads.objective import Member
from rcm_jax.heads.train_epochs import make_train
from rcm_jax.ops import feedback, gru, rnn, toeplitz

NUM_STRATA = len(PAPER)

FILE = pathlib.Path(__file__).with_name("parity.npz")
# Largest error allowed, as a share of the largest value, at "highest" and at "default".
TOLERANCES = {"highest": 3e-5, "default": 2e-2}
_KEPT = 256  # values of each result
B, T, F, H = 4, 24, 32, 64
_MASK = np.arange(T) < np.array([T, T - 5, 3, 1])[:, None]


def _normal(seed: int, *shape: int) -> jax.Array:
  return jnp.asarray(np.random.default_rng(seed).normal(size=shape) / 2, jnp.float32)


def _with_gradient(function: Callable, *args: Any) -> Any:
  out, pull = jax.vjp(function, *args)
  return out, pull(jax.tree.map(lambda leaf: _normal(9, *leaf.shape).astype(leaf.dtype), out))


def _gru(form: str) -> Any:
  params = {
    "kernel": _normal(1, 2, F, 3 * H) / 4,
    "recurrent_kernel": _normal(2, 2, H, 3 * H) / 4,
    "bias": _normal(3, 2, 2, 3 * H),
  }
  layer = functools.partial(gru.bidirectional_gru, implementation=form)
  run = lambda p, x: jax.vmap(layer, (0, None, 0))(x, p, jnp.asarray(_MASK))
  return _with_gradient(run, params, _normal(4, B, T, F))


def _recurrent(layer: Callable, gates: int) -> Any:
  params = {
    "kernel": _normal(1, F, gates * H) / 4,
    "recurrent_kernel": _normal(2, H, gates * H) / 4,
    "bias": _normal(3, gates * H),
  }
  run = lambda p, x: jax.vmap(layer, (0, None, 0))(x, p, jnp.asarray(_MASK))
  return _with_gradient(run, params, _normal(4, B, T, F))


def _feedback() -> Any:
  params = {
    "feedback_kernel": _normal(1, NUM_STRATA, NUM_STRATA),
    "kernel": _normal(2, F, NUM_STRATA),
    "bias": _normal(3, NUM_STRATA),
  }
  run = lambda p, x: jax.vmap(feedback.class_feedback, (0, None, 0))(x, p, jnp.asarray(_MASK))
  return _with_gradient(run, params, _normal(4, B, T, F))


def _toeplitz(form: str) -> Any:
  weights = jnp.asarray(np.random.default_rng(1).dirichlet(np.ones(7)), jnp.float32)
  one = functools.partial(toeplitz.toeplitz_attention, implementation=form)
  run = lambda w, h: jax.vmap(one, (0, None, 0))(h, w, jnp.asarray(_MASK))
  return _with_gradient(run, weights, _normal(2, B, T, F))


def _ordered() -> Any:
  pairs = jnp.array([[3, 9], [0, 4], [1, 3], [0, 1]])
  run = lambda e: jax.vmap(monotone_model.log_likelihood)(e, jnp.asarray(_MASK), pairs)
  marginals = lambda e: jax.vmap(monotone_model.log_marginals)(e, jnp.asarray(_MASK))
  return _with_gradient(run, _normal(1, B, T, 3)), jnp.exp(marginals(_normal(1, B, T, 3)))


def _decoding() -> Any:
  log_probs = jax.nn.log_softmax(4 * _normal(1, B, T, 3))
  likeliest, mask = log_probs.argmax(-1), jnp.asarray(_MASK)
  return (
    jax.vmap(strata.monotone)(log_probs, mask),
    jax.vmap(strata.median_then_max)(likeliest, mask),
  )


def _batch_norm() -> Any:
  run = lambda x, bias: batch_norm_relu(x, bias, 1e-3)[0]
  return _with_gradient(run, _normal(1, 8, 9, 9, 16), _normal(2, 16))


def _network(dtype: jnp.dtype) -> Any:
  network = inception.InceptionV3(NUM_STRATA, width=0.125, dtype=dtype, rngs=nnx.Rngs(0))
  images = np.random.default_rng(1).integers(0, 256, (2, 96, 96, 1), dtype=np.uint8)
  network.eval()
  return folded_inception.extract_fn(network, dtype)(images)


def _training(**more: Any) -> Any:
  """Losses of three epochs of two members."""
  labels = np.sort(np.random.default_rng(2).integers(0, 3, (B, T)), axis=1)
  labels = np.where(_MASK, labels, 0)
  values = _normal(3, B, T, F) + jnp.asarray(labels[..., None])
  stacks = Features(values, jnp.asarray(labels), jnp.zeros((B, T)), jnp.asarray(_MASK))
  spec = programs.head_spec(num_features=F, max_slices=T, **more)
  training = make_train(spec, stacks, stacks, batch_size=2, epochs=3, epochs_per_call=3)
  who = Member(jnp.arange(2), jnp.array([1, 1]), *(jnp.full(2, v) for v in (1e-3, 0.05, 0.1, 0.0)))
  over = lambda f: jax.jit(over_members(f))
  _, curves = over(training.run)(over(training.init)(who), who, jnp.zeros(2, int))
  return curves[..., 0]


def cases() -> dict[str, Callable[[], Any]]:
  """Name → what it computes."""
  toeplitz_head = {"attention": AttentionSpec("toeplitz", 1)}
  return {
    "GRU": lambda: _gru("auto"),
    "GRU, unrolled": lambda: _gru("unrolled"),
    "RNN": lambda: _recurrent(rnn.simple_rnn, 1),
    "LSTM": lambda: _recurrent(rnn.lstm, 4),
    "class feedback": _feedback,
    "Toeplitz": lambda: _toeplitz("auto"),
    "monotone model": _ordered,
    "decoding": _decoding,
    "batch normalisation": _batch_norm,
    "extraction, float32": lambda: _network(jnp.dtype(jnp.float32)),
    "head training": lambda: _training(**toeplitz_head),
    "head training, feedback": lambda: _training(**toeplitz_head, feedback="own"),
    "head training, ordered": lambda: _training(**toeplitz_head, likelihood="boundaries"),
  }


def _flat(result: Any) -> np.ndarray:
  """Every so many values of each result, of all of them in one vector."""
  parts = []
  for leaf in jax.tree.leaves(result):
    values = np.asarray(leaf, np.float64).ravel()
    parts.append(values[:: max(1, len(values) // _KEPT)][:_KEPT])
  return np.concatenate(parts)


def difference(name: str, precision: str) -> dict[str, Any]:
  """Runs a case and compares it with the file: the largest error, as a share of the largest value."""
  with np.load(FILE, allow_pickle=False) as known:
    expected = known[name]
  with jax.default_matmul_precision(precision):
    got = _flat(cases()[name]())
  error = float(np.abs(got - expected).max() / np.abs(expected).max())
  return {
    "largest_error": error,
    "tolerance": TOLERANCES[precision],
    "agrees": bool(error <= TOLERANCES[precision]),
  }


def main() -> None:
  """Writes the file."""
  found = {name: _flat(case()).astype(np.float32) for name, case in cases().items()}
  np.savez_compressed(FILE, **found)
  print(f"{FILE}: {FILE.stat().st_size / 1e3:.0f} KB, {len(found)} cases")


if __name__ == "__main__":
  main()
