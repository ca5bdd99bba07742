"""Attention over depth: each slice's encoding → a weighted mean of the stack's encodings.

Modules work on one stack and are batched by `jax.vmap`. Every one has `weights`, the
attention map whose row n says how much each slice counts for slice n.
"""

from __future__ import annotations

import dataclasses
from typing import get_args

from flax import nnx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from rcm_jax.ops import toeplitz
from tfds_rcm.errors import check_one_of

HalfWidth = Int[Array, ""] | int | None


@dataclasses.dataclass(frozen=True)
class AttentionSpec:
  """How slices see each other; what is of another kind of attention says nothing.

  Attributes:
    kind: of attention; `head.ATTENTIONS` has them.
    half_width: largest D of the members, of Toeplitz attention.
    edge_mode: what Toeplitz attention does beyond the ends of a stack: "zero" leaves the weights
      there out, as the paper does, "renormalize" shares them out.
    units: of the perceptron of global attention.
  """

  kind: str = "none"
  half_width: int = 0
  edge_mode: toeplitz.EdgeMode = "zero"
  units: int = 64

  def __post_init__(self):
    check_one_of("config.head.edge_mode", self.edge_mode, get_args(toeplitz.EdgeMode))


class NoAttention(nnx.Module):
  """Hands the encodings on: the full-sequence model of Bozkurt et al. 2017."""

  def __call__(
    self, h: Float[Array, "T E"], mask: Bool[Array, "T"], half_width: HalfWidth = None
  ) -> Float[Array, "T E"]:
    return h

  def weights(
    self, h: Float[Array, "T E"], mask: Bool[Array, "T"], half_width: HalfWidth = None
  ) -> Float[Array, "T T"]:
    """Returns the identity on real slices."""
    return jnp.diag(mask.astype(h.dtype))


class ToeplitzAttention(nnx.Module):
  """Weights that depend on the offset alone ("RCNs with Toeplitz attention").

  Attributes:
    logits: [2 D + 1], softmax of which weighs the slices from D above to D below.
  """

  def __init__(self, half_width: int, *, edge_mode: toeplitz.EdgeMode):
    """Starts from equal weights.

    Args:
      half_width: D, or the largest D of several members trained side by side.
      edge_mode: "zero" as in the paper, or "renormalize" where the stack ends.
    """
    self.logits = nnx.Param(jnp.zeros(2 * half_width + 1))
    self.edge_mode = edge_mode

  def taps(self, half_width: HalfWidth = None) -> Float[Array, "K"]:
    """Returns the weights by offset, shallow to deep, zero beyond `half_width`."""
    return toeplitz.toeplitz_weights(self.logits[...], half_width)

  def __call__(
    self, h: Float[Array, "T E"], mask: Bool[Array, "T"], half_width: HalfWidth = None
  ) -> Float[Array, "T E"]:
    return toeplitz.toeplitz_attention(h, self.taps(half_width), mask, edge_mode=self.edge_mode)

  def weights(
    self, h: Float[Array, "T E"], mask: Bool[Array, "T"], half_width: HalfWidth = None
  ) -> Float[Array, "T T"]:
    """Returns the band matrix that the call multiplies by."""
    identity = jnp.eye(h.shape[0], dtype=h.dtype)
    return (
      toeplitz.toeplitz_attention(identity, self.taps(half_width), mask, edge_mode=self.edge_mode)
      * mask
    )


class GlobalAttention(nnx.Module):
  """Weights over the whole stack ("RCNs with global attention").

  The paper has the weights "calculated by a multi-layer perceptron from h_n" and cites
  Bahdanau et al. for it, which allows two readings:
    additive: score(n, m) = vᵀ tanh(W h_n + U h_m), any number of slices;
    location: a perceptron from h_n alone to one score a slice, at most `max_slices`.
  """

  def __init__(self, size: int, units: int, *, score: str, max_slices: int, rngs: nnx.Rngs):
    self.score = score
    self.query = nnx.Linear(size, units, rngs=rngs)
    if score == "additive":
      self.key = nnx.Linear(size, units, use_bias=False, rngs=rngs)
      self.value = nnx.Linear(units, 1, use_bias=False, rngs=rngs)
    else:
      self.value = nnx.Linear(units, max_slices, rngs=rngs)

  def weights(
    self, h: Float[Array, "T E"], mask: Bool[Array, "T"], half_width: HalfWidth = None
  ) -> Float[Array, "T T"]:
    """Returns rows that sum to one over real slices; zero on padding.

    Raises:
      ValueError: a "location" model is given more slices than it has scores for.
    """
    h = jnp.where(mask[:, None], h, 0)
    if self.score == "additive":
      scores = self.value(jnp.tanh(self.query(h)[:, None] + self.key(h)[None]))[..., 0]
    else:
      length, limit = h.shape[0], self.value.out_features
      if length > limit:
        raise ValueError(
          f"location attention scores {limit} slices, got a stack of {length}; "
          "clip it or use the additive score"
        )
      scores = self.value(jnp.tanh(self.query(h)))[:, :length]
    rows = jax.nn.softmax(jnp.where(mask, scores, -1e30), axis=-1)
    return jnp.where(mask[:, None] & mask, rows, 0)

  def __call__(
    self, h: Float[Array, "T E"], mask: Bool[Array, "T"], half_width: HalfWidth = None
  ) -> Float[Array, "T E"]:
    return self.weights(h, mask) @ jnp.where(mask[:, None], h, 0)
