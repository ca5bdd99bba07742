"""The first day's measurements, most important first. A part is a list of rows: a name and what measures it."""

from __future__ import annotations

from collections.abc import Callable
import functools
from typing import Any

from flax import nnx
import jax
import jax.numpy as jnp
import numpy as np

from benchmarks import gru, heads, peer, timing, toeplitz
from benchmarks.gpu import cnn_programs, parity, programs
from rcm_jax.anatomy import PAPER
from rcm_jax.arrays import MAX_SLICES
from rcm_jax.cnn import folded_inception, inception, train_step
from rcm_jax.heads.attention import AttentionSpec
from rcm_jax.heads.head import Head
from rcm_jax.runtime import devices

NUM_STRATA = len(PAPER)

Row = tuple[str, Callable[[], dict[str, Any]]]
PATIENCE = 180.0  # seconds for one call of a peer; torch.compile takes about a minute
TRAINED_SLICES = 10_409  # of the paper's 245 stacks, at its mean of 42.5 slices a stack


def _sizes(dry: bool) -> dict[str, Any]:
  if dry:
    return {
      "members": (), "sweep": 2, "epochs": 5, "batches": (2,), "side": 80, "width": 0.125,
      "cnn": (4,), "stack": 3, "gru": ((2, 1),), "toeplitz": [(2, 12, 4, 1)],
    }  # fmt: skip
  return {
    "members": (1, 8, 64, 128), "sweep": 120, "epochs": 200, "batches": (256, 64, 32),
    "side": cnn_programs.SIDE, "width": 1.0, "cnn": (32, 128), "stack": MAX_SLICES,
    "gru": gru.CASES, "toeplitz": toeplitz.CASES,
  }  # fmt: skip


def rows(part: str, *, dry: bool) -> list[Row]:
  """Returns the rows of a part."""
  return PARTS[part](_sizes(dry))


def _timed(call: Callable[[], Any], repeats: int = 5, **more: float) -> dict[str, Any]:
  seconds = timing.alternate({"": call}, repeats=repeats, warmup=1)[""]
  scaled = {name: value / seconds["median"] for name, value in more.items()}
  return {**{f"seconds_{k}": v for k, v in seconds.items()}, **scaled}


def _parity(sizes: dict[str, Any]) -> list[Row]:
  del sizes
  return [
    (f"{name}, {precision}", functools.partial(parity.difference, name, precision))
    for precision in parity.TOLERANCES
    for name in parity.cases()
  ]


def _heads(sizes: dict[str, Any]) -> list[Row]:
  per_model = heads.EPOCHS

  def ours(members: int) -> dict[str, Any]:
    call = heads.ours(members, "toeplitz", 1, feedback="own")
    return _timed(call, repeats=3, epochs_a_second=per_model * members)

  def sweep() -> dict[str, Any]:
    call = heads.ours(sizes["sweep"], "toeplitz", 7, feedback="own")
    turns = sizes["epochs"] // per_model
    jax.block_until_ready(call())

    def whole():
      for _ in range(turns):
        found = call()
      return found

    return _timed(whole, repeats=1)

  def alone(stacks: int, members: int) -> dict[str, Any]:
    return _timed(gru.ours(gru.inputs(stacks), members, "auto"))

  return [
    (f"sweep of {sizes['sweep']} members, {sizes['epochs']} epochs", sweep),
    *((f"{count} members", functools.partial(ours, count)) for count in sizes["members"]),
    ("torch, nn.GRU of cuDNN", lambda: _timed(_peer("benchmarks.heads", "_torch"), 3)),
    *(
      (f"GRU, {stacks} stacks, {members} members", functools.partial(alone, stacks, members))
      for stacks, members in sizes["gru"]
    ),
    *(
      (
        f"GRU, {stacks} stacks, torch",
        lambda n=stacks: _timed(_peer("benchmarks.gru", "_torch", n)),
      )
      for stacks, members in sizes["gru"]
      if members == 1
    ),
  ]


def _peer(module: str, function: str, *args: Any) -> Callable[[], None]:
  package = "torch"
  if not timing.peer(package):
    raise ModuleNotFoundError(f"{package} is not installed")
  return peer.call(module, function, *args, patience=PATIENCE)


def _network(sizes: dict[str, Any]) -> inception.InceptionV3:
  network = inception.InceptionV3(
    NUM_STRATA, width=sizes["width"], dtype=_dtype(), rngs=nnx.Rngs(0)
  )
  network.eval()
  return network


def _images(sizes: dict[str, Any], count: int) -> jax.Array:
  shape = (count, sizes["side"], sizes["side"], 1)
  return jnp.asarray(np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8))


def _extractor(sizes: dict[str, Any]):
  return folded_inception.extract_fn(_network(sizes), _dtype())


def _dtype() -> jnp.dtype:
  return jnp.dtype(jnp.float32 if jax.default_backend() == "cpu" else jnp.bfloat16)


def _extract(sizes: dict[str, Any]) -> list[Row]:
  def ours(batch: int) -> dict[str, Any]:
    see, images = _extractor(sizes), _images(sizes, batch)
    return _timed(lambda: see(images)[0], slices_a_second=batch)

  def theirs(batch: int) -> dict[str, Any]:
    call = _peer("benchmarks.gpu.peers", "inception", batch, sizes["side"])
    return _timed(call, slices_a_second=batch)

  return [
    row
    for batch in sizes["batches"]
    for row in (
      (f"batch {batch}", functools.partial(ours, batch)),
      (f"batch {batch}, torch.compile", functools.partial(theirs, batch)),
    )
  ]


def _toeplitz(sizes: dict[str, Any]) -> list[Row]:
  def case(values: tuple[int, ...]) -> dict[str, Any]:
    found = toeplitz.case_rows(*values, peers=False)
    return {f"{r['case']}, {r['implementation']}": r["seconds_median"] for r in found}

  return [
    (" × ".join(map(str, values[:3])) + f", D = {values[3]}", functools.partial(case, values))
    for values in sizes["toeplitz"]
  ]


def _cnn(sizes: dict[str, Any]) -> list[Row]:
  def train(batch: int) -> dict[str, Any]:
    spec = cnn_programs.cnn_spec(batch, groups=1, width=sizes["width"])
    mesh = devices.device_mesh(1)
    built = train_step.build(spec, 100, mesh)
    state = [jax.device_put(built.start)]
    rows_ = jnp.arange(batch, dtype=jnp.int32)
    images, labels = _images(sizes, batch), jnp.zeros(batch, jnp.int32)

    def step():
      state[0], metrics = built.train(state[0], np.uint32(0), np.int32(0), rows_, images, labels)
      return metrics

    found = _timed(step, repeats=9, slices_a_second=batch)
    return {**found, "paper_epoch_seconds": TRAINED_SLICES / found["slices_a_second"]}

  return [(f"step, batch {batch}", functools.partial(train, batch)) for batch in sizes["cnn"]]


def _predict(sizes: dict[str, Any]) -> list[Row]:
  def latency(slices: int) -> dict[str, Any]:
    see = _extractor(sizes)
    head = Head(programs.head_spec(attention=AttentionSpec("toeplitz", 1)), nnx.Rngs(0))
    graph, params = nnx.split(head)
    mask = jnp.ones(sizes["stack"], bool)
    images = np.asarray(_images(sizes, slices))

    @jax.jit
    def read(params, images):
      features = jnp.zeros((sizes["stack"], gru.FEATURES)).at[:slices].set(see(images)[0])
      return jax.nn.softmax(nnx.merge(graph, params)(features, mask))

    return _timed(lambda: np.asarray(read(params, images)), repeats=15)

  return [
    ("streaming: one slice, host to host", lambda: latency(1)),
    (f"a stack of {sizes['stack']} slices, host to host", lambda: latency(sizes["stack"])),
  ]


PARTS: dict[str, Callable[[dict[str, Any]], list[Row]]] = {
  "parity": _parity,
  "heads": _heads,
  "extract": _extract,
  "toeplitz": _toeplitz,
  "cnn": _cnn,
  "predict": _predict,
}
