"""Splits keep patients together, meet their counts, balance classes, and obey the user's file."""

from collections import Counter

import numpy as np
import pytest

from tfds_rcm.errors import UserError
from tfds_rcm.study import splits as splits_lib

PAPER = (245, 61, 198)


def stacks(num_stacks, seed, most=9):
  """Patients of 1 to `most` stacks in two studies that differ in their classes."""
  rng = np.random.default_rng(seed)
  found, patient = [], 0
  while len(found) < num_stacks:
    study = int(rng.integers(2))
    mix = rng.dirichlet([30, 100, 100, 60] if study else [10, 140, 90, 60])
    for _ in range(min(int(rng.integers(1, most + 1)), num_stacks - len(found))):
      counts = tuple(rng.multinomial(int(rng.integers(20, 72)), mix).tolist())
      found.append(splits_lib.Stack(f"s{len(found)}", f"p{patient}", "AB"[study], counts))
    patient += 1
  return found


def patients_of(found, split_of):
  return {
    split: {s.patient_id for s in found if split_of[s.stack_id] == split}
    for split in splits_lib.SPLITS
  }


@pytest.mark.parametrize("seed", range(3))
def test_the_papers_counts_are_met_and_balanced_without_a_shared_patient(seed):
  found = stacks(504, seed)
  split_of = splits_lib.divide(found, PAPER, seed)
  sizes = Counter(split_of.values())
  assert tuple(sizes[split] for split in splits_lib.SPLITS) == PAPER
  patients = patients_of(found, split_of)
  assert sum(map(len, patients.values())) == len(set.union(*patients.values()))
  whole = np.sum([s.class_counts for s in found], axis=0)
  share_a = np.mean([s.source == "A" for s in found])
  for split in splits_lib.SPLITS:
    chosen = [s for s in found if split_of[s.stack_id] == split]
    counts = np.sum([s.class_counts for s in chosen], axis=0)
    np.testing.assert_allclose(counts / counts.sum(), whole / whole.sum(), atol=0.015)
    assert abs(np.mean([s.source == "A" for s in chosen]) - share_a) < 0.05


def test_the_seed_decides_and_the_order_of_the_stacks_does_not():
  found = stacks(60, 1, most=3)
  first = splits_lib.divide(found, (30, 10, 20), 5)
  assert splits_lib.divide(found[::-1], (30, 10, 20), 5) == first
  assert splits_lib.divide(found, (30, 10, 20), 6) != first


def test_no_split_stays_empty_however_few_the_patients():
  found = stacks(40, 2, most=20)[:40]
  few = [s for s in found if s.patient_id in ("p0", "p1", "p2")]
  split_of = splits_lib.divide(few, splits_lib.targets(splits_lib.PAPER_FRACTIONS, len(few)), 0)
  assert set(split_of.values()) == set(splits_lib.SPLITS)
  one = [s for s in found if s.patient_id == "p0"]
  with pytest.raises(UserError, match="1 patients cannot fill 3 splits"):
    splits_lib.divide(one, (len(one) - 2, 1, 1), 0)
  assert set(splits_lib.divide(one, (0, 0, len(one)), 0).values()) == {"test"}


def test_targets_are_counts_or_fractions():
  assert splits_lib.targets(PAPER, 504) == PAPER
  assert splits_lib.targets(splits_lib.PAPER_FRACTIONS, 504) == PAPER
  assert sum(splits_lib.targets((0.5, 0.2, 0.3), 11)) == 11
  assert splits_lib.targets(splits_lib.PAPER_FRACTIONS, 4) == (1, 1, 2)
  assert splits_lib.targets((0.99, 0.005, 0.005), 5) == (3, 1, 1)
  assert splits_lib.targets((0.5, 0, 0.5), 4) == (2, 0, 2)
  for bad in ((245, 61, 100), (0.5, 0.5, 0.5), (1, 2), (-1, 1, 1), (1.5, 1.5, 1)):
    with pytest.raises(UserError, match="split_sizes"):
      splits_lib.targets(bad, 504)


@pytest.fixture(name="written")
def _written(tmp_path):
  found = stacks(30, 4, most=4)
  split_of = splits_lib.divide(found, (16, 4, 10), 0)
  splits_lib.write(tmp_path / "splits.csv", found, split_of)
  return tmp_path / "splits.csv", {s.stack_id: s.patient_id for s in found}, split_of


def test_what_is_written_is_read(written):
  path, patient_of, split_of = written
  assert splits_lib.read(path, patient_of) == split_of


@pytest.mark.parametrize(("damage", "expected"), [
  (lambda lines: [*lines, lines[1]], "comes twice"),
  (lambda lines: lines[:-1], "no row for stack"),
  (lambda lines: [*lines, "s99,p0,train"], "not in the manifest"),
  (lambda lines: [line.replace(",test,", ",exam,") for line in lines], "expected one of train"),
  (lambda lines: [lines[0], lines[1].replace(",p", ",q"), *lines[2:]], "as in the manifest"),
  (lambda lines: [line.replace("split", "group") for line in lines], "no column split"),
])  # fmt: skip
def test_files_that_cannot_be_obeyed(written, damage, expected):
  path, patient_of, _ = written
  path.write_text("\n".join(damage(path.read_text().splitlines())), encoding="utf-8-sig")
  with pytest.raises(UserError, match=expected) as error:
    splits_lib.read(path, patient_of)
  assert "splits.csv" in str(error.value)


def test_a_patient_in_two_splits_is_refused_with_both_rows(written):
  path, patient_of, split_of = written
  patient = next(p for p, n in Counter(patient_of.values()).items() if n > 1)
  victim = next(s for s, p in patient_of.items() if p == patient)
  other = "test" if split_of[victim] == "train" else "train"
  text = path.read_text()
  [line] = [line for line in text.splitlines() if line.startswith(f"{victim},")]
  path.write_text(text.replace(line, line.replace(split_of[victim], other)), newline="\r\n")
  with pytest.raises(UserError, match=rf"row \d+: patient '{patient}' is in .* in row \d+"):
    splits_lib.read(path, patient_of)


def test_a_split_file_of_other_columns(written):
  path, patient_of, split_of = written
  path.write_text(path.read_text().replace("split", "Group").replace("slices", "T"))
  with pytest.raises(UserError, match="no column split"):
    splits_lib.read(path, patient_of)
  warnings = []
  assert splits_lib.read(path, patient_of, warnings, {"split": "group"}) == split_of
  assert warnings == [f"{path}, row 1: unknown column passed over: 'T'"]
