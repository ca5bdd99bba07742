"""Patients divided among train, validation and test, and the file that says so.

The file (stack_id, patient_id, split, …) is written once. A user may edit it, and
every later run obeys it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
import dataclasses
import pathlib

from jaxtyping import Float, Int
import numpy as np

from tfds_rcm.errors import UserError
from tfds_rcm.formats.csv_table import read_table, write_table

SPLITS = ("train", "validation", "test")
_COLUMNS = ("stack_id", "patient_id", "split", "source", "slices")
PAPER_FRACTIONS = (245 / 504, 61 / 504, 198 / 504)  # stacks of the paper, section 3
# A wrong number of stacks is worth more than any gain in balance.
_COUNT_WEIGHT = 100.0
_RESTARTS = 8


@dataclasses.dataclass(frozen=True)
class Stack:
  """What a split is balanced by.

  Attributes:
    stack_id: unique name.
    patient_id: stays in one split with all stacks.
    source: the study it comes from.
    class_counts: slices of each stratum.
  """

  stack_id: str
  patient_id: str
  source: str
  class_counts: tuple[int, ...]


def targets(sizes: Sequence[float | int], num_stacks: int) -> tuple[int, ...]:
  """Stacks wanted in each split, from counts that add up to all stacks or fractions of one.

  A fraction above 0 wants a stack at least, where there are enough.

  Raises:
    UserError: if they are neither.
  """
  if len(sizes) != len(SPLITS) or min(sizes) < 0:
    raise UserError(f"split_sizes: {_listed(sizes)}, expected three numbers, {', '.join(SPLITS)}")
  if abs(sum(sizes) - 1) < 1e-6:
    ends = np.rint(np.cumsum(sizes) * num_stacks).astype(int)
    counts = np.diff(ends, prepend=0)
    for s in np.flatnonzero((counts == 0) & (np.asarray(sizes) > 0)):
      if counts.max() > 1:
        counts[counts.argmax()] -= 1
        counts[s] = 1
    return tuple(counts.tolist())
  if all(float(size).is_integer() for size in sizes) and sum(sizes) == num_stacks:
    return tuple(int(size) for size in sizes)
  raise UserError(
    f"split_sizes: {_listed(sizes)} add up to {sum(sizes):g}, expected the {num_stacks} stacks "
    "there are, or fractions that add up to 1"
  )


def divide(stacks: Sequence[Stack], wanted: Sequence[int], seed: int) -> dict[str, str]:
  """Divides patients so that stack counts are met and classes and sources are balanced.

  Greedy, large patients first, then moves and swaps of patients while they help, from
  several random orders; the best one counts. The same stacks and seed give the same
  splits, in whatever order the stacks come.

  Args:
    stacks: all stacks.
    wanted: number of stacks in each of SPLITS. They are met as nearly as whole
      patients allow.
    seed: for the random orders.

  Returns:
    The split of each stack_id.

  Raises:
    UserError: if there are fewer patients than splits.
  """
  stacks = sorted(stacks, key=lambda stack: (stack.patient_id, stack.stack_id))
  patients = sorted({stack.patient_id for stack in stacks})
  used = [s for s, count in enumerate(wanted) if count]
  if len(patients) < len(used):
    raise UserError(
      f"splits: {len(patients)} patients cannot fill {len(used)} splits; give split_sizes with 0 "
      "for those that you can do without"
    )
  traits, goal = _traits(stacks, patients, [wanted[s] for s in used])
  rng = np.random.default_rng(seed)
  trials = [_search(traits, goal, rng) for _ in range(_RESTARTS)]
  best = min(trials, key=lambda trial: trial[0])[1]
  split_of = {patient: SPLITS[used[s]] for patient, s in zip(patients, best)}
  return {stack.stack_id: split_of[stack.patient_id] for stack in stacks}


def write(path: pathlib.Path, stacks: Sequence[Stack], split_of: Mapping[str, str]) -> None:
  """Writes the file, whole or not at all."""
  order = sorted(stacks, key=lambda s: (SPLITS.index(split_of[s.stack_id]), s.stack_id))
  rows = [
    (s.stack_id, s.patient_id, split_of[s.stack_id], s.source, sum(s.class_counts)) for s in order
  ]
  write_table(path, _COLUMNS, rows)


def read(
  path: pathlib.Path,
  patient_of: Mapping[str, str],
  warnings: list[str] | None = None,
  columns: Mapping[str, str] | None = None,
) -> dict[str, str]:
  """Reads the file for the stacks there are.

  Args:
    path: the file.
    patient_of: patient of each stack_id.
    warnings: where columns are noted that nobody reads.
    columns: the file's headers for some of our columns.

  Returns:
    The split of each stack_id.

  Raises:
    UserError: if a stack is missing, unknown or doubled, a split has another name, or
      a patient is in two splits.
  """
  split_of: dict[str, str] = {}
  first_row: dict[str, tuple[str, str]] = {}
  table = read_table(path, ("stack_id", "split"), known=_COLUMNS, renamed=columns)
  if warnings is not None:
    warnings.extend(table.warnings)
  if table.rows and not any(row["stack_id"] in patient_of for row in table.rows):
    raise UserError(
      f"{path}: of another study: none of its {len(table.rows)} stacks is in the manifest; give "
      "another --data_dir or --splits"
    )
  for row in table.rows:
    stack_id, split = row["stack_id"], row["split"].lower()
    if split not in SPLITS:
      raise UserError(f"{row.place}: split {row['split']!r}, expected one of {', '.join(SPLITS)}")
    if stack_id not in patient_of:
      raise UserError(f"{row.place}: stack_id {stack_id!r} is not in the manifest; remove the row")
    if stack_id in split_of:
      raise UserError(f"{row.place}: stack_id {stack_id!r} comes twice; remove one row")
    patient = patient_of[stack_id]
    if row["patient_id"] not in ("", patient):
      raise UserError(
        f"{row.place}: patient_id {row['patient_id']!r}, expected {patient!r} as in the manifest"
      )
    first, first_place = first_row.setdefault(patient, (split, row.place))
    if first != split:
      raise UserError(
        f"{row.place}: patient {patient!r} is in {split} here and in {first} in row "
        f"{first_place.rpartition(' ')[2]}; keep a patient in one split"
      )
    split_of[stack_id] = split
  missing = sorted(set(patient_of) - set(split_of))
  if missing:
    raise UserError(
      f"{path}: no row for stack {missing[0]!r}"
      + (f" and {len(missing) - 1} more" if len(missing) > 1 else "")
      + "; add them, or remove the file to have new splits made"
    )
  return split_of


def _traits(
  stacks: Sequence[Stack], patients: Sequence[str], wanted: Sequence[int]
) -> tuple[Float[np.ndarray, "P Q"], Float[np.ndarray, "S Q"]]:
  """Each patient's share of stacks, classes and sources, and what each split should have."""
  index = {patient: i for i, patient in enumerate(patients)}
  sources = sorted({stack.source for stack in stacks})
  num_classes = len(stacks[0].class_counts)
  amounts = np.zeros((len(patients), 1 + num_classes + len(sources)))
  for stack in stacks:
    row = amounts[index[stack.patient_id]]
    row[0] += 1
    row[1 : 1 + num_classes] += stack.class_counts
    row[1 + num_classes + sources.index(stack.source)] += 1
  totals = np.maximum(amounts.sum(0), 1)
  shares = amounts / totals
  shares[:, 0] *= _COUNT_WEIGHT
  fractions = np.asarray(wanted, float)[:, None] / sum(wanted)
  return shares, fractions * shares.sum(0)


def _search(
  traits: Float[np.ndarray, "P Q"], goal: Float[np.ndarray, "S Q"], rng: np.random.Generator
) -> tuple[float, Int[np.ndarray, " P"]]:
  """One greedy start and its local optimum: cost and split of each patient."""
  order = rng.permutation(len(traits))
  order = order[np.argsort(-traits[order, 0], kind="stable")]
  split = np.zeros(len(traits), int)
  lack = goal.copy()  # what each split still needs
  for rank, p in enumerate(order):
    gain = ((lack - traits[p]) ** 2 - lack**2).sum(1)
    unfilled = [s for s in range(len(goal)) if s not in split[order[:rank]]]
    if len(traits) - rank <= len(unfilled):  # nobody may stay empty
      gain[[s for s in range(len(goal)) if s not in unfilled]] = np.inf
    split[p] = gain.argmin()
    lack[split[p]] -= traits[p]
  improved = True
  while improved:
    improved = False
    for p in rng.permutation(len(traits)).tolist():
      improved |= _improve(p, traits, split, lack)
  return float((lack**2).sum()), split


def _improve(p: int, traits: np.ndarray, split: np.ndarray, lack: np.ndarray) -> bool:
  """Moves patient p, or swaps it with another, if that lowers the cost; in place."""
  here = int(split[p])
  swap = traits - traits[p]  # what p's split gains by taking each other patient instead
  gains = ((lack[here] - swap) ** 2 - lack[here] ** 2).sum(1)
  gains += ((lack[split] + swap) ** 2 - lack[split] ** 2).sum(1)
  gains[split == here] = 0
  other = int(gains.argmin())
  moves = ((lack - traits[p]) ** 2 - lack**2).sum(1)
  moves += ((lack[here] + traits[p]) ** 2 - lack[here] ** 2).sum()
  moves[here] = 0
  if np.count_nonzero(split == here) == 1:
    moves[:] = 0
  there = int(moves.argmin())
  if min(gains[other], moves[there]) > -1e-12:
    return False
  if moves[there] <= gains[other]:
    split[p] = there
    lack[here] += traits[p]
    lack[there] -= traits[p]
  else:
    there = int(split[other])
    split[p], split[other] = there, here
    lack[here] -= swap[other]
    lack[there] += swap[other]
  return True


def _listed(sizes: Sequence[float | int]) -> str:
  return ",".join(f"{size:g}" for size in sizes)
