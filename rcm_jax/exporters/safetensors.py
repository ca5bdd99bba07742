"""The weights of a trained model by name, and what it is, as a safetensors file."""

from __future__ import annotations

from flax import nnx
from jaxtyping import Float
import numpy as np
from safetensors.numpy import save

from rcm_jax.inference import bundle as bundle_lib


def serialize(bundle: bundle_lib.Bundle) -> bytes:
  """Returns the weights by name, with the description as the one entry of the metadata."""
  return save(named_weights(bundle), metadata={"bundle": bundle.description.to_json()})


def named_weights(bundle: bundle_lib.Bundle) -> dict[str, Float[np.ndarray, "..."]]:
  """Returns all weights by name: "cnn.…" as the network nests them, "heads.…" with axis M first.

  Encoders of textures have "texture0.filters" and so on, further heads "view0.…".
  """
  network = nnx.state(bundle.network, nnx.Any(nnx.Param, nnx.BatchStat))
  weights = {}
  for part, state in bundle_lib.weight_tree(network, bundle).items():
    flat = [((name,), leaf) for name, leaf in state.items()]  # of an encoder
    if not part.startswith("texture"):
      flat = nnx.to_flat_state(state)
    for path, leaf in flat:
      weights[".".join(map(str, (part, *path)))] = np.ascontiguousarray(leaf[...])
  return weights
