"""Which stacks belong together: by a column of the manifest, by reader, by warning."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from rcm_jax.validation import reading
from rcm_jax.validation.figures import Figures, Measured, figures_of, measure
from rcm_jax.validation.reading import ReadStack
from tfds_rcm.errors import UserError, nearest

USUAL = ("split", "site", "source")  # that stacks are divided by where they differ in them
READER = "reader"
_MOST_GROUPS = 40
_MOST_NUMBERS = 12  # different ones; more are divided into quarters
UNKNOWN = "not told"


class Group(NamedTuple):
  """Stacks and their figures."""

  name: str
  figures: Figures


class Division(NamedTuple):
  """All stacks, divided by one column."""

  column: str
  groups: list[Group]


class Warned(NamedTuple):
  """Stacks with a warning, and without it.

  Attributes:
    code: of the warning; empty for any.
    stacks: with it.
    having: their figures; None where there are none.
    lacking: of the others.
  """

  code: str
  stacks: int
  having: Figures | None
  lacking: Figures | None


def value_of(stack: ReadStack, column: str) -> str:
  """Returns what a stack has in a column; empty where nothing."""
  return stack.known.split if column == "split" else stack.known.columns.get(column, "")


def divide(stacks: Sequence[ReadStack], measured: Measured, by: Sequence[str]) -> list[Division]:
  """Divides stacks by the usual columns, by reader, and by others that are asked for.

  Readers' groups are measured by what each of them said; a stack may be in several.

  Args:
    stacks: all of them.
    measured: the same.
    by: further columns.

  Raises:
    UserError: no stack has such a column, or it has too many values.
  """
  known = {"split", *(column for s in stacks for column in s.known.columns)}
  readers = sorted({reader for s in stacks for reader in s.known.readings})
  for column in by:
    if column not in known | ({READER} if readers else set()):
      advice = nearest(column, known)
      raise UserError(
        f"--by={column}: no stack has such a column; known are {', '.join(sorted(known))}{advice} "
        "(data sets prepared before this version keep no columns but the site: prepare them again)"
      )
  divisions = []
  for column in dict.fromkeys((*USUAL, *by)):
    if column == READER:
      continue
    members = _by_value(stacks, column)
    if len(members) > 1 or column in by:
      found = [Group(name, figures_of(measured.take(rows))) for name, rows in members.items()]
      divisions.append(Division(column, found))
  by_reader = [(reader, reading.relabelled(stacks, reader)) for reader in readers]
  found = [Group(reader, figures_of(measure(own))) for reader, own in by_reader if own]
  if found:
    divisions.append(Division(READER, found))
  return divisions


def _by_value(stacks: Sequence[ReadStack], column: str) -> dict[str, list[int]]:
  """Places of the stacks by what they have in a column."""
  values = [value_of(s, column) for s in stacks]
  numbers = _numbers(values)
  if numbers is not None:
    values = numbers
  if len(set(values)) > _MOST_GROUPS:
    raise UserError(
      f"--by={column}: {len(set(values))} different values in {len(stacks)} stacks make no groups; "
      f"give a column of at most {_MOST_GROUPS}, or of numbers"
    )
  ordered = list(dict.fromkeys(values)) if numbers is not None else []
  order = sorted(set(values), key=lambda v: (v == "", _first_number(v) if ordered else 0.0, v))
  return {value or UNKNOWN: [i for i, own in enumerate(values) if own == value] for value in order}


def _first_number(text: str) -> float:
  return float(text.partition(" ")[0]) if text else np.inf


def _numbers(values: Sequence[str]) -> list[str] | None:
  """Quarters that numbers lie in; None where there are other texts, or few numbers."""
  try:
    given = np.array([float(v.replace(",", ".")) if v else np.nan for v in values])
  except ValueError:
    return None
  real = given[np.isfinite(given)]
  if len(set(real.tolist())) <= _MOST_NUMBERS:
    return None
  edges = np.quantile(real, [0, 0.25, 0.5, 0.75, 1], method="nearest")
  quarter = np.clip(np.searchsorted(edges[1:-1], given, side="left"), 0, 3)
  names = []
  for value, q in zip(given, quarter):
    inside = real[np.clip(np.searchsorted(edges[1:-1], real, side="left"), 0, 3) == q]
    names.append(f"{inside.min():g} to {inside.max():g}" if np.isfinite(value) else "")
  return names


def by_warning(stacks: Sequence[ReadStack], measured: Measured) -> list[Warned]:
  """Compares stacks with each warning to those without it, the most frequent first; any comes last."""
  codes = [{w.code for w in s.said.warnings} for s in stacks]
  counts = {code: sum(code in own for own in codes) for code in sorted(set().union(*codes))}
  found = []
  for code in (*sorted(counts, key=lambda c: -counts[c]), ""):
    has = [bool(own) if not code else code in own for own in codes]
    having, lacking = ([i for i, h in enumerate(has) if h is wanted] for wanted in (True, False))
    figures = (figures_of(measured.take(own)) if own else None for own in (having, lacking))
    found.append(Warned(code, len(having), *figures))
  return found


def worst(stacks: Sequence[ReadStack], count: int) -> list[int]:
  """Returns places of the stacks with the greatest share of wrong slices, the worst first."""
  wrong = [float(np.mean(s.known.labels != s.said.interpretation.strata)) for s in stacks]
  order = sorted(range(len(stacks)), key=lambda i: (-wrong[i], i))
  return [i for i in order[:count] if wrong[i] > 0]
