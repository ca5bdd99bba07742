"""Leung-Malik textons and a small network: the baseline of Kaur et al. (ICPR 2016).

A bank of 5 x 5 filters responds at every pixel; k-means on random pixels' responses gives 50
textons; each pixel is shared among its 8 nearest textons in proportion to 1 / distance; a 3-layer
network reads the histogram of shares. The paper's Table 1 has it at 72.12 %.

The publication leaves open the widths of the filters (see `textons.leung_malik_bank`), whether
slices are standardised, and the network's size and training: `fit` chooses these on validation
slices and records the choice. "3-layer" is read as three dense layers.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
import dataclasses
import functools
import itertools
import os
from typing import Any

from flax import nnx
import jax
from jax.flatten_util import ravel_pytree
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, UInt8
import numpy as np
import optax
from sklearn.cluster import KMeans
from threadpoolctl import threadpool_limits

from rcm_jax import anatomy
from rcm_jax.arrays import ArrayLike
from rcm_jax.textures import textons
from tfds_rcm.errors import UserError

SUPPORT = 5  # pixels a side
NEIGHBORS = 8
_PIXELS_FOR_KMEANS = 50_000
_BATCH = 64


@dataclasses.dataclass(frozen=True)
class KaurSearch:
  """Candidates of the search, every combination of which is tried, and what is not searched.

  Attributes:
    standardize: whether responses are divided by the standard deviation of their
      slice.
    hidden: units of each of the two hidden layers.
    learning_rates: of AdamW.
    weight_decays: of AdamW.
    textons: size of the dictionary.
    epochs: passes over the training slices; the best one counts.
  """

  standardize: tuple[bool, ...] = (False, True)
  hidden: tuple[int, ...] = (32, 128)
  learning_rates: tuple[float, ...] = (1e-3, 3e-3)
  weight_decays: tuple[float, ...] = (1e-4, 1e-1)
  textons: int = 50
  epochs: int = 60

  def __post_init__(self):
    for field in ("standardize", "hidden", "learning_rates", "weight_decays"):
      if not getattr(self, field):
        raise UserError(f"search.{field}: empty; expected at least one candidate")
    if self.textons < NEIGHBORS:
      raise UserError(f"search.textons: {self.textons}; expected {NEIGHBORS} or more")


@dataclasses.dataclass(frozen=True)
class Kaur:
  """A fitted model.

  Attributes:
    filters: the filter bank.
    textons: dictionary, as responses of the filters.
    center: subtracted from histograms.
    scale: divides them after that.
    parameters: of the network, in one vector.
    chosen: what the search chose: standardize, hidden, learning_rate,
      weight_decay, epoch (from 1), and validation_accuracy.
  """

  filters: Float[np.ndarray, "R 5 5"]
  textons: Float[np.ndarray, "W R"]
  center: Float[np.ndarray, " W"]
  scale: Float[np.ndarray, " W"]
  parameters: Float[np.ndarray, " parameters"]
  chosen: dict[str, Any]

  def save(self, path: str | os.PathLike[str]) -> None:
    """Writes the model as .npz."""
    textons.save_model(self, path)

  @classmethod
  def load(cls, path: str | os.PathLike[str]) -> Kaur:
    """Reads a model that `save` wrote."""
    return textons.load_model(cls, path)


class HistogramNet(nnx.Module):
  """Three dense layers from a histogram to the logits of the strata."""

  def __init__(self, words: int, hidden: int, num_strata: int, *, rngs: nnx.Rngs):
    self.first = nnx.Linear(words, hidden, rngs=rngs)
    self.second = nnx.Linear(hidden, hidden, rngs=rngs)
    self.third = nnx.Linear(hidden, num_strata, rngs=rngs)

  def __call__(self, x: Float[Array, "*batch W"]) -> Float[Array, "*batch C"]:
    return self.third(nnx.relu(self.second(nnx.relu(self.first(x)))))


@functools.partial(jax.jit, static_argnames="standardize")
def encode(
  slices: UInt8[ArrayLike, "B h w"],
  filters: Float[ArrayLike, "R size size"],
  words: Float[ArrayLike, "W R"],
  standardize: bool = False,
) -> Float[Array, "B W"]:
  """Mean share of every texton over the pixels of each slice.

  Args:
    slices: gray levels.
    filters: zero-sum filters.
    words: textons, as responses of the filters.
    standardize: divide responses by their slice's standard deviation.

  Returns:
    Histograms; each row sums to one.
  """
  images = textons.downsample(slices, 1)
  if standardize:
    images = images / _contrast(images)[:, None, None]

  def share(strip):
    answers = textons.responses(strip, filters)
    rank, batch, pixels = answers.shape
    shares = textons.soft_weights(answers.reshape(rank, -1), words, NEIGHBORS)
    return shares.reshape(-1, batch, pixels).sum(2).T

  size = filters.shape[-1]
  pixels = (images.shape[1] - size + 1) * (images.shape[2] - size + 1)
  return textons.sum_over_strips(share, images, size, live=4 * len(words)) / pixels


def fit(
  train_slices: UInt8[ArrayLike, "slices h w"],
  train_labels: Int[ArrayLike, " slices"],
  validation_slices: UInt8[ArrayLike, "validation_slices h w"],
  validation_labels: Int[ArrayLike, " validation_slices"],
  *,
  seed: int,
  strata: Sequence[str] = anatomy.PAPER.names,
  search: KaurSearch | None = None,
  progress: Callable[[str], None] | None = None,
) -> Kaur:
  """Learns textons and network on training slices; validation slices only choose.

  Args:
    train_slices: gray levels, for instance a memory map; read in batches.
    train_labels: strata.
    validation_slices: gray levels.
    validation_labels: strata.
    seed: of the random pixels, k-means, initial weights and batches.
    strata: what the labels tell apart.
    search: candidates; the default ones if None.
    progress: receives one line for each candidate that took time.

  Returns:
    The model with the best validation accuracy, the first of equals.

  Raises:
    UserError: labels do not fit the slices, a stratum is missing, or slices are
      smaller than the filters.
  """
  search = search or KaurSearch()
  check = functools.partial(textons.check_split, strata=strata, min_side=SUPPORT)
  check("training", train_slices, train_labels)
  check("validation", validation_slices, validation_labels)
  labels = [jnp.asarray(np.asarray(x), jnp.int32) for x in (train_labels, validation_labels)]
  report = progress or (lambda line: None)

  filters = textons.leung_malik_bank(SUPPORT).astype(np.float32)
  rates = np.asarray(list(itertools.product(search.learning_rates, search.weight_decays)))
  best = None
  for standardize in search.standardize:
    words = _learn_textons(train_slices, filters, search.textons, standardize, seed)
    histograms = [
      _histograms(s, filters, words, standardize) for s in (train_slices, validation_slices)
    ]
    center, scale = histograms[0].mean(0), histograms[0].std(0)
    scale = np.where(scale > 0, scale, 1).astype(np.float32)
    features = [jnp.asarray((h - center) / scale) for h in histograms]
    for hidden in search.hidden:
      parameters, accuracy, epoch = _train(
        *zip(features, labels),
        jnp.asarray(rates, jnp.float32),
        jax.random.key(seed),
        hidden=hidden,
        num_strata=len(strata),
        epochs=search.epochs,
      )
      member = int(np.argmax(accuracy))
      if best is None or accuracy[member] > best.chosen["validation_accuracy"]:
        best = Kaur(
          filters,
          words,
          center,
          scale,
          np.asarray(parameters[member]),
          {
            "standardize": standardize,
            "hidden": hidden,
            "learning_rate": float(rates[member, 0]),
            "weight_decay": float(rates[member, 1]),
            "epoch": int(epoch[member]),
            "validation_accuracy": float(accuracy[member]),
          },
        )
      report(f"kaur: {hidden} units, standardize {standardize}: best so far {best.chosen}")
  return best


def predict_proba(
  model: Kaur, slices: UInt8[ArrayLike, "slices h w"]
) -> Float[np.ndarray, "slices C"]:
  """Probabilities of the strata of any number of slices, read in batches."""
  chosen = model.chosen
  histograms = _histograms(slices, model.filters, model.textons, chosen["standardize"])
  features = (histograms - model.center) / model.scale
  return np.asarray(_probabilities(model.parameters, features, hidden=chosen["hidden"]))


def _contrast(images):
  """Standard deviation of each image's gray levels, 1 for a flat image."""
  deviation = images.std((1, 2))
  return jnp.where(deviation > 0, deviation, 1.0)


def _learn_textons(slices, filters, count, standardize, seed):
  per_slice = max(1, min(20, _PIXELS_FOR_KMEANS // len(slices)))
  patches = textons.random_patches(slices, per_slice, SUPPORT, np.random.default_rng(seed))
  if standardize:
    deviations = textons.stream(jax.jit(lambda b: _contrast(textons.downsample(b, 1))), slices)
    patches = patches / deviations[:, None, None]
  answers = patches.reshape(-1, SUPPORT**2) @ filters.reshape(len(filters), -1).T
  if len(answers) < count:
    raise UserError(f"training: {len(answers)} random pixels cannot make {count} textons")
  # One thread: several add up their partial centres in no fixed order.
  with threadpool_limits(1):
    return KMeans(count, n_init=1, random_state=seed).fit(answers).cluster_centers_


def _histograms(slices, filters, words, standardize):
  short, to_short = textons.isometry(filters)
  short, words = jnp.asarray(short, jnp.float32), jnp.asarray(words @ to_short.T, jnp.float32)
  return textons.stream(lambda batch: encode(batch, short, words, standardize), slices)


def _network(words, hidden, num_strata, key):
  """A fresh network's parameters in one vector, and the function logits(vector, x)."""
  definition, state = nnx.split(HistogramNet(words, hidden, num_strata, rngs=nnx.Rngs(key)))
  vector, unravel = ravel_pytree(state)
  return vector, lambda vector, x: nnx.merge(definition, unravel(vector))(x)


@functools.partial(jax.jit, static_argnames="hidden")
def _probabilities(vector, x, *, hidden):
  before = hidden * (x.shape[1] + 1 + hidden + 1)  # parameters of the layers before the last
  num_strata = (len(vector) - before) // (hidden + 1)
  _, logits = _network(x.shape[1], hidden, num_strata, jax.random.key(0))
  return jax.nn.softmax(logits(vector, x))


@functools.partial(jax.jit, static_argnames=("hidden", "num_strata", "epochs"))
def _train(train, validation, rates, key, *, hidden, num_strata, epochs):
  """Trains one network for each row (learning rate, weight decay) of rates.

  Returns:
    Of each network: parameters after its best epoch, validation accuracy then,
    and that epoch, from 1.
  """
  x, y = train
  initial, logits = _network(x.shape[1], hidden, num_strata, key)
  size = min(_BATCH, len(x))
  steps = len(x) // size

  def member(rate):
    optimizer = optax.adamw(rate[0], weight_decay=rate[1])

    def loss(vector, rows):
      scores = logits(vector, x[rows])
      return optax.softmax_cross_entropy_with_integer_labels(scores, y[rows]).mean()

    def step(carry, rows):
      vector, state = carry
      updates, state = optimizer.update(jax.grad(loss)(vector, rows), state, vector)
      return (optax.apply_updates(vector, updates), state), None

    def epoch(carry, number):
      vector, state, best = carry
      order = jax.random.permutation(jax.random.fold_in(key, number), len(x))
      (vector, state), _ = jax.lax.scan(
        step, (vector, state), order[: steps * size].reshape(steps, size)
      )
      accuracy = jnp.mean(logits(vector, validation[0]).argmax(1) == validation[1])
      better = accuracy > best[1]
      best = jax.tree.map(
        lambda new, old: jnp.where(better, new, old), (vector, accuracy, number), best
      )
      return (vector, state, best), None

    start = (initial, optimizer.init(initial), (initial, jnp.float32(-1), jnp.int32(0)))
    (_, _, best), _ = jax.lax.scan(epoch, start, jnp.arange(1, epochs + 1))
    return best

  return jax.lax.map(member, rates)
