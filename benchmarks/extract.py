"""Feature extraction: ours by XLA and by ONNX Runtime against the training graph and its peers.

Peers are Keras on JAX, PyTorch, and ONNX Runtime on a graph as exporters write it. All run one
Inception-V3 with the same values, uint8 in, 256 features out; `extract_peers` makes the peers'
networks from ours. On an accelerator ours and PyTorch compute in bfloat16.
"""

from __future__ import annotations

from flax import nnx
import jax
import jax.numpy as jnp
import numpy as np

from benchmarks import extract_peers, timing
from rcm_jax.cnn import folded_inception, inception

# images at once, pixels a side
CASES = {"cpu": [(8, 299), (8, 150)], "gpu": [(256, 299), (32, 299)]}
AGREEMENT = {"float32": 1e-4, "bfloat16": 0.05}  # relative to the largest feature


def rows(peers: bool) -> list[dict]:
  """Seconds a batch; every implementation's features are compared with the training graph's."""
  backend = jax.default_backend()
  dtype = jnp.float32 if backend == "cpu" else jnp.bfloat16
  network = inception.InceptionV3(3, dtype=dtype, rngs=nnx.Rngs(0))
  network.eval()
  return [row for case in CASES[backend] for row in _case(network, dtype, *case, peers=peers)]


def _case(
  network: inception.InceptionV3, dtype: jnp.dtype, batch: int, size: int, *, peers: bool
) -> list[dict]:
  images = np.random.default_rng(0).integers(0, 256, (batch, size, size, 1), dtype=np.uint8)
  on_device = jnp.asarray(images)
  extract = folded_inception.extract_fn(network, dtype)
  calls = {
    "ours": lambda: extract(on_device)[0],
    "ours/train graph": _graph(network, on_device),
  }
  in_onnx = jax.default_backend() == "cpu" and timing.peer("onnx") and timing.peer("onnxruntime")
  if in_onnx:
    from rcm_jax.exporters.onnx import extractor

    on_host = extractor.extract_fn(network)
    calls["ours/onnxruntime"] = lambda: on_host(images)[0]
  if peers:
    if timing.peer("keras"):
      calls["keras-jax"] = extract_peers.keras_call(network, on_device)
    if in_onnx:
      calls["onnxruntime"] = extract_peers.onnxruntime_call(network, images)
    if timing.peer("torch"):
      calls["torch"] = extract_peers.torch_call(network, images)
  _check({name: np.asarray(call()) for name, call in calls.items()}, jnp.dtype(dtype).name)
  timed = timing.alternate(calls, repeats=5, warmup=1, min_seconds=0)
  operations = timing.product_flops(extract, on_device)
  precision = {} if dtype == jnp.float32 else {"dtype": "bfloat16"}
  floor = operations / timing.matmul_flops_per_second(**precision)
  case = f"batch {batch}, {size} px"
  return [timing.row("extract", case, name, t, floor) for name, t in timed.items()]


def _graph(network: inception.InceptionV3, images: jax.Array):
  graph, state = nnx.split(network)

  @jax.jit
  def features(state, images):
    return nnx.merge(graph, state).features(inception.from_uint8(images))

  return lambda: features(state, images)


def _check(features: dict[str, np.ndarray], dtype: str) -> None:
  """A peer that computes something else would make the comparison worthless."""
  expected = features["ours/train graph"]
  for name, values in features.items():
    error = np.abs(values - expected).max() / np.abs(expected).max()
    if not error < AGREEMENT[dtype]:
      raise ValueError(
        f"extract: {name} differs from the training graph by {error:.1e} of its range"
      )
