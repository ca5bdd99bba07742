"""In which order a reader sees the stacks, and which of them twice."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
import hashlib

from tfds_rcm.labelling.journal import FIRST, SECOND, Key

_GAP = 5  # stacks between the two readings of one, where there are as many


def plan(
  stack_ids: Sequence[str],
  reader: str,
  *,
  seed: int = 0,
  repeats: float = 0.1,
  doubt: Mapping[str, float] | None = None,
) -> list[Key]:
  """The readings that a reader is asked for, in order.

  Every reader has an order of their own, in which adding a stack to the study moves no other. Some
  stacks come a second time, later, without a word: how a reader repeats their own answer is
  the measure of what two readers can agree on.

  Args:
    stack_ids: all stacks.
    reader: whose order.
    seed: of the shuffle.
    repeats: share of the stacks that come twice, 0 to 1.
    doubt: how uncertain a model is of each stack; the most uncertain come first, and stacks
      without a figure last. None to shuffle.
  """

  def draw(purpose: str, stack_id: str) -> float:
    data = "\0".join((str(seed), reader, purpose, stack_id)).encode()
    return int.from_bytes(hashlib.sha256(data).digest()[:8], "big") / 2**64

  first = sorted(stack_ids, key=lambda stack_id: draw("order", stack_id))
  if doubt is not None:
    first.sort(key=lambda stack_id: -doubt.get(stack_id, -1.0))  # stable: ties stay shuffled
  again = sorted(first, key=lambda stack_id: draw("again", stack_id))
  again = again[: round(repeats * len(first))]
  last = len(first)
  places = [(rank, FIRST, stack_id) for rank, stack_id in enumerate(first)]
  for stack_id in again:
    earliest = min(first.index(stack_id) + _GAP, last)
    place = earliest + draw("place", stack_id) * (last - earliest)
    places.append((place, SECOND, stack_id))
  return [(stack_id, reading) for _, reading, stack_id in sorted(places)]
