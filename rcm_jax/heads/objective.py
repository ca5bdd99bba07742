"""What one member of a sweep minimises, and what its snapshots are chosen by."""

from __future__ import annotations

from typing import Any, Literal, NamedTuple

from flax import nnx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, Key

from rcm_jax.arrays import ArrayLike, Features
from rcm_jax.decoding import monotone_model
from rcm_jax.decoding import strata as strata_lib
from rcm_jax.heads import losses
from rcm_jax.heads.head import DropoutMasks, HeadSpec, dropout_masks, outline


class Member(NamedTuple):
  """One training; each field a number, or an array with one entry a member.

  Attributes:
    seed: of initialisation, order and dropout.
    half_width: D of Toeplitz attention.
    learning_rate: Adam's, constant.
    l1: weight of the mean absolute recurrent weight in the loss.
    dropout: rate on the recurrent connections.
    mae_weight: of the expected boundary error in the loss, per µm; with the likelihood of the
      boundaries only.
  """

  seed: Any
  half_width: Any
  learning_rate: Any
  l1: Any
  dropout: Any
  mae_weight: Any = 0.0


L1Reduction = Literal["mean", "sum"]
# What an ordered head's unary scores are tried to be divided by.
TEMPERATURES = (0.8, 1.0, 1.25, 1.6, 2.0, 2.5, 3.2, 4.0, 5.0, 6.4)


def recurrent_penalty(params: Any, reduction: L1Reduction = "mean") -> Float[Array, ""]:
  """Absolute recurrent weights, summed over the recurrent matrices, one a direction.

  The paper gives the coefficient, 0.05, but not the reduction. The mean is our reading. Keras'
  regulariser adds up all weights of a matrix, 12,288 at the paper's size, and so weighs that many
  times more: at the paper's scale it shrinks the recurrent weights of the kept snapshots to 0.0001
  and leaves accuracy about as it is (88.2 against 88.4 %, two seeds).

  Args:
    params: of a head.
    reduction: of a matrix: "mean" or "sum".
  """
  reduce = {"mean": jnp.mean, "sum": jnp.sum}[reduction]
  leaves = jax.tree_util.tree_leaves_with_path(params)
  return sum(
    reduce(jnp.abs(leaf), axis=(-2, -1)).sum()
    for path, leaf in leaves
    if "recurrent_kernel" in jax.tree_util.keystr(path)
  )


class Draws(NamedTuple):
  """What is random in one step.

  Attributes:
    dropout: a mask of each stack's recurrent connections.
    use_label: slices whose decoder is given the previous label; None where none ever is.
    features: by stack, 0 for a hidden feature, else 1 / keep probability; None where none is hidden.
    crop: by stack, see `losses.crop`; None where stacks stay whole.
  """

  dropout: DropoutMasks
  use_label: Bool[Array, "*dims"] | None
  features: Float[Array, "*dims"] | None
  crop: Float[Array, "*stacks 2"] | None = None


def draw(
  spec: HeadSpec,
  member: Member,
  key: Key[Array, ""],
  mask_shape: tuple[int, int],
  teacher_forcing_rate: Float[ArrayLike, ""] | float,
  input_dropout: float = 0.0,
  shortest_crop: float = 1.0,
) -> Draws:
  """Draws one step's dropout and labels for feedback.

  Args:
    spec: the architecture.
    member: whose dropout rate it is.
    key: of this step.
    mask_shape: stacks and slices of the batch.
    teacher_forcing_rate: share of slices whose decoder is given the previous label, in the modes
      that give any.
    input_dropout: share of the features that are hidden from all slices of a stack.
    shortest_crop: share of a stack's slices that the shortest crop has; 1 leaves stacks whole.
  """
  dropout_key, label_key = jax.random.split(key)
  keys = jax.random.split(dropout_key, mask_shape[0])
  dropout = jax.vmap(lambda key: dropout_masks(spec, key, member.dropout))(keys)
  gives_labels = spec.feedback in ("teacher", "scheduled")
  use_label = (
    jax.random.bernoulli(label_key, teacher_forcing_rate, mask_shape) if gives_labels else None
  )
  features = None
  if input_dropout:
    keep, shape = 1 - input_dropout, (mask_shape[0], spec.num_features)
    features = jax.random.bernoulli(jax.random.fold_in(key, 2), keep, shape) / keep
  crop = None
  if shortest_crop < 1:
    crop = jax.random.uniform(jax.random.fold_in(key, 3), (mask_shape[0], 2))
  return Draws(dropout, use_label, features, crop)


def loss(
  spec: HeadSpec,
  params: Any,
  member: Member,
  values: Float[ArrayLike, "B T F"],
  truth: losses.Targets,
  draws: Draws,
  l1_reduction: L1Reduction = "mean",
  shortest_crop: float = 1.0,
) -> tuple[Float[Array, ""], Float[Array, ""]]:
  """What one member's training minimises on a batch of stacks.

  Args:
    spec: the architecture.
    params: the member's.
    member: its hyperparameters.
    values: features of the stacks' slices.
    truth: about the same stacks.
    draws: of this step.
    l1_reduction: see `recurrent_penalty`.
    shortest_crop: see `draw`.

  Returns:
    The loss with its penalty on weights, and without.
  """
  model = nnx.merge(outline(spec)[0], params)
  if draws.crop is not None:
    values, truth = jax.vmap(losses.crop, (0, 0, 0, None))(values, truth, draws.crop, shortest_crop)
  if draws.features is not None:
    values = values * draws.features[:, None]

  def one(x, real, y, draws):
    return model.unary_scores(
      x,
      real,
      half_width=member.half_width,
      dropout=draws.dropout,
      labels=None if draws.use_label is None else y,
      use_label=draws.use_label,
    )

  scores = jax.vmap(one)(values, truth.mask, truth.labels, draws)
  if spec.ordered:
    of_data = losses.of_boundaries(scores, truth, member.mae_weight)
  else:
    of_data = losses.of_slices(scores, truth)
  return of_data + member.l1 * recurrent_penalty(params, l1_reduction), of_data


def correct(
  spec: HeadSpec, params: Any, member: Member, features: Features
) -> tuple[Int[Array, ""], Int[Array, ""]]:
  """Returns how many slices one member classifies right, and how many there are."""
  model = nnx.merge(outline(spec)[0], params)
  mask = jnp.asarray(features.mask)
  logits = jax.vmap(lambda x, m: model(x, m, half_width=member.half_width))(
    jnp.asarray(features.values), mask
  )
  strata = strata_lib.strata_of(jax.nn.softmax(logits), ordered=spec.ordered)
  right = (strata == features.labels) & mask
  return right.sum(), mask.sum()


def accuracy(spec: HeadSpec, params: Any, member: Member, features: Features) -> Float[Array, ""]:
  """Returns the share of slices that one member classifies right."""
  right, count = correct(spec, params, member, features)
  return right / count


def unary_scores(
  spec: HeadSpec, params: Any, member: Member, features: Features
) -> Float[Array, "N T C"]:
  """Returns an ordered head's scores of stacks, as `fit_temperature` needs them."""
  model = nnx.merge(outline(spec)[0], params)
  return jax.vmap(lambda x, m: model.unary_scores(x, m, half_width=member.half_width))(
    jnp.asarray(features.values), jnp.asarray(features.mask)
  )


def fit_temperature(
  spec: HeadSpec, params: Any, scores: Float[ArrayLike, "N T C"], truth: losses.Targets
) -> tuple[Any, Float[Array, ""]]:
  """Divides an ordered head's unary scores by what makes the boundaries of these stacks most probable.

  Trained on boundaries that readers misplace, a head grows too sure: its medians become its most
  probable boundaries, which err more. The decoder's last layer takes the temperature up, so
  that the head's probabilities are calibrated as they leave it.

  Args:
    spec: an ordered head's; with class feedback, its scores are left as they are.
    params: the member's.
    scores: of stacks that were not trained on.
    truth: about the same stacks.

  Returns:
    Parameters, and the boundaries' mean log-likelihood with them, by stack.
  """
  temperatures = jnp.array(TEMPERATURES if spec.feedback == "none" else (1.0,))
  of_stacks = jax.vmap(monotone_model.log_likelihood)
  tried = jax.vmap(lambda t: of_stacks(scores / t, truth.mask, truth.boundaries).mean())(
    temperatures
  )
  best = tried.argmax()
  scaled = lambda path, leaf: (
    leaf / temperatures[best] if jax.tree_util.keystr(path).startswith("['decoder']") else leaf
  )
  return jax.tree_util.tree_map_with_path(scaled, params), tried[best]
