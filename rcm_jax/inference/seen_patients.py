"""Whose stacks a model has learned from, kept as hashes: a model that is passed on names nobody.

A hash hides a name; it cannot hide a number. Whoever holds the model and can list all ids of a clinic
can try them, slowly.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
import dataclasses
import functools
import hashlib
import re

from tfds_rcm.errors import UserError
from tfds_rcm.rcm_phantom import spec
from tfds_rcm.study import patients

_ROUNDS = 50_000  # of PBKDF2, some 20 ms an id
_DIGITS = 16


@dataclasses.dataclass(frozen=True)
class PatientHashes:
  """The patients of one training.

  Attributes:
    salt: of these hashes.
    hashes: one a patient, sorted.
  """

  salt: str
  hashes: tuple[str, ...]


def people(sources: Sequence[str], patient_ids: Iterable[str]) -> Iterator[str]:
  """Yields one text a patient, equal for ids that may be one person's.

  A phantom's patients are drawn by its seed, whatever its other fields are; all other data sets
  may share patients.

  Args:
    sources: data sets, such as "rcm_clinical" or "rcm_phantom/demo+seed=1".
    patient_ids: of their stacks; of several data sets each begins with the builder's name.
  """
  for patient_id in patient_ids:
    own, of = patient_id, sources
    if len(sources) > 1:
      builder, _, own = patient_id.partition("/")
      of = [source for source in sources if source.partition("/")[0] == builder]
    for source in of:
      yield f"{_population(source)}/{patients.key(own)}"


def _population(source: str) -> str:
  name, _, preset = source.partition("/")
  if name != "rcm_phantom":
    return ""
  plain = re.split("[:/]", preset)[0]  # without a version
  try:
    return f"{name}, seed {spec.named(plain).seed}"
  except UserError:  # of a file that came from elsewhere
    return source


def hashes_of(known: Iterable[str]) -> PatientHashes:
  """Returns the hashes of `people`; the same people give the same salt and hashes."""
  names = sorted(set(known))
  salt = hashlib.sha256("\n".join(["salt", *names]).encode()).hexdigest()[:32]
  return PatientHashes(salt, tuple(sorted(_hash(name, salt) for name in names)))


def has_seen(groups: Sequence[PatientHashes], person: str) -> bool:
  """Whether a model that has learned from these patients knows this one."""
  return any(_hash(person, group.salt) in group.hashes for group in groups)


@functools.lru_cache(maxsize=1 << 14)
def _hash(name: str, salt: str) -> str:
  key = hashlib.pbkdf2_hmac("sha256", name.encode(), bytes.fromhex(salt), _ROUNDS)
  return key.hex()[:_DIGITS]
