"""Decoders: context of a slice and the previous slice's class probabilities → logits.

Modules work on one stack and are batched by `jax.vmap`.
"""

from __future__ import annotations

from flax import nnx
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from rcm_jax.ops import feedback
from rcm_jax.ops.flat_dot import flat_dot

_glorot = nnx.initializers.glorot_uniform()


class DenseDecoder(nnx.Module):
  """Fully connected layer, told the previous slice's probabilities: for Toeplitz attention.

  Attributes:
    kernel: [E, C].
    bias: [C].
    feedback_kernel: [C, C], or None for a decoder without feedback.
  """

  def __init__(self, size: int, num_strata: int, *, use_feedback: bool, rngs: nnx.Rngs):
    self.kernel = nnx.Param(_glorot(rngs.params(), (size, num_strata)))
    self.bias = nnx.Param(jnp.zeros(num_strata))
    self.feedback_kernel = (
      nnx.Param(_glorot(rngs.params(), (num_strata, num_strata))) if use_feedback else None
    )

  def __call__(
    self,
    context: Float[Array, "T E"],
    mask: Bool[Array, "T"],
    *,
    labels: Float[Array, "T C"] | None = None,
    use_label: Bool[Array, "T"] | None = None,
    recurrent_mask: Float[Array, "H"] | None = None,
  ) -> Float[Array, "T C"]:
    """Returns logits; see `ops.feedback.class_feedback`. Dropout has nothing to act on."""
    return self.decide(self.project(context, mask), mask, labels=labels, use_label=use_label)

  def project(self, h: Float[Array, "T E"], mask: Bool[Array, "T"]) -> Float[Array, "T C"]:
    """The product with the kernel, zero on padding: all that the layer has to do with E columns."""
    return flat_dot(jnp.where(mask[:, None], h, 0), self.kernel[...])

  def decide(
    self,
    projected: Float[Array, "T C"],
    mask: Bool[Array, "T"],
    *,
    labels: Float[Array, "T C"] | None = None,
    use_label: Bool[Array, "T"] | None = None,
  ) -> Float[Array, "T C"]:
    """Logits from `project`'s results."""
    params = {"bias": self.bias[...]}
    if self.feedback_kernel is None:
      return feedback.class_feedback(projected, params, mask)
    params["feedback_kernel"] = self.feedback_kernel[...]
    return feedback.class_feedback(projected, params, mask, labels=labels, use_label=use_label)


class GruDecoder(nnx.Module):
  """GRU with class feedback and a fully connected layer: for global attention.

  Attributes:
    gru_kernel: [E + C, 3 H].
    recurrent_kernel: [H, 3 H].
    gru_bias: [2, 3 H].
    kernel: [H, C].
    bias: [C].
  """

  def __init__(self, size: int, num_strata: int, hidden: int, *, rngs: nnx.Rngs):
    self.gru_kernel = nnx.Param(_glorot(rngs.params(), (size + num_strata, 3 * hidden)))
    self.recurrent_kernel = nnx.Param(
      nnx.initializers.orthogonal()(rngs.params(), (hidden, 3 * hidden))
    )
    self.gru_bias = nnx.Param(jnp.zeros((2, 3 * hidden)))
    self.kernel = nnx.Param(_glorot(rngs.params(), (hidden, num_strata)))
    self.bias = nnx.Param(jnp.zeros(num_strata))

  def __call__(
    self,
    context: Float[Array, "T E"],
    mask: Bool[Array, "T"],
    *,
    labels: Float[Array, "T C"] | None = None,
    use_label: Bool[Array, "T"] | None = None,
    recurrent_mask: Float[Array, "H"] | None = None,
  ) -> Float[Array, "T C"]:
    """Returns logits; see `ops.feedback.gru_feedback`."""
    gru = {
      "kernel": self.gru_kernel[...],
      "recurrent_kernel": self.recurrent_kernel[...],
      "bias": self.gru_bias[...],
    }
    params = {"gru": gru, "kernel": self.kernel[...], "bias": self.bias[...]}
    return feedback.gru_feedback(
      context, params, mask, labels=labels, use_label=use_label, recurrent_mask=recurrent_mask
    )
