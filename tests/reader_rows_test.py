"""The readers' own agreement stands in a model's tables."""

from __future__ import annotations

import json
import math

import pytest

from rcm_jax import evaluate
from rcm_jax.reporting import paper_tables, reader_rows, table_formats
from tests.agreement_test import NO_LOGS, stack
from tests.evaluate_test import run_files
from tfds_rcm.errors import UserError
from tfds_rcm.labelling import comparison, report


@pytest.fixture
def agreement(tmp_path):
  stacks = [
    stack(f"s{k}", f"p{k}", a=[1, 1, 2, 2, 3, 3], b=[1, 1, 1, 2, 3, 3][: 6 - k % 2] + [3] * (k % 2))
    for k in range(6)
  ]
  path = tmp_path / "agreement.json"
  path.write_text(json.dumps(report.to_json(comparison.compare(stacks, NO_LOGS))))
  return path


def test_the_file_of_the_agreement_command_is_read(agreement):
  found = reader_rows.read(agreement)
  assert (found.count, found.stacks) == (2, 6)
  assert found.accuracy[3][0] == pytest.approx(30 / 36)
  assert found.mae_um["epidermis_dej"][0] == pytest.approx(3.0)
  assert found.mae_um["dej_dermis"][0] == pytest.approx(0.0)


def test_they_are_the_last_row_of_tables_1_and_3_only(agreement):
  empty = [build([], "phantom") for build in (paper_tables.table1, paper_tables.table2)]
  empty.append(paper_tables.table3([], "phantom"))
  first, second, third = reader_rows.add(empty, reader_rows.read(agreement))
  assert second == empty[1]
  for table in (first, third):
    [row] = table.rows
    assert len(row) == len(table.columns)
    assert "readers between themselves" in row
    assert "no finer" in table_formats.to_markdown(table)
  assert "83.33" in table_formats.to_markdown(first)
  assert "3.00" in table_formats.to_markdown(third)


def test_evaluate_shows_them(agreement, tmp_path):
  run_files(tmp_path / "runs")
  arguments = [f"--runs={tmp_path / 'runs'}", f"--out={tmp_path / 'out'}"]
  assert evaluate.main([*arguments, f"--readers={agreement}"]) == 0
  assert (tmp_path / "out" / "tables.md").read_text().count("readers between themselves") == 2
  assert "readers between themselves" in (tmp_path / "out" / "table1.tex").read_text()


@pytest.mark.parametrize(
  "text", [None, "{", "[]", '{"schema": "other"}', '{"schema": "tfds_rcm.agreement/1"}']
)
def test_another_file_is_refused(text, tmp_path):
  path = tmp_path / "agreement.json"
  if text is not None:
    path.write_text(text)
  with pytest.raises(UserError, match="agreement leaves"):
    reader_rows.read(path)


def test_no_interval_is_nan(agreement):
  values = json.loads(agreement.read_text())
  values["accuracy"] = [0.9, None, None]
  agreement.write_text(json.dumps(values))
  assert math.isnan(reader_rows.read(agreement).accuracy[3][1])
