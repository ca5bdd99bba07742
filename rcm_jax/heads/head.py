"""A sequence head: encoder → attention → decoder (Figure 3), put together from a description."""

from __future__ import annotations

from collections.abc import Mapping
import dataclasses
import functools
from typing import Any, Literal, NamedTuple, get_args

from flax import nnx
import jax
from jaxtyping import Array, Bool, Float, Key

from rcm_jax.decoding import monotone_model
from rcm_jax.heads.attention import (
  AttentionSpec,
  GlobalAttention,
  HalfWidth,
  NoAttention,
  ToeplitzAttention,
)
from rcm_jax.heads.decoders import DenseDecoder, GruDecoder
from rcm_jax.heads.encoders import CELLS, RecurrentEncoder, encode_windows
from tfds_rcm.errors import UserError, check_one_of

Decoder = Literal["dense", "gru"]
Feedback = Literal["none", "own", "teacher", "scheduled"]
Likelihood = Literal["slices", "boundaries"]


@dataclasses.dataclass(frozen=True)
class HeadSpec:
  """Architecture of a head; what members of one program share.

  Attributes:
    num_features: F of a slice.
    hidden: H of the recurrent layers.
    cell: of the encoder; `encoders.CELLS` has them.
    bidirectional: whether the encoder runs both ways.
    window: slices that the encoder sees around each slice (odd); None for the stack.
    attention: between the encoder and the decoder.
    max_slices: longest stack in training.
    decoder: a dense layer, or a GRU over the slices.
    feedback: what the decoder is given of the previous slice: nothing, its own probabilities
      ("own"), or in training the label always ("teacher") or less and less often ("scheduled").
    likelihood: of a stack's labels: "slices" takes each slice by itself, as the paper does;
      "boundaries" makes the decoder's outputs unary scores of `decoding.monotone_model`, and the
      head's probabilities its marginals.
    forget_bias: what the bias of an LSTM's forget gates starts at; 1 in Keras.
    num_strata: C, that are told apart; the paper's are 3.
  """

  num_features: int
  hidden: int
  cell: str
  bidirectional: bool
  window: int | None
  attention: AttentionSpec
  max_slices: int
  decoder: Decoder
  feedback: Feedback
  likelihood: Likelihood = "slices"
  forget_bias: float | int = 0.0
  num_strata: int = 3

  def __post_init__(self):
    for name, value, allowed in (
      ("cell", self.cell, tuple(CELLS)),
      ("attention", self.attention.kind, tuple(ATTENTIONS)),
      ("decoder", self.decoder, get_args(Decoder)),
      ("feedback", self.feedback, get_args(Feedback)),
      ("likelihood", self.likelihood, get_args(Likelihood)),
    ):
      check_one_of(f"config.head.{name}", value, allowed)
    if self.window is not None and (self.window < 1 or self.window % 2 == 0):
      raise UserError(
        f"config.head.window: {self.window} slices have no middle; give an odd number"
      )
    if not 0 <= self.attention.half_width < self.max_slices:
      raise UserError(
        f"config.head.half_widths: {self.attention.half_width} is outside 0 to "
        f"{self.max_slices - 1}, the longest stack has {self.max_slices} slices"
      )
    if self.decoder == "gru" and self.feedback == "none":
      raise UserError(
        "config.head.decoder: the 'gru' decoder lives from feedback; set "
        "config.head.feedback to own, teacher or scheduled"
      )

  @property
  def ordered(self) -> bool:
    """Whether the probabilities are marginals of the monotone model."""
    return self.likelihood == "boundaries"

  @property
  def limit(self) -> int | None:
    """Slices that the head can see at most: location attention has one score a slice."""
    return self.max_slices if self.attention.kind == "location" else None


def current_fields(fields: Mapping[str, Any]) -> dict[str, Any]:
  """Returns the fields of a `HeadSpec`, as `dataclasses.asdict` has them, of those of any version."""
  fields = dict(fields)
  if not isinstance(fields.get("attention"), Mapping):  # version 0.1 had attention's fields here
    for name in ("input_dropout", "average"):
      fields.pop(name, None)
    old = {"half_width": "half_width", "edge_mode": "boundary", "units": "units"}
    given = {name: fields.pop(of, None) for name, of in old.items()}
    fields["attention"] = {"kind": fields.get("attention"), **given}
  return fields


def spec_of(fields: Mapping[str, Any]) -> HeadSpec:
  """Returns the architecture that has these fields, of any version."""
  fields = current_fields(fields)
  return HeadSpec(**{**fields, "attention": AttentionSpec(**fields["attention"])})


# A new kind of attention or decoder is one entry here.
ATTENTIONS = {
  "none": lambda spec, size, rngs: NoAttention(),
  "toeplitz": lambda spec, size, rngs: ToeplitzAttention(
    spec.attention.half_width, edge_mode=spec.attention.edge_mode
  ),
  "additive": lambda spec, size, rngs: GlobalAttention(
    size, spec.attention.units, score="additive", max_slices=spec.max_slices, rngs=rngs
  ),
  "location": lambda spec, size, rngs: GlobalAttention(
    size, spec.attention.units, score="location", max_slices=spec.max_slices, rngs=rngs
  ),
}
DECODERS = {
  "dense": lambda spec, size, rngs: DenseDecoder(
    size, spec.num_strata, use_feedback=spec.feedback != "none", rngs=rngs
  ),
  "gru": lambda spec, size, rngs: GruDecoder(size, spec.num_strata, spec.hidden, rngs=rngs),
}


class DropoutMasks(NamedTuple):
  """One stack's dropout on recurrent connections: 0, or 1 / keep probability.

  Attributes:
    encoder: [H] a direction.
    decoder: [H], unused by a dense decoder.
  """

  encoder: Float[Array, "*directions H"]
  decoder: Float[Array, "H"]


def dropout_masks(
  spec: HeadSpec, key: Key[Array, ""], rate: Float[Array, ""] | float
) -> DropoutMasks:
  """Draws one stack's dropout; `rate` may be traced."""
  directions = (2,) if spec.bidirectional else ()
  encoder, decoder = jax.random.split(key)
  keep = 1 - rate
  draw = lambda key, shape: jax.random.bernoulli(key, keep, shape) / keep
  return DropoutMasks(draw(encoder, (*directions, spec.hidden)), draw(decoder, (spec.hidden,)))


class Head(nnx.Module):
  """Class logits of every slice of one stack, from its slices' features."""

  def __init__(self, spec: HeadSpec, rngs: nnx.Rngs):
    self.spec = spec
    self.encoder = RecurrentEncoder(
      spec.num_features,
      spec.hidden,
      cell=spec.cell,
      bidirectional=spec.bidirectional,
      forget_bias=spec.forget_bias,
      rngs=rngs,
    )
    self.attention = ATTENTIONS[spec.attention.kind](spec, self.encoder.size, rngs)
    self.decoder = DECODERS[spec.decoder](spec, self.encoder.size, rngs)

  def encode(
    self, x: Float[Array, "T F"], mask: Bool[Array, "T"], dropout: DropoutMasks | None = None
  ) -> Float[Array, "T E"]:
    """Encodings of the slices, before attention."""
    recurrent_mask = None if dropout is None else dropout.encoder
    if self.spec.window is None:
      return self.encoder(x, mask, recurrent_mask)
    return encode_windows(self.encoder, x, mask, self.spec.window, recurrent_mask)

  def __call__(
    self, x: Float[Array, "T F"], mask: Bool[Array, "T"], *, half_width: HalfWidth = None
  ) -> Float[Array, "T C"]:
    """Classifies the slices of one stack.

    Returns:
      Logits, zero on padding; with the likelihood of the boundaries, logarithms of the marginals.
    """
    unary_scores = self.unary_scores(x, mask, half_width=half_width)
    return monotone_model.log_marginals(unary_scores, mask) if self.spec.ordered else unary_scores

  def unary_scores(
    self,
    x: Float[Array, "T F"],
    mask: Bool[Array, "T"],
    *,
    half_width: HalfWidth = None,
    dropout: DropoutMasks | None = None,
    labels: Float[Array, "T C"] | None = None,
    use_label: Bool[Array, "T"] | None = None,
  ) -> Float[Array, "T C"]:
    """What the decoder says of each slice, which training sees.

    Args:
      x: features; padding may hold anything.
      mask: True on real slices.
      half_width: D of this member, at most the specification's.
      dropout: recurrent dropout in training.
      labels: one-hot strata, for feedback of labels in training.
      use_label: slices that are told the label; None means all, if labels are given.

    Returns:
      Logits of the slices, each by itself; zero on padding.
    """
    h = self.encode(x, mask, dropout)
    if self.spec.attention.kind == "toeplitz" and self.spec.decoder == "dense":
      # Both are linear, one in the slices and one in the columns: (A h) W = A (h W) has E / C times
      # fewer values to attend to.
      projected = self.attention(self.decoder.project(h, mask), mask, half_width)
      return self.decoder.decide(projected, mask, labels=labels, use_label=use_label)
    context = self.attention(h, mask, half_width)
    return self.decoder(
      context,
      mask,
      labels=labels,
      use_label=use_label,
      recurrent_mask=None if dropout is None else dropout.decoder,
    )

  def attention_weights(
    self, x: Float[Array, "T F"], mask: Bool[Array, "T"], half_width: HalfWidth = None
  ) -> Float[Array, "T T"]:
    """Attention map of one stack (Figure 4): row n weighs the slices that slice n sees."""
    return self.attention.weights(self.encode(x, mask), mask, half_width)


@functools.cache  # the training's program asks for it in several places
def outline(spec: HeadSpec) -> tuple[nnx.GraphDef, Any]:
  """Returns a head's static half, and the shapes of its parameters; both are shared, not to be changed."""
  return nnx.split(nnx.eval_shape(lambda: Head(spec, nnx.Rngs(0))))


def stacked_shapes(spec: HeadSpec, members: int) -> Any:
  """Returns the shapes of several heads' parameters, leading axis M."""
  stacked = lambda leaf: jax.ShapeDtypeStruct((members, *leaf.shape), leaf.dtype)
  return jax.tree.map(stacked, outline(spec)[1])
