"""Which strata a task tells apart: their order, names, boundaries and colours; all else asks here.

Records keep four strata. The paper tells three apart, and counts stratum corneum as epidermis. Code
that only counts strata takes their number from its arrays.
"""

from __future__ import annotations

from collections.abc import Sequence
import dataclasses
import itertools
from typing import NamedTuple


class _Stratum(NamedTuple):
  """What a stratum is called: in a sentence, as a heading, in a narrow column; and its colour."""

  title: str
  heading: str
  short: str
  color: str


_KNOWN = {  # shallow to deep, as on disk; colours after Okabe and Ito
  "stratum_corneum": _Stratum("stratum corneum", "Corneum", "Corn.", "#6B7780"),
  "epidermis": _Stratum("epidermis", "Epidermis", "Epid.", "#A6D5F5"),
  "dej": _Stratum("DEJ", "DEJ", "DEJ", "#E69F00"),
  "dermis": _Stratum("dermis", "Dermis", "Derm.", "#7E3560"),
}


@dataclasses.dataclass(frozen=True)
class Strata:
  """An ordered list of strata. Where one ends the next begins: its boundaries are named by both.

  Attributes:
    names: in files, shallow to deep; a class index is a place in it.
  """

  names: tuple[str, ...]

  def __len__(self) -> int:
    return len(self.names)

  @property
  def boundaries(self) -> tuple[str, ...]:
    """Names of the boundaries, shallow to deep, such as "epidermis_dej"."""
    return tuple(f"{above}_{below}" for above, below in itertools.pairwise(self.names))

  @property
  def titles(self) -> dict[str, str]:
    """Strata in a sentence, by name."""
    return {name: _KNOWN[name].title for name in self.names}

  @property
  def headings(self) -> dict[str, str]:
    """Strata in a table's head, by name."""
    return {name: _KNOWN[name].heading for name in self.names}

  @property
  def shorts(self) -> dict[str, str]:
    """Strata in a narrow column, by name."""
    return {name: _KNOWN[name].short for name in self.names}

  @property
  def colors(self) -> tuple[str, ...]:
    """Of each stratum in figures."""
    return tuple(_KNOWN[name].color for name in self.names)

  @property
  def boundary_titles(self) -> dict[str, str]:
    """Boundaries in a sentence, by name, such as "epidermis–DEJ"."""
    return self._pairs("–", *self.titles.values())

  @property
  def boundary_headings(self) -> dict[str, str]:
    """Boundaries in a table's head, by name, such as "Epidermis-DEJ"."""
    return self._pairs("-", *self.headings.values())

  def _pairs(self, between: str, *words: str) -> dict[str, str]:
    joined = (f"{above}{between}{below}" for above, below in itertools.pairwise(words))
    return dict(zip(self.boundaries, joined, strict=True))

  @property
  def transitions(self) -> tuple[str, ...]:
    """Anatomically impossible steps between neighbouring slices, such as "dej_epidermis"."""
    return tuple(f"{self.names[a]}_{self.names[b]}" for a, b in impossible_steps(len(self)))

  @property
  def transition_headings(self) -> tuple[str, ...]:
    """The same in a table's head."""
    words = list(self.headings.values())
    return tuple(f"{words[a]} → {words[b]}" for a, b in impossible_steps(len(self)))

  @property
  def layers(self) -> dict[str, str]:
    """Strata whose thickness is told, by name, in a sentence: those that make up the epidermis.

    An epidermis that is one stratum is as thick as its boundary is deep.
    """
    if self.names != WITH_CORNEUM.names:
      return {}
    return {"stratum_corneum": "stratum corneum", "epidermis": "viable epidermis"}


def impossible_steps(count: int) -> tuple[tuple[int, int], ...]:
  """Returns the steps between neighbouring slices that anatomy forbids, in Table 2's order.

  Args:
    count: of the strata.
  """
  return tuple(
    (above, below)
    for above, below in itertools.product(range(count), repeat=2)
    if below - above not in (0, 1)
  )


PAPER = Strata(("epidermis", "dej", "dermis"))
WITH_CORNEUM = Strata(tuple(_KNOWN))
_TASKS = (PAPER, WITH_CORNEUM)
COUNTS = tuple(map(len, _TASKS))


def of_count(count: int) -> Strata:
  """Returns the strata of a task that tells so many apart.

  Raises:
    KeyError: there is none.
  """
  return dict(zip(COUNTS, _TASKS, strict=True))[count]


def of_names(names: Sequence[str]) -> Strata:
  """Returns the strata of a task by their names.

  Raises:
    ValueError: there is none; says which there are.
  """
  for task in _TASKS:
    if task.names == tuple(names):
      return task
  known = " or ".join(", ".join(task.names) for task in _TASKS)
  raise ValueError(f"its strata are {', '.join(names)}, not {known}")
