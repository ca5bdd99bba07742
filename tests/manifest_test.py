"""Manifests and labels in every dialect that spreadsheets and readers produce."""

import shlex

import numpy as np
import pytest

from tests import studies
from tfds_rcm.errors import UserError
from tfds_rcm.formats import csv_table
from tfds_rcm.study import annotations, label_tables
from tfds_rcm.study import manifest as manifest_lib

DEPTH_UM = 3.0 * np.arange(8)
NAMES = [f"folder/v{t:07d}.bmp" for t in range(8)]
HEADER = ("stack_id", "patient_id", "path", "step_um", "dej_um", "dermis_um")


TWO_MU = ("\N{MICRO SIGN}", "\N{GREEK SMALL LETTER MU}")


def merge(path, rules=None, names=NAMES, depth_um=DEPTH_UM):
  """Labels of the only stack of a table of labels."""
  [readings] = label_tables.read_labels(csv_table.read_table(path)).values()
  return annotations.merge_readings(
    "row 2", readings, names, depth_um, rules or annotations.Rules()
  )


def per_slice(tmp_path, rows, header=("stack_id", "slice", "label")):
  return studies.write_table(tmp_path / "labels.csv", header, rows)


def entries(path):
  problems = []
  found = manifest_lib.read_manifest(path, path.parent, None, problems)
  assert not problems
  return found


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "latin-1", "utf-16"])
@pytest.mark.parametrize("delimiter", [",", ";", "\t"])
@pytest.mark.parametrize("end", ["\n", "\r\n", "\r"])
def test_every_dialect_of_csv_reads_alike(tmp_path, encoding, delimiter, end):
  step = "1.5" if delimiter == "," else "1,5"
  rows = [("s0", "Müller", "a\\b", step, "12", ""), (), ("s1", "Ørsted", "c", step, "0", "")]
  path = studies.write_table(tmp_path / "m.csv", HEADER, rows, encoding, delimiter, end)
  first, second = entries(path)
  assert (first.stack_id, first.patient_id, first.step_um) == ("s0", "Müller", 1.5)
  assert first.path == tmp_path / "a/b"
  assert second.patient_id == "Ørsted"
  assert second.place == f"{path}, row 4"  # the row that a spreadsheet shows, blank ones counted


def test_columns_may_be_written_in_any_case_and_order(tmp_path):
  path = studies.write_table(
    tmp_path / "m.csv", ("Path", "Stack ID", " DEJ_um", "Patient ID"), [("a", "s", "3", "p")]
  )
  assert entries(path)[0].stack_id == "s"


@pytest.mark.parametrize(("data", "expected"), [
  (b"PK\x03\x04....", "save it as CSV"), (b"", "empty"), (b"\n\n", "no rows"),
  (b"stack_id,patient_id,path\n", "no row below the header"),
  (b"stack_id,patient_id,path,path\n", "comes twice"),
  (b"stack_id,patient_id,path\ns,p,a,b\n", "row 2: 4 cells"),
  (b"stack_id,path\ns,p\n", "no column patient_id"),
])  # fmt: skip
def test_tables_that_cannot_be_understood(tmp_path, data, expected):
  path = tmp_path / "m.csv"
  path.write_bytes(data)
  with pytest.raises(UserError) as error:
    entries(path)
  assert expected in str(error.value)
  assert "m.csv" in str(error.value)


@pytest.mark.parametrize(("cells", "expected"), [
  ({"dej_um": 6, "dermis_um": 13}, [1, 1, 2, 2, 2, 3, 3, 3]),
  ({"dej_index": 2, "dermis_index": 5}, [1, 1, 2, 2, 2, 3, 3, 3]),
  ({"epidermis_um": 3, "dej_um": 6, "dermis_um": 9}, [0, 1, 2, 3, 3, 3, 3, 3]),
  ({"epidermis_um": "", "dej_um": 6, "dermis_um": ""}, [1, 1, 2, 2, 2, 2, 2, 2]),
  ({"dej_index": 0, "dermis_index": ""}, [2] * 8),
  ({"epidermis_index": 3}, [0, 0, 0, 1, 1, 1, 1, 1]),
  ({"dermis_um": 21}, [2] * 7 + [3]),
])  # fmt: skip
def test_transitions_by_depth_and_by_index(tmp_path, cells, expected):
  path = studies.write_table(tmp_path / "l.csv", ("stack_id", *cells), [("s", *cells.values())])
  assert merge(path).labels.tolist() == expected


def test_transitions_count_from_one_if_told_so(tmp_path):
  path = studies.write_table(tmp_path / "l.csv", ("stack_id", "dej_index"), [("s", 8)])
  assert merge(path, annotations.Rules(first_slice=1)).labels.tolist() == [1] * 7 + [2]


def test_transitions_that_run_backwards_are_allowed_with_a_warning(tmp_path):
  path = studies.write_table(
    tmp_path / "l.csv", ("stack_id", "dej_um", "dermis_um"), [("s", 15, 6)]
  )
  merged = merge(path)
  assert merged.labels.tolist() == [1, 1, 3, 3, 3, 3, 3, 3]
  [warning] = merged.warnings
  assert "l.csv, row 2: transitions run backwards: dermis_um 6 lies above dej_um 15" in warning


def test_slices_that_run_backwards_are_kept_with_a_warning(tmp_path):
  order = ["epidermis", "dej", "dermis", "dej", "dermis", "dermis", "dermis", "dermis"]
  merged = merge(per_slice(tmp_path, [("s", t, name) for t, name in enumerate(order)]))
  assert merged.labels.tolist() == [1, 2, 3, 2, 3, 3, 3, 3]
  assert "run backwards after slice 2" in merged.warnings[0]


@pytest.mark.parametrize("slices", [
  range(8), [f"v{t:07d}.bmp" for t in range(8)], [f"v{t:07d}" for t in range(8)],
])  # fmt: skip
def test_slices_by_number_and_by_file(tmp_path, slices):
  rows = [("s", name, "epidermis" if t < 5 else "DEJ") for t, name in enumerate(slices)]
  assert merge(per_slice(tmp_path, rows[::-1])).labels.tolist() == [1] * 5 + [2] * 3


def test_numbers_and_names_through_a_mapping(tmp_path):
  found = ["1", "2.0", "Stratum spinosum", "Dermal-Epidermal Junction", "papillary dermis"]
  rules = annotations.Rules(
    label_map=annotations.parse_label_map(
      "1=stratum_corneum, 2=epidermis,stratum spinosum=Epidermis"
    )
  )
  path = per_slice(tmp_path, [("s", t, name) for t, name in enumerate(found)])
  merged = merge(path, rules, NAMES[:5], DEPTH_UM[:5])
  assert merged.labels.tolist() == [0, 1, 1, 2, 3]
  with pytest.raises(UserError, match="row 2: unknown label: '1' "):
    merge(path, annotations.Rules(), NAMES[:5], DEPTH_UM[:5])
  for bad in ("1", "1=bone"):
    with pytest.raises(UserError, match="label_map"):
      annotations.parse_label_map(bad)


def _readers(tmp_path, votes):
  rows = [
    ("s", t, annotations.STRATA[label], reader)
    for reader, of_reader in votes.items() for t, label in enumerate(of_reader) if label >= 0
  ]  # fmt: skip
  return per_slice(tmp_path, rows, ("stack_id", "slice", "label", "reader"))


def test_readers_are_merged_by_majority_and_ties_go_to_the_senior(tmp_path):
  votes = {
    "ann": [1, 1, 1, 2, 2, 2, 3, 3],
    "bob": [1, 1, 2, 2, 3, 3, 3, -1],
    "cem": [1, 2, 2, 2, 3, 1, 3, -1],
  }
  merged = merge(_readers(tmp_path, votes))
  assert merged.labels.tolist() == [1, 1, 2, 2, 3, 2, 3, 3]
  assert merged.disagreements == 4
  rules = annotations.Rules(reader_order=("cem", "bob"))
  assert merge(_readers(tmp_path, votes), rules).labels.tolist() == [1, 1, 2, 2, 3, 1, 3, 3]


def test_one_vote_is_no_more_than_any_other(tmp_path):
  rng = np.random.default_rng(3)
  table = rng.integers(0, 4, (5, 8))
  merged = merge(_readers(tmp_path, {f"r{i}": row.tolist() for i, row in enumerate(table)}))
  for t, label in enumerate(merged.labels):
    counts = np.bincount(table[:, t], minlength=4)
    assert counts[label] == counts.max()
    first = next(vote for vote in table[:, t] if counts[vote] == counts.max())
    assert label == first
  assert merged.disagreements == sum(len(set(table[:, t])) > 1 for t in range(8))


@pytest.mark.parametrize(("header", "rows", "expected"), [
  (("stack_id", "slice", "label"), [("s", 8, "dej")], "slice 8 does not exist"),
  (("stack_id", "slice", "label"), [("s", -1, "dej")], "neither a number nor a file"),
  (("stack_id", "slice", "label"), [("s", "x.bmp", "dej")], "neither a number nor a file"),
  (("stack_id", "slice", "label"), [("s", 0, "dej"), ("s", 0, "dej")], "has a label already"),
  (("stack_id", "slice", "label"), [("s", 0, "")], "fill it in"),
  (("stack_id", "slice", "label"), [("s", 3, "dej")], "slices 0, 1, 2, 4, 5 and 2 more have no"),
  (("stack_id", "dej_um"), [("s", 22)], "outside the stack"),
  (("stack_id", "dej_um"), [("s", -1)], "outside the stack"),
  (("stack_id", "dej_um"), [("s", "deep")], "expected a number"),
  (("stack_id", "dej_um"), [("s", "nan")], "expected a number"),
  (("stack_id", "dej_index"), [("s", 8)], "does not exist"),
  (("stack_id", "dej_index"), [("s", 1.5)], "does not exist"),
  (("stack_id", "dej_um", "dej_index"), [("s", 3, 1)], "leave one empty"),
  (("stack_id", "dej_um"), [("s", "")], "no transition"),
  (("stack_id", "dej_um"), [("s", 3), ("s", 6)], "second row"),
  (("stack_id", "slice"), [("s", 3)], "no column label"),
  (("stack_id", "depth"), [("s", 3)], "slice and label"),
])  # fmt: skip
def test_labels_that_cannot_be_understood(tmp_path, header, rows, expected):
  path = studies.write_table(tmp_path / "l.csv", header, rows)
  with pytest.raises(UserError) as error:
    merge(path)
  assert expected in str(error.value)


def test_labels_in_both_files_or_in_none(tmp_path):
  table = studies.write_table(
    tmp_path / "m.csv", HEADER, [("s0", "p", "a", 3, 9, ""), ("s1", "p", "b", 3, "", "")]
  )
  path = per_slice(tmp_path, [("s0", 0, "dej")])
  problems = []
  assert not manifest_lib.read_manifest(table, tmp_path, path, problems)
  assert "m.csv, row 2: has transitions, and labels in" in problems[0]
  assert "m.csv, row 3: stack s1 has no labels" in problems[1]


@pytest.mark.parametrize("header", [
  *(form.replace("µ", mu) for mu in TWO_MU for form in (
    "dej_µm", "DEJ µm", "DEJ (µm)", "Dej [µm]", "dej, µm", "DEJ-µM", " dej\nµm ")),
  "DEJ (um)", "dej_um", "DEJ \N{SQUARE MU M}", "DEJ_\N{GREEK CAPITAL LETTER MU}M",
])  # fmt: skip
def test_every_spelling_of_a_depth_in_micrometres_is_read(tmp_path, header):
  path = studies.write_table(
    tmp_path / "l.csv", ("stack_id", header, "dermis µm"), [("s", 6, 15)], encoding="utf-8"
  )
  assert merge(path).labels.tolist() == [1, 1, 2, 2, 2, 3, 3, 3]
  names = ("stack_id", "patient_id", "path", "step µm", header, "Dermis (µm)")
  path = studies.write_table(tmp_path / "m.csv", names, [("s", "p", "a", 3, 6, 15)])
  [entry] = entries(path)
  assert entry.step_um == 3
  merged = annotations.merge_readings("row 2", entry.readings, NAMES, DEPTH_UM, annotations.Rules())
  assert merged.labels.tolist() == [1, 1, 2, 2, 2, 3, 3, 3]


def test_a_micro_sign_in_latin_1_is_read(tmp_path):
  path = studies.write_table(
    tmp_path / "l.csv", ("stack_id", "dej_µm", "dermis_µm"), [("s", 6, 15)], encoding="latin-1"
  )
  assert merge(path).labels.tolist() == [1, 1, 2, 2, 2, 3, 3, 3]


@pytest.mark.parametrize(
  "header", ["dej_mm", "DEJ depth", "dejum", "D.E.J. junction", "stratum corneum µm", "DEJ_nm"]
)
@pytest.mark.parametrize("table", ["manifest", "labels"])
def test_a_boundary_that_is_not_understood_is_refused_and_not_passed_over(tmp_path, header, table):
  columns, row = ["stack_id", header, "dermis_um"], ["s", 6, 15]
  if table == "manifest":
    columns, row = [*columns, "patient_id", "path", "step_um"], [*row, "p", "a", 3]
  path = studies.write_table(tmp_path / "t.csv", columns, [row])
  stacks, other = path, None
  if table == "labels":
    stacks = studies.write_table(tmp_path / "m.csv", HEADER[:4], [("s", "p", "a", 3)])
    other = path
  with pytest.raises(UserError) as error:
    manifest_lib.read_manifest(stacks, tmp_path, other, [])
  assert f"t.csv, row 1: column {header!r} is not understood" in str(error.value)


def read(tmp_path, columns, header, row, labels_header=(), labels_row=()):
  """Warnings and entries of a manifest of one row, with labels."""
  stacks = studies.write_table(tmp_path / "m.csv", header, [row])
  table = None
  if labels_header:
    table = studies.write_table(tmp_path / "labels.csv", labels_header, [labels_row])
  problems, warnings = [], []
  found = manifest_lib.read_manifest(stacks, tmp_path, table, problems, warnings, columns)
  assert not problems
  return warnings, found


def test_unknown_columns_are_named_in_every_table(tmp_path):
  warnings, [entry] = read(
    tmp_path, {}, (*HEADER[:4], "Age", "sites", ""), ("s", "p", "a", 3, 50, "arm", "x"),
    ("stack_id", "slice", "label", "Remark"), ("s", 0, "dej", "blurred"),
  )  # fmt: skip
  assert len(warnings) == 2
  assert (
    "m.csv, row 1: unknown columns kept as written: 'Age', 'sites' (is it site? then" in warnings[0]
  )
  assert "labels.csv, row 1: unknown column passed over: 'Remark'" in warnings[1]
  assert entry.columns == {"age": "50", "sites": "arm"}


def test_columns_are_renamed(tmp_path):
  header = ("Stack", "patient_id", "Patient code", "path", "step_um", "DEJ depth")
  columns = {"stack_id": "stack", "patient_id": "Patient code", "dej_um": "DEJ depth"}
  warnings, [entry] = read(tmp_path, columns, header, ("s", "internal", "P7", "a", 3, 9))
  assert (entry.stack_id, entry.patient_id) == ("s", "P7")
  assert entry.readings[0].rows[0].number("dej_um") == 9
  [warning] = warnings
  assert "unknown column passed over: 'patient_id'" in warning
  assert entry.columns == {}
  swapped = {"stack_id": "patient_id", "patient_id": "stack_id"}
  _, [entry] = read(tmp_path, swapped, HEADER, ("p", "s", "a", 3, 9, ""))
  assert (entry.stack_id, entry.patient_id) == ("s", "p")


@pytest.mark.parametrize(("columns", "expected"), [
  ({"label": "Layr"}, "no column 'Layr' in .*m.csv; did you mean 'path'"),
  ({"labl": "path"}, "no column labl; did you mean 'label'"),
])  # fmt: skip
def test_a_renaming_of_what_is_not_there_is_refused(tmp_path, columns, expected):
  with pytest.raises(UserError, match=expected):
    read(tmp_path, columns, HEADER, ("s", "p", "a", 3, 9, ""))


def test_slices_and_transitions_share_a_table(tmp_path):
  header = ("stack_id", "reader", "slice", "label", "dej_um", "dermis_um")
  rows = [("a", "ann", t, name, "", "") for t, name in enumerate(["epidermis"] * 5 + ["dej"] * 3)]
  rows += [("a", "bob", "", "", 12, 21), ("b", "ann", "", "", 6, 15)]
  table = csv_table.read_table(studies.write_table(tmp_path / "l.csv", header, rows))
  readings = label_tables.read_labels(table)
  merged = {
    name: annotations.merge_readings("row 2", found, NAMES, DEPTH_UM, annotations.Rules())
    for name, found in readings.items()
  }
  assert merged["a"].labels.tolist() == [1, 1, 1, 1, 1, 2, 2, 2]
  assert (merged["a"].read_again, merged["a"].disagreements) == (8, 2)
  assert merged["b"].labels.tolist() == [1, 1, 2, 2, 2, 3, 3, 3]
  assert merged["b"].read_again == 0


@pytest.mark.parametrize(("rows", "expected"), [
  ([("s", 0, "dej", ""), ("s", "", "", 6)], "row 3: a transition, but other rows label slices"),
  ([("s", 0, "dej", 6)], "row 2: a transition, but other rows label slices"),
  ([("s", "", "dej", "")], "row 2: slice is empty"),
  ([("s", 0, "", "")], "row 2: label is empty"),
  ([("s", "", "", "")], "row 2: no transition is given"),
])  # fmt: skip
def test_rows_of_a_shared_table_that_say_two_things_or_none(tmp_path, rows, expected):
  path = studies.write_table(tmp_path / "l.csv", ("stack_id", "slice", "label", "dej_um"), rows)
  with pytest.raises(UserError, match=expected):
    merge(path)


def test_unknown_labels_are_told_at_once_with_an_option_that_settles_them(tmp_path):
  found = ["dermiss", "7", "7", "a, b", "x=y", "DEJ", "7", "Epidermis "]
  path = per_slice(tmp_path, [("s", t, name) for t, name in enumerate(found)])
  [readings] = label_tables.read_labels(csv_table.read_table(path)).values()
  line = annotations.unknown_labels(readings, {})
  assert "labels.csv, row 2: unknown labels: '7' (3 rows, first in row 3), 'a, b' (row 5), " in line
  assert "'dermiss' (row 2), 'x=y' (row 6)" in line
  [option] = shlex.split(line.partition(", by ")[2])
  assert option == '--label_map=7=?,"a, b=?",dermiss=dermis,x=y=?'
  text = option.partition("=")[2]
  with pytest.raises(UserError, match="FOUND=STRATUM"):
    annotations.parse_label_map(text)  # nobody guesses what 7 means
  rules = annotations.Rules(annotations.parse_label_map(text.replace("?", "epidermis")))
  assert annotations.unknown_labels(readings, rules.label_map) == ""
  assert merge(path, rules).labels.tolist() == [3, 1, 1, 1, 1, 2, 1, 1]
