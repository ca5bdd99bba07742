"""One report on a study: what is there, and every problem with its file."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable

import numpy as np

from tfds_rcm.errors import printable
from tfds_rcm.study.annotations import STRATA
from tfds_rcm.study.plan import Examined, Plan
from tfds_rcm.study.splits import SPLITS

MANIFEST = "manifest"  # how the line begins that names it


def report(plan: Plan, note: str = "") -> str:
  """The text of `--check`: counts first, then warnings, then problems.

  Args:
    plan: the study.
    note: a line to be said first, empty for none.
  """
  lines = [note] if note else []
  lines.append(f"{MANIFEST}    {plan.options.manifest}")
  lines.append(f"labels      {plan.options.labels or 'in the manifest'}")
  if plan.stacks:
    lines += _counts(plan.stacks)
  for split in SPLITS if plan.split_of else ():
    chosen = [s for s in plan.stacks if plan.split_of[s.entry.stack_id] == split]
    patients = len({s.entry.patient_id for s in chosen})
    line = f"{split:<12}{len(chosen)} stacks of {patients} patients"
    lines.append(f"{line}; {_classes(chosen)}" if chosen else line)
  for kind, found in (("warning", plan.warnings), ("problem", plan.problems)):
    lines += [f"{kind}     {line}" for line in found]
  lines.append(f"{len(plan.problems)} problems, {len(plan.warnings)} warnings")
  return "\n".join(map(printable, lines))


def _counts(stacks: tuple[Examined, ...]) -> list[str]:
  lengths = np.array([len(s.labels) for s in stacks])
  slices = int(lengths.sum())
  read_again = sum(s.read_again for s in stacks)
  steps = (np.median(np.diff(s.depth_um)) for s in stacks if len(s.depth_um) > 1)
  readers = {r.reader or "(unnamed)" for s in stacks for r in s.entry.readings}
  differing = sum(s.disagreements for s in stacks)
  patients = len({s.entry.patient_id for s in stacks})
  lines = [
    f"stacks      {len(stacks)} of {patients} patients, {slices} slices",
    f"source      {_tally(s.entry.source or '(unnamed)' for s in stacks)}",
    f"site        {_tally(s.entry.site or '(unknown)' for s in stacks)}",
    f"classes     {_classes(stacks)}",
    f"slices      {lengths.min()} to {lengths.max()} a stack, median {np.median(lengths):g}",
    f"pixels      {_tally(f'{s.shape[1]} x {s.shape[2]}' for s in stacks)}",
    f"pixel, µm   {_tally('unknown' if s.pixel_um is None else f'{s.pixel_um:g}' for s in stacks)}",
    f"field, µm   {_tally('unknown' if s.field_um is None else f'{s.field_um:.4g}' for s in stacks)}",
    f"step, µm    {_tally(f'{step:g}' for step in steps)}",
    f"readers     {', '.join(sorted(readers))}",
  ]
  if read_again:
    among = sum(s.disagreements > 0 for s in stacks)
    share = 100 * differing / read_again
    lines.append(
      f"disagree    on {differing} of the {read_again} slices that two or more read ({share:.1f} %), "
      f"in {among} stacks"
    )
  return lines


def _classes(stacks: Iterable[Examined]) -> str:
  counts = np.sum([s.for_split.class_counts for s in stacks], axis=0)
  return ", ".join(
    f"{name} {100 * count / counts.sum():.1f} %" for name, count in zip(STRATA, counts)
  )


def _tally(values: Iterable[str], most: int = 8) -> str:
  counts = Counter(values).most_common()
  shown = ", ".join(f"{value} ({count})" for value, count in counts[:most])
  return shown + (f" and {len(counts) - most} more" if len(counts) > most else "")
