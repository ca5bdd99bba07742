"""Ids that look like one patient written in two ways, whose stacks would go to two splits."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
import csv
import io
import re
import shlex
import unicodedata

from tfds_rcm.errors import UserError, nearest


def key(patient_id: str) -> str:
  """The same for ids that differ in leading zeros, case, spaces, hyphens and underscores alone.

  A hyphen between two numbers counts: 1-11 and 11-1 are two. A number may end in .0, as
  spreadsheets write it.
  """
  text = "".join(unicodedata.normalize("NFKC", patient_id).casefold().split())
  text = re.sub(r"^(\d+)\.0+$", r"\1", text)
  text = re.sub(r"[-_]+", "-", text)
  text = re.sub(r"(?<!\d)-|-(?!\d)", "", text)
  return re.sub(r"(?<!\d)0+(?=\d)", "", text)


def alike(places: Mapping[str, str]) -> list[list[str]]:
  """Groups of ids with one key.

  Args:
    places: where each id stands first, by id.
  """
  groups: dict[str, list[str]] = {}
  for patient_id in places:
    groups.setdefault(key(patient_id), []).append(patient_id)
  return [group for group in groups.values() if len(group) > 1]


def check(places: Mapping[str, str], distinct: Collection[str]) -> None:
  """Refuses ids that look like one patient's until a user says that they are several's.

  Args:
    places: file and row where each id stands first, by id.
    distinct: ids that are as many patients.

  Raises:
    UserError: with all such ids, and the option that says that they are different patients; or
      if `distinct` names an unknown id.
  """
  for patient_id in distinct:
    if patient_id not in places:
      raise UserError(
        f"--distinct_patients: no patient {patient_id!r}{nearest(patient_id, places)}"
      )
  groups = [group for group in alike(places) if not set(group) <= set(distinct)]
  if not groups:
    return
  told = "; ".join(
    " and ".join(f"{p!r} (row {places[p].rpartition(' ')[2]})" for p in group) for group in groups
  )
  option = format_ids([*distinct, *(p for group in groups for p in group if p not in distinct)])
  raise UserError(
    f"{places[groups[0][0]]}: patients whose ids differ in leading zeros, case or spaces alone: "
    f"{told}; write one id for one person, or, if they are different people, give "
    f"{shlex.quote('--distinct_patients=' + option)}"
  )


def format_ids(patient_ids: Sequence[str]) -> str:
  """Ids in one option, with commas between them."""
  text = io.StringIO()
  csv.writer(text, lineterminator="").writerow(patient_ids)
  return text.getvalue()


def parse_ids(text: str) -> tuple[str, ...]:
  """Reads what `format_ids` wrote."""
  cells = next(csv.reader([text], skipinitialspace=True), [])
  return tuple(filter(None, map(str.strip, cells)))
