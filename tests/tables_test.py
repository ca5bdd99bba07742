"""Renderings of one table, and the paper's own figures."""

from __future__ import annotations

import csv
import io
import math

import pytest

from rcm_jax.evaluation import paper_results
from rcm_jax.reporting import table_formats

TABLE = table_formats.Table(
  "table9",
  "Table 9. Effect of x_1 & x_2",
  [("", "Method"), ("Error, µm", "Epidermis"), ("Error, µm", "Dermis"), ("", "p")],
  [
    [
      "a_b",
      table_formats.Cell(1.234, 1.0, 1.5, bold=True),
      table_formats.Cell(math.nan),
      table_formats.Cell(1e-9),
    ],
    ["c", table_formats.Cell(-2.0, -2.5, -1.5), table_formats.Cell(3.0), table_formats.Cell(0.05)],
  ],
  rules=(0, 1),
  notes=["Measured on 100 % phantom."],
)


def test_markdown():
  lines = table_formats.to_markdown(TABLE).splitlines()
  assert lines[0] == "## Table 9. Effect of x_1 & x_2"
  assert lines[2] == "| Method | Error, µm Epidermis | Error, µm Dermis | p |"
  assert lines[3] == "| --- | ---: | ---: | ---: |"
  assert lines[4] == "| a_b | **1.23** (1.00, 1.50) | - | <0.01 |"
  assert lines[5] == "| c | -2.00 (-2.50, -1.50) | 3.00 | 0.05 |"
  assert lines[-1] == "Measured on 100 % phantom."


def test_csv_keeps_full_precision_and_interval_ends():
  header, first, second = csv.reader(io.StringIO(table_formats.to_csv(TABLE)))
  assert header == [
    "method",
    "error_um_epidermis",
    "error_um_epidermis_low",
    "error_um_epidermis_high",
    "error_um_dermis",
    "p",
  ]
  assert first == ["a_b", "1.234", "1.0", "1.5", "", "1e-09"]
  assert second == ["c", "-2.0", "-2.5", "-1.5", "3.0", "0.05"]


def test_latex_is_escaped_balanced_and_grouped():
  text = table_formats.to_latex(TABLE)
  assert r"\caption{Effect of x\_1 \& x\_2}" in text
  assert r"\multicolumn{2}{c}{Error, \textmu{}m}" in text
  assert r"\cmidrule(lr){2-3}" in text
  assert r"a\_b & \textbf{1.23} {\scriptsize (1.00, 1.50)} & $-$ & $<$0.01 \\" in text
  assert text.count(r"\midrule") == 2
  assert r"100 \% phantom" in text
  assert text.count("{") == text.count("}")
  widths = {line.count(" & ") for line in text.splitlines() if line.endswith(r" \\")}
  assert widths == {2, 3}  # the group heading spans two columns


@pytest.mark.parametrize("method", paper_results.METHODS)
def test_paper_rows_are_consistent_with_each_other(method):
  row = paper_results.METHODS[method]
  assert row.input in paper_results.INPUTS
  # Accuracy is the prevalence-weighted mean of the sensitivities: 44, 34, 22 % (Discussion).
  mean = sum(w * s for w, s in zip((0.44, 0.34, 0.22), row.sensitivity))
  assert row.accuracy == pytest.approx(mean, abs=0.8)


def test_paper_totals_and_order():
  totals = {m: sum(r.inconsistent) for m, r in paper_results.METHODS.items() if r.inconsistent}
  assert totals == {
    "global_attention": 0,
    "toeplitz_d1": 3,
    "toeplitz_d5": 4,
    "toeplitz_d7": 7,
    "full_sequence": 7,
    "toeplitz_d3": 9,
    "toeplitz_d0": 18,
    "toeplitz_d2": 22,
    "inception_v3": 68,
    "hames": 140,
    "kaur": 201,
  }
  assert len(paper_results.METHODS) == 13
  assert paper_results.display_name("mine") == "mine"
