"""How far a stack lies from those that a model was trained on.

Questions, each with a score. Validation stacks set the thresholds of all but the last:

appearance  do single slices look like training slices? Squared distance of a slice's features and gray
            levels to the nearest of the strata's Gaussians, fitted to training slices (Lee et al.,
            NeurIPS 2018, arXiv 1807.03888, with a covariance a stratum).
continuity  do neighbouring slices show one place? Correlation of neighbours' gray levels, which tiles of
            other places lack, and copies of one slice have too much of.
larger, smaller, noise
            may cells be of another size, or is there more noise? Linear discriminants between training
            stacks and the same stacks altered (`altered`), on quantiles over slices of their textures.
order       do strata come in their order? Log-odds of the opposite order by a linear discriminant
            between training stacks and the same stacks reversed, on what changes from their upper to
            their lower parts: textures, and what the CNN says of single slices.

A model that reads an encoder's features sees no images. Of the features alone it asks appearance,
continuity (whether neighbours point to one side of the centre) and order; the other questions are never
answered with no.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import NamedTuple

from jaxtyping import Float, Int
import numpy as np
from scipy import optimize, stats
from sklearn import covariance

from rcm_jax.inference import altered, appearance

QUESTIONS = ("appearance", "continuity", *altered.KINDS, "order")
UPSIDE_DOWN = 2.0  # log-odds of the opposite order that are told, about 7 to 1
FALSE_ALARMS = 0.002  # a question and side, of stacks like those of training
_MEASURED = len(QUESTIONS) - 1  # questions whose thresholds validation stacks set
_DIRECTIONS = 16  # of the CNN's features that vary most
_LEAST_SLICES = 4  # of a stratum, for a Gaussian of its own; of a stack, for an order
_SHRINKAGE = 0.05  # of the Gaussians' covariances towards their diagonal
_LEAST_SHRINKAGE = 0.03  # of the discriminants' covariances
_QUANTILES = (0.2, 0.5, 0.8)  # over slices
_CROPS = 3  # of each training stack, beside the whole: stacks begin and end anywhere
_SHORTEST_CROP = 1 / 3
_MOST_ALIKE = 1 - 1e-6  # cosine between neighbours
_PARTS = 4  # that a stack is cut into for its order


class Familiar(NamedTuple):
  """What was learned of the training stacks.

  Attributes:
    centre: of all slices' descriptors.
    axes: descriptors minus the centre times this are the coordinates of the Gaussians.
    means: of each Gaussian.
    precisions: of each Gaussian, inverse covariance.
    alterations: of each kind of `altered.KINDS`, the discriminant's direction; its offset last.
    order: direction of the discriminant between the orders.
    typical: mean of each score over validation stacks, but for the order's.
    spread: standard deviation of the same.
    limit: of each, standard deviations from the mean at which a stack is unfamiliar.
  """

  centre: Float[np.ndarray, "D"]
  axes: Float[np.ndarray, "D K"]
  means: Float[np.ndarray, "G K"]
  precisions: Float[np.ndarray, "G K K"]
  alterations: Float[np.ndarray, "3 Q"]
  order: Float[np.ndarray, " O"]
  typical: Float[np.ndarray, "5"]
  spread: Float[np.ndarray, "5"]
  limit: Float[np.ndarray, "5"]


class Found(NamedTuple):
  """What was found of one stack.

  Attributes:
    deviations: of each score but the order's, in standard deviations of validation stacks.
    upright: log-odds that the stack runs from shallow to deep; infinite with too few slices.
    unfamiliar: questions whose answer is no.
    slices: distances of the slices by themselves, from 0 to 1 at the limit of a stack's mean.
  """

  deviations: Float[np.ndarray, "5"]
  upright: float
  unfamiliar: tuple[str, ...]
  slices: Float[np.ndarray, "T"]


class Seen(NamedTuple):
  """A stack as the model sees it.

  Attributes:
    images: gray levels, described; None where there are features alone.
    features: of the CNN, or of an encoder.
    probabilities: of the strata, by the CNN alone; None where there are features alone.
  """

  images: appearance.Images | None
  features: Float[np.ndarray, "T F"]
  probabilities: Float[np.ndarray, "T C"] | None


def learn(
  train: Iterable[tuple[Seen, Int[np.ndarray, "T"]]],
  validation: Iterable[Seen],
  changed: Mapping[str, Sequence[np.ndarray]],
) -> Familiar:
  """Learns what is familiar.

  Args:
    train: stacks and their labels.
    validation: stacks that no network was trained on; two at least.
    changed: kind of `altered.KINDS` → textures of training stacks after it; empty without images.
  """
  train = list(train)
  described = np.concatenate([_structure(seen) for seen, _ in train])
  features = np.concatenate([seen.features for seen, _ in train])
  labels = np.concatenate([strata for _, strata in train])
  centre = np.concatenate([features.mean(0), described.mean(0)])
  axes = _axes(features - centre[: features.shape[1]], described)
  points = (np.concatenate([features, described], 1) - centre) @ axes
  means, precisions = [], []
  for stratum in np.unique(labels):
    rows = points[labels == stratum]
    if len(rows) >= _LEAST_SLICES:
      spread = _shrunk(np.cov(rows, rowvar=False), _SHRINKAGE)
      means.append(rows.mean(0))
      precisions.append(np.linalg.inv(spread + 1e-6 * np.eye(len(axes.T))))
  nothing = np.zeros(_MEASURED)
  validation = list(validation)
  of_slices = lambda seen: _of_slices(seen, centre, axes)
  order = _order([of_slices(seen) for seen, _ in train])
  alterations = np.zeros((len(altered.KINDS), 1))
  if changed:
    alterations = _alterations([seen.images.texture for seen, _ in train], changed)
  known = Familiar(
    centre,
    axes,
    np.stack(means),
    np.stack(precisions),
    alterations,
    _tempered(order, list(map(of_slices, validation))),
    nothing,
    nothing + 1,
    nothing + np.inf,
  )
  scores = np.array([_scores(known, seen)[0] for seen in validation])
  count = len(scores)
  # A new value of a normal distribution known from `count` others.
  normal = stats.t.ppf(1 - FALSE_ALARMS, count - 1) * np.sqrt(1 + 1 / count)
  known = known._replace(typical=scores.mean(0), spread=scores.std(0, ddof=1) + 1e-3)
  # Scores may have longer tails: none of these stacks is unfamiliar.
  farthest = np.max([_away(known, s, True) for s in scores], axis=0)
  return known._replace(limit=np.maximum(normal, farthest))


def _axes(features: np.ndarray, described: np.ndarray) -> np.ndarray:
  """Whitened leading directions of the features, and standardised descriptions."""
  variances, directions = np.linalg.eigh(np.cov(features, rowvar=False, dtype=np.float64))
  kept = slice(None, -_DIRECTIONS - 1, -1)
  varies = variances[kept] > 1e-9 * variances[-1]
  of_features = directions[:, kept] / np.sqrt(np.where(varies, variances[kept], np.inf))
  size, more = features.shape[1], described.shape[1]
  axes = np.zeros((size + more, of_features.shape[1] + more))
  axes[:size, : of_features.shape[1]] = of_features
  axes[size:, of_features.shape[1] :] = np.diag(1 / (described.std(0) + 1e-3))
  return axes


def _shrunk(covariance: np.ndarray, share: float) -> np.ndarray:
  return (1 - share) * covariance + share * np.diag(np.diag(covariance) + 1e-3)


def _with_crops(stacks: Sequence[np.ndarray]) -> list[np.ndarray]:
  """Returns stacks and parts of them, the same parts of the same lengths."""
  found = list(stacks)
  for number, rows in enumerate(stacks):
    rng = np.random.default_rng(number)
    for _ in range(_CROPS):
      share = rng.uniform(_SHORTEST_CROP, 1)
      length = min(len(rows), max(_LEAST_SLICES, round(share * len(rows))))
      start = rng.integers(0, len(rows) - length + 1)
      found.append(rows[start : start + length])
  return found


def _summary(textures: Float[np.ndarray, "T X"]) -> Float[np.ndarray, " Q"]:
  return np.quantile(textures, _QUANTILES, axis=0).ravel()


def _alterations(
  stacks: Sequence[np.ndarray], changed: Mapping[str, Sequence[np.ndarray]]
) -> Float[np.ndarray, "3 Q"]:
  own = np.array([_summary(rows) for rows in _with_crops(stacks)])
  centre, scale = own.mean(0), own.std(0) + 1e-3
  own = (own - centre) / scale
  found = []
  for kind in altered.KINDS:
    other = (np.array([_summary(rows) for rows in _with_crops(changed[kind])]) - centre) / scale
    middle, apart = (own.mean(0) + other.mean(0)) / 2, other.mean(0) - own.mean(0)
    within = [rows - rows.mean(0) for rows in (own, other)]
    direction = np.linalg.solve(_covariance(np.concatenate(within)), apart)
    offset = direction @ (middle + centre / scale)
    found.append([*(direction / scale), -offset])
  return np.array(found)


def _structure(seen: Seen) -> Float[np.ndarray, "T S"]:
  return seen.images.structure if seen.images else np.zeros((len(seen.features), 0))


def _points(seen: Seen, centre: np.ndarray, axes: np.ndarray) -> Float[np.ndarray, "T K"]:
  return (np.concatenate([seen.features, _structure(seen)], 1) - centre) @ axes


def _of_slices(seen: Seen, centre: np.ndarray, axes: np.ndarray) -> Float[np.ndarray, "T o"]:
  if seen.images is None:
    return _points(seen, centre, axes)
  return np.concatenate([seen.images.texture, seen.probabilities], 1)


def _continuity(seen: Seen, points: Float[np.ndarray, "T K"]) -> float:
  if len(points) < 2:
    return 0.0
  if seen.images:
    return np.median(seen.images.alike)
  sides = points / np.maximum(np.linalg.norm(points, axis=1, keepdims=True), 1e-9)
  cosines = (sides[1:] * sides[:-1]).sum(1)
  return np.arctanh(np.clip(np.median(cosines), -_MOST_ALIKE, _MOST_ALIKE))  # copies lie far off


def _downwards(rows: Float[np.ndarray, "T o"]) -> Float[np.ndarray, " O"]:
  """What the upper parts have more of than those as far from the stack's middle below it."""
  parts = [part.mean(0) for part in np.array_split(rows, _PARTS)]
  return np.concatenate([parts[i] - parts[-1 - i] for i in range(_PARTS // 2)])


def _order(stacks: Sequence[np.ndarray]) -> Float[np.ndarray, " O"]:
  """The discriminant between two Gaussians with opposite means: it needs no offset."""
  long = [rows for rows in stacks if len(rows) >= _LEAST_SLICES]
  if len(long) < 2:
    return np.zeros(_PARTS // 2 * stacks[0].shape[1])
  own = np.array([_downwards(rows) for rows in _with_crops(long)])
  scale = np.sqrt((own**2).mean(0)) + 1e-6
  own = own / scale
  return 2 * np.linalg.solve(_covariance(own - own.mean(0)), own.mean(0)) / scale


def _tempered(
  order: Float[np.ndarray, " O"], stacks: Sequence[np.ndarray]
) -> Float[np.ndarray, " O"]:
  """Makes log-odds no surer than other stacks bear out: Platt's scaling, without an offset."""
  long = [rows for rows in stacks if len(rows) >= _LEAST_SLICES]
  if not long:
    return order
  odds = np.array([_downwards(rows) @ order for rows in _with_crops(long)])
  lost = lambda factor: np.logaddexp(0, -factor * odds).mean()
  return order * optimize.minimize_scalar(lost, bounds=(0, 1), method="bounded").x


def _covariance(rows: Float[np.ndarray, "n d"]) -> Float[np.ndarray, "d d"]:
  """Of standardised rows without their mean, shrunk as their number asks for (Ledoit and Wolf 2004).

  A stack and its crops count as one.
  """
  shrinkage = covariance.ledoit_wolf_shrinkage(rows[:: 1 + _CROPS], assume_centered=True)
  return _shrunk(rows.T @ rows / len(rows), max(shrinkage, _LEAST_SHRINKAGE))


def _distances(known: Familiar, points: Float[np.ndarray, "T K"]) -> Float[np.ndarray, "T"]:
  """Mean squared distance a dimension to the nearest Gaussian."""
  away = points[:, None] - known.means
  squared = np.einsum("tgk,gkl,tgl->tg", away, known.precisions, away)
  return squared.min(1) / known.means.shape[1]


def _scores(known: Familiar, seen: Seen) -> tuple[Float[np.ndarray, "5"], Float[np.ndarray, "T"]]:
  points = _points(seen, known.centre, known.axes)
  distances = np.log(np.maximum(_distances(known, points), 1e-3))
  changed = known.alterations[:, -1]
  if seen.images:
    changed = known.alterations[:, :-1] @ _summary(seen.images.texture) + changed
  return np.array([distances.mean(), _continuity(seen, points), *changed]), distances


def _away(
  known: Familiar, scores: Float[np.ndarray, "5"], neighbours: bool
) -> Float[np.ndarray, "5"]:
  """How far scores lie to the side that is unfamiliar; continuity has two."""
  away = (scores - known.typical) / known.spread
  away[1] = abs(away[1]) if neighbours else 0
  return away


def look(known: Familiar, seen: Seen) -> Found:
  """Judges one stack."""
  scores, distances = _scores(known, seen)
  away = _away(known, scores, len(seen.features) > 1)
  names = [name for name, value in zip(QUESTIONS, away > known.limit) if value]
  enough = len(seen.features) >= _LEAST_SLICES
  of_slices = _of_slices(seen, known.centre, known.axes)
  upright = float(known.order @ _downwards(of_slices)) if enough else np.inf
  if upright < -UPSIDE_DOWN:
    names.append("order")
  reach = known.limit[0] * known.spread[0]
  deviations = (scores - known.typical) / known.spread
  return Found(deviations, upright, tuple(names), (distances - known.typical[0]) / reach)


def familiar_of(arrays: Mapping[str, np.ndarray]) -> Familiar | None:
  """Returns what `Familiar._asdict` had as fields; None where an older model asked less."""
  if not set(Familiar._fields) <= set(arrays):
    return None
  return Familiar(**{name: np.asarray(arrays[name]) for name in Familiar._fields})


def reasons(found: Sequence[str]) -> str:
  """Says in words what is unfamiliar."""
  words = {
    "appearance": "single slices look unlike those of training",
    "continuity": "neighbouring slices do not show one place, or are copies",
    "larger": "what is seen looks magnified (check the pixel size)",
    "smaller": "what is seen looks smaller (check the pixel size)",
    "noise": "there is more noise",
    "order": "strata come in the opposite order",
  }
  return "; ".join(words[name] for name in found)
