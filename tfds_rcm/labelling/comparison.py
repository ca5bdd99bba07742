"""How far the readers of a study agree: every pair, all of them, each with themself, by site."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
import dataclasses
import itertools

from jaxtyping import Float, Int
import numpy as np

from tfds_rcm.errors import UserError
from tfds_rcm.labelling import kappa
from tfds_rcm.labelling.kappa import Estimate
from tfds_rcm.labelling.readings import Journals, ReadStack, merged_classes
from tfds_rcm.study.annotations import STRATA

CLASSES = ("epidermis", "dej", "dermis")
BOUNDARIES = ("epidermis_dej", "dej_dermis")
CORNEUM = "stratum_corneum_epidermis"  # the boundary that counts where readers label the corneum
_LIMITS = 1.96  # standard deviations: where 95 % of differences lie if they are normal


@dataclasses.dataclass(frozen=True)
class Differences:
  """Where one reader puts a boundary less where another does, in µm (Bland and Altman 1986).

  Attributes:
    stack_id: stacks whose boundary both saw.
    mean_um: middle of the two depths, by stack.
    difference_um: second less first, by stack.
    one_only: stacks whose boundary only one of them saw.
    bias: mean difference.
    sd: its standard deviation between stacks.
    mae: mean absolute difference.
  """

  stack_id: tuple[str, ...]
  mean_um: Float[np.ndarray, " N"]
  difference_um: Float[np.ndarray, " N"]
  one_only: int
  bias: Estimate
  sd: float
  mae: Estimate

  @property
  def limits(self) -> tuple[float, float]:
    """Limits of agreement."""
    return self.bias.value - _LIMITS * self.sd, self.bias.value + _LIMITS * self.sd


@dataclasses.dataclass(frozen=True)
class Comparison:
  """Two readers, or one reader twice, on the stacks that both labelled.

  Attributes:
    first: a reader.
    second: the other; the same name for repeatability.
    stacks: that both labelled.
    patients: whose they are.
    slices: of these stacks.
    confusion: slices by what the first (rows) and the second (columns) said.
    accuracy: share of slices with one label.
    kappa: Cohen's, by `kappa.WEIGHTS`.
    boundaries: by `Agreement.boundaries`.
  """

  first: str
  second: str
  stacks: int
  patients: int
  slices: int
  confusion: Int[np.ndarray, "3 3"]
  accuracy: Estimate
  kappa: Mapping[str, Estimate]
  boundaries: Mapping[str, Differences]


@dataclasses.dataclass(frozen=True)
class Common:
  """All readers, on the stacks that all of them labelled.

  Attributes:
    readers: their names.
    stacks: that all labelled.
    patients: whose they are.
    slices: of these stacks.
    unanimous: share of slices on which all say the same.
    kappa: Fleiss', by `kappa.WEIGHTS`.
  """

  readers: tuple[str, ...]
  stacks: int
  patients: int
  slices: int
  unanimous: Estimate
  kappa: Mapping[str, Estimate]


@dataclasses.dataclass(frozen=True)
class Agreement:
  """All that is said about a study's readers.

  Attributes:
    readers: their names.
    stacks: that at least two readers labelled.
    pairs: every pair that has stacks in common.
    common: all of them; None if there is no stack that all labelled.
    own: each with themself.
    by_site: every pair at every site.
    worst: stacks on which readers differ, most different first.
    boundary_pairs: mean absolute difference of a boundary over all pairs, by `boundaries`.
    accuracy: share of slices with one label, over all pairs.
    accuracy_with_corneum: the same with the corneum apart, where it is labelled; else None.
    journals: what only the label page's logs tell.
  """

  readers: tuple[str, ...]
  stacks: tuple[ReadStack, ...]
  pairs: tuple[Comparison, ...]
  common: Common | None
  own: tuple[Comparison, ...]
  by_site: tuple[tuple[str, Comparison], ...]
  worst: tuple[ReadStack, ...]
  boundary_pairs: Mapping[str, Estimate]
  accuracy: Estimate
  accuracy_with_corneum: Estimate | None
  journals: Journals

  @property
  def boundaries(self) -> tuple[str, ...]:
    """Names of the boundaries that are compared, shallow to deep."""
    return tuple(self.boundary_pairs)


def boundary_um(
  classes: Int[np.ndarray, " T"], depth_um: Float[np.ndarray, " T"], boundary: int
) -> float:
  """Depth of the first slice at or below a boundary; NaN unless the stack shows both sides."""
  below = np.flatnonzero(classes > boundary)
  return float(depth_um[below[0]]) if len(below) and below[0] > 0 else float("nan")


def compare(stacks: Sequence[ReadStack], journals: Journals) -> Agreement:
  """Compares the readers of a study; corneum counts as epidermis, as in the paper.

  Where two readers of a stack label the corneum, its lower end is compared too, and a second accuracy
  tells it apart.

  Raises:
    UserError: no stack has two readers.
  """
  read_twice = tuple(stack for stack in stacks if len(stack.by_reader) > 1)
  own = tuple(_own(stacks, journals))
  if not read_twice and not own:
    raise UserError("no stack has labels of two readers, or of one twice; let another one label")
  corneum = any(_labels_corneum(stack) for stack in read_twice)
  names = (CORNEUM, *BOUNDARIES) if corneum else BOUNDARIES
  readers = tuple(sorted({reader for stack in read_twice for reader in stack.by_reader}))
  pairs, by_site = [], []
  sites = sorted({stack.site for stack in read_twice})
  for pair in itertools.combinations(readers, 2):
    of_pair = [stack for stack in read_twice if set(pair) <= set(stack.by_reader)]
    if not of_pair:
      continue
    pairs.append(_compare(*pair, [_both(stack, pair) for stack in of_pair], names))
    for site in sites if len(sites) > 1 else ():
      of_site = [_both(stack, pair) for stack in of_pair if stack.site == site]
      if of_site:
        by_site.append((site, _compare(*pair, of_site, names)))
  worst = sorted(read_twice, key=lambda stack: (-stack.differing, stack.stack_id))
  return Agreement(
    readers=readers,
    stacks=read_twice,
    pairs=tuple(pairs),
    common=_common(readers, read_twice),
    own=own,
    by_site=tuple(sorted(by_site, key=lambda item: item[0])),
    worst=tuple(stack for stack in worst if stack.differing),
    boundary_pairs=_over_pairs(read_twice, names),
    accuracy=_accuracy_over_pairs(read_twice, len(CLASSES)),
    accuracy_with_corneum=_accuracy_over_pairs(
      [stack for stack in read_twice if _labels_corneum(stack)], len(STRATA)
    )
    if corneum
    else None,
    journals=journals,
  )


def _labels_corneum(stack: ReadStack) -> bool:
  """Whether two readers label the stack's corneum: others may not have been asked to."""
  return sum(bool((labels == 0).any()) for labels in stack.by_reader.values()) > 1


@dataclasses.dataclass(frozen=True)
class _Both:
  """A stack's labels as two readings have them."""

  stack: ReadStack
  first: Int[np.ndarray, " T"]
  second: Int[np.ndarray, " T"]

  def counts(self, classes: int = len(CLASSES)) -> Int[np.ndarray, "C C"]:
    """Slices by what both say; the deepest `classes` strata are told apart."""
    pair = (np.maximum(x - (len(STRATA) - classes), 0) for x in (self.first, self.second))
    return kappa.confusion(*pair, classes)

  def difference(self, name):
    """Second less first, NaN unless both see it; their mean; how many of the two see it."""
    above = (CORNEUM, *BOUNDARIES).index(name)
    a, b = (boundary_um(labels, self.stack.depth_um, above) for labels in (self.first, self.second))
    return b - a, (a + b) / 2, int(np.isfinite(a)) + int(np.isfinite(b))


def _both(stack, pair):
  return _Both(stack, *(stack.by_reader[reader] for reader in pair))


def _compare(
  first: str, second: str, both: Sequence[_Both], boundaries: Sequence[str] = BOUNDARIES
) -> Comparison:
  patients = [item.stack.patient_id for item in both]
  counts = [item.counts() for item in both]
  totals = kappa.by_patient(patients, counts)
  of_kappa = {
    weights: kappa.estimate(
      lambda draws, w=weights: kappa.cohen(kappa.weighted(draws, totals), w), len(totals)
    )
    for weights in kappa.WEIGHTS
  }
  return Comparison(
    first=first,
    second=second,
    stacks=len(both),
    patients=len(totals),
    slices=int(totals.sum()),
    confusion=np.sum(counts, axis=0),
    accuracy=kappa.estimate(lambda d: kappa.accuracy(kappa.weighted(d, totals)), len(totals)),
    kappa=of_kappa,
    boundaries={name: _differences(both, name) for name in boundaries},
  )


def _differences(both: Sequence[_Both], boundary: str) -> Differences:
  found = [item.difference(boundary) for item in both]
  seen = [(item, *told[:2]) for item, told in zip(both, found) if told[2] == 2]
  difference = np.array([told[1] for told in seen])
  patients = [item.stack.patient_id for item, *_ in seen]
  return Differences(
    stack_id=tuple(item.stack.stack_id for item, *_ in seen),
    mean_um=np.array([told[2] for told in seen]),
    difference_um=difference,
    one_only=sum(told[2] == 1 for told in found),
    bias=_mean(patients, difference),
    sd=float(difference.std(ddof=1)) if len(seen) > 1 else float("nan"),
    mae=_mean(patients, np.abs(difference)),
  )


def _mean(patients: Sequence[str], values: Float[np.ndarray, " N"]) -> Estimate:
  """Mean over stacks, its interval over patients."""
  if not len(values):
    return Estimate(float("nan"), float("nan"), float("nan"))
  totals = kappa.by_patient(patients, [np.array([value, 1.0]) for value in values])

  def mean(draws):
    sums = kappa.weighted(draws, totals)
    count = sums[:, 1]
    return np.divide(sums[:, 0], count, out=np.full(len(sums), np.nan), where=count > 0)

  return kappa.estimate(mean, len(totals))


def _common(readers: tuple[str, ...], stacks: Sequence[ReadStack]) -> Common | None:
  shared = [stack for stack in stacks if set(readers) <= set(stack.by_reader)]
  if not shared:
    return None
  labels = [
    merged_classes(np.stack([stack.by_reader[reader] for reader in readers])) for stack in shared
  ]
  patients = [stack.patient_id for stack in shared]
  found = [kappa.votes(of_stack, len(CLASSES)) for of_stack in labels]
  totals = kappa.Votes(*(kappa.by_patient(patients, values) for values in zip(*found)))
  num_patients = len(totals.classes)
  unanimous = [
    np.array([(of_stack == of_stack[0]).all(0).sum(), of_stack.shape[1]]) for of_stack in labels
  ]
  unanimous = kappa.by_patient(patients, unanimous)

  def share(draws):
    sums = kappa.weighted(draws, unanimous)
    return sums[:, 0] / sums[:, 1]

  def of_kappa(weights):
    drawn = lambda draws: kappa.Votes(*(kappa.weighted(draws, total) for total in totals))
    return kappa.estimate(lambda draws: kappa.fleiss(drawn(draws), weights), num_patients)

  return Common(
    readers=readers,
    stacks=len(shared),
    patients=num_patients,
    slices=sum(of_stack.shape[1] for of_stack in labels),
    unanimous=kappa.estimate(share, num_patients),
    kappa={weights: of_kappa(weights) for weights in kappa.WEIGHTS},
  )


def _own(stacks: Sequence[ReadStack], journals: Journals) -> list[Comparison]:
  known = {stack.stack_id: stack for stack in stacks}
  out = []
  for reader, repeated in sorted(journals.repeated.items()):
    both = [
      _Both(known[stack_id], *twice)
      for stack_id, twice in sorted(repeated.items())
      if stack_id in known and len(twice[0]) == len(known[stack_id].depth_um)
    ]
    if both:
      out.append(_compare(reader, reader, both))
  return out


def _every_pair(stacks: Sequence[ReadStack]) -> list[_Both]:
  return [
    _both(stack, pair)
    for stack in stacks
    for pair in itertools.combinations(sorted(stack.by_reader), 2)
  ]


def _over_pairs(stacks: Sequence[ReadStack], boundaries: Sequence[str]) -> dict[str, Estimate]:
  both = _every_pair(stacks)
  return {name: _differences(both, name).mae for name in boundaries}


def _accuracy_over_pairs(stacks: Sequence[ReadStack], classes: int) -> Estimate:
  both = _every_pair(stacks)
  if not both:
    return Estimate(float("nan"), float("nan"), float("nan"))
  counts = [item.counts(classes) for item in both]
  totals = kappa.by_patient([item.stack.patient_id for item in both], counts)
  return kappa.estimate(lambda d: kappa.accuracy(kappa.weighted(d, totals)), len(totals))
