"""Recurrent encoders: slice features → one encoding a slice that knows its neighbours.

Modules work on one stack and are batched by `jax.vmap`.
"""

from __future__ import annotations

from collections.abc import Callable
import functools

from flax import nnx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from rcm_jax.ops import gru, rnn

# cell → (gates, biases, one direction, both directions)
CELLS: dict[str, tuple[int, tuple[int, ...], Callable, Callable]] = {
  "gru": (3, (2,), gru.gru, gru.bidirectional_gru),
  "rnn": (1, (), rnn.simple_rnn, functools.partial(rnn.bidirectional, rnn.simple_rnn)),
  "lstm": (4, (), rnn.lstm, functools.partial(rnn.bidirectional, rnn.lstm)),
}


class RecurrentEncoder(nnx.Module):
  """GRU, plain RNN or LSTM, in one direction or both (Methods, "Experiments").

  Attributes:
    kernel: [directions, F, gates · H] (no leading axis if in one direction).
    recurrent_kernel: [directions, H, gates · H].
    bias: [directions, …], as the cell has it.
    size: width of an encoding, H or 2 H.
  """

  def __init__(
    self,
    num_features: int,
    hidden: int,
    *,
    cell: str,
    bidirectional: bool,
    forget_bias: float = 0.0,
    rngs: nnx.Rngs,
  ):
    """Initialises as Keras does: Glorot uniform, orthogonal recurrent, zero bias.

    Args:
      num_features: F of a slice.
      hidden: H.
      cell: a key of `CELLS`.
      bidirectional: whether there is a second layer, from deep to shallow.
      forget_bias: what the bias of an LSTM's forget gates starts at, 1 in Keras.
      rngs: stream `params`.
    """
    gates, biases, forward, both = CELLS[cell]
    self.layer = both if bidirectional else forward
    self.bidirectional = bidirectional
    self.size = hidden * (1 + bidirectional)
    leading = (2,) if bidirectional else ()
    glorot = nnx.initializers.glorot_uniform(batch_axis=0 if bidirectional else ())
    orthogonal = nnx.initializers.orthogonal()
    keys = jax.random.split(rngs.params(), leading) if leading else rngs.params()
    draw = lambda key: orthogonal(key, (hidden, gates * hidden))
    self.recurrent_kernel = nnx.Param(jax.vmap(draw)(keys) if leading else draw(keys))
    self.kernel = nnx.Param(glorot(rngs.params(), (*leading, num_features, gates * hidden)))
    bias = jnp.zeros((*leading, *biases, gates * hidden))
    if cell == "lstm":
      bias = bias.at[..., hidden : 2 * hidden].set(forget_bias)  # gates i, f, g, o
    self.bias = nnx.Param(bias)

  def __call__(
    self,
    x: Float[Array, "T F"],
    mask: Bool[Array, "T"],
    recurrent_mask: Float[Array, "*directions H"] | None = None,
  ) -> Float[Array, "T E"]:
    """Encodes one stack.

    Args:
      x: features of its slices.
      mask: True on real slices.
      recurrent_mask: dropout on the recurrent connections, 0 or 1 / keep probability.
    """
    params = {
      "kernel": self.kernel[...],
      "recurrent_kernel": self.recurrent_kernel[...],
      "bias": self.bias[...],
    }
    return self.layer(x, params, mask, recurrent_mask=recurrent_mask)


def encode_windows(
  encoder: RecurrentEncoder,
  x: Float[Array, "T F"],
  mask: Bool[Array, "T"],
  width: int,
  recurrent_mask: Float[Array, "*directions H"] | None = None,
) -> Float[Array, "T E"]:
  """Encodes each slice from the `width` slices around it alone: the paper's partial sequence.

  Windows that reach over an end of the stack are shorter (our choice: the paper does
  not say).
  """
  offsets = jnp.arange(width) - width // 2
  rows = jnp.arange(x.shape[0])[:, None] + offsets
  inside = (rows >= 0) & (rows < x.shape[0])
  rows = jnp.clip(rows, 0, x.shape[0] - 1)
  windows = jax.vmap(encoder, in_axes=(0, 0, None))(x[rows], mask[rows] & inside, recurrent_mask)
  return windows[:, width // 2]
