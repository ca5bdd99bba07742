"""Tables 1-3 in the paper's layout, ours beside the paper's, and what goes beyond them."""

from __future__ import annotations

from collections.abc import Sequence
import dataclasses
import itertools

import numpy as np

from rcm_jax import anatomy
from rcm_jax.evaluation import bootstrap, calibration, estimates, paired_tests, paper_results
from rcm_jax.evaluation import scores as scores_lib
from rcm_jax.reporting.table_formats import Cell, Table

_PAPERS_MEDIANS = f"{paper_results.MEDIAN_ERROR_UM[0]} and {paper_results.MEDIAN_ERROR_UM[1]} µm"
_RULE_NAMES = {
  "raw": "raw",
  "median_then_max": "median-then-max",
  "monotone": "monotone",
  "posterior_median": "posterior median",
}


@dataclasses.dataclass(frozen=True)
class Method:
  """One method's result on one dataset.

  Attributes:
    name: as in results.json.
    input: Table 1's block.
    estimate: its measures.
  """

  name: str
  input: str
  estimate: estimates.Estimate


def table1(
  methods: Sequence[Method], measured_on: str, strata: anatomy.Strata = anatomy.PAPER
) -> Table:
  """Accuracy, sensitivity and specificity in percent, in blocks by input (Table 1)."""
  columns = [("", "Input"), ("", "Method"), ("", "Measured on"), ("", "Accuracy, %")]
  headings = strata.headings.values()
  columns += [(f"{name}, %", s) for name in ("Sensitivity", "Specificity") for s in headings]
  rows, rules = [], []
  for block in sorted({m.input for m in methods}, key=paper_results.block_order):
    members = sorted(
      (m for m in methods if m.input == block),
      key=lambda m: -m.estimate.mean.accuracy[scores_lib.RAW],
    )
    numbers = [_cells(m.estimate, _table1_values, 2, 100) for m in members]
    rules.append(len(rows))
    for member, cells in zip(members, _mark_best(numbers, max)):
      head = [block.capitalize() or "Other", paper_results.display_name(member.name)]
      rows.append([*head, _ours(member, measured_on), *cells])
      if paper := _papers(member, strata):
        values = (paper.accuracy, *paper.sensitivity, *paper.specificity)
        rows.append([*head, paper_results.MEASURED_ON, *(Cell(v) for v in values)])
  title = "Table 1. Accuracy, sensitivity and specificity, by size of the input"
  notes = _notes(strata, "Bold: best of ours in its block.")
  return Table("table1", title, columns, rows, rules, notes)


def table2(
  methods: Sequence[Method], measured_on: str, strata: anatomy.Strata = anatomy.PAPER
) -> Table:
  """Anatomically inconsistent transitions of the raw predictions (Table 2)."""
  columns = [("", "Method"), ("", "Measured on")]
  columns += [("Error types", name) for name in strata.transition_headings] + [("", "Total")]
  methods = sorted(methods, key=lambda m: m.estimate.mean.inconsistent[scores_lib.RAW, -1])
  rows, rules = [], []
  for m in methods:
    rules.append(len(rows))
    cells = _cells(m.estimate, lambda x: x.inconsistent[scores_lib.RAW], 1)
    rows.append([paper_results.display_name(m.name), _ours(m, measured_on), *cells])
    paper = _papers(m, strata)
    if paper and paper.inconsistent:
      counts = (*paper.inconsistent, sum(paper.inconsistent))
      cells = [Cell(v, decimals=0) for v in counts]
      rows.append([rows[-1][0], paper_results.MEASURED_ON, *cells])
  title = "Table 2. Anatomically inconsistent transitions, without any post-processing"
  notes = _notes(strata, "Counts grow with the size of the test split, which differs.")
  return Table("table2", title, columns, rows, rules, notes)


def table3(
  methods: Sequence[Method], measured_on: str, strata: anatomy.Strata = anatomy.PAPER
) -> Table:
  """Mean absolute boundary errors after the paper's post-processing (Table 3)."""
  columns = [("", "Method"), ("", "Measured on")]
  names = strata.boundary_headings.values()
  first = strata.boundaries.index(anatomy.PAPER.boundaries[0])
  columns += [("Mean absolute error, µm", name) for name in names]
  columns += [("Median absolute error, µm", name) for name in names]
  columns += [("Boundaries", name) for name in names]
  methods = sorted(
    methods, key=lambda m: _nan_last(m.estimate.mean.mae_um[scores_lib.PAPER_RULE, first])
  )
  numbers = [_cells(m.estimate, lambda x: x.mae_um[scores_lib.PAPER_RULE], 2) for m in methods]
  medians = [_cells(m.estimate, lambda x: x.median_um[scores_lib.PAPER_RULE], 2) for m in methods]
  rows, rules = [], []
  for m, *cells in zip(methods, _mark_best(numbers, min), _mark_best(medians, min)):
    rules.append(len(rows))
    counts = [Cell(n, decimals=0) for n in m.estimate.boundary_n]
    head = [paper_results.display_name(m.name), _ours(m, measured_on)]
    rows.append([*head, *itertools.chain(*cells), *counts])
    paper = _papers(m, strata)
    if paper and paper.boundary_mae_um:
      cells = [Cell(v) for v in paper.boundary_mae_um]
      rows.append([head[0], paper_results.MEASURED_ON, *cells, "", "", "", ""])
  every = "both" if len(names) == 2 else "all"
  title = f"Table 3. Absolute errors of {every} boundaries, after median-then-max"
  notes = _notes(
    strata,
    "A boundary counts where the ground truth shows it; one that a prediction never reaches lies"
    " one step past the last slice.",
    "The intervals of medians are quantiles of resampled medians."
    + (f" The paper's text gives medians of {_PAPERS_MEDIANS}." if strata == anatomy.PAPER else ""),
  )
  return Table("table3", title, columns, rows, rules, notes)


def decoding_table(
  methods: Sequence[Method], measured_on: str, strata: anatomy.Strata = anatomy.PAPER
) -> Table:
  """The paper's heuristic beside decoding under the monotone model, for every method."""
  labellings = [_RULE_NAMES[name] for name in scores_lib.LABELLINGS]
  rules = [_RULE_NAMES[name] for name in scores_lib.BOUNDARY_RULES]
  columns = [("", "Method")]
  columns += [("Accuracy, %", name) for name in labellings]
  columns += [("Inconsistent transitions", name) for name in labellings]
  headings = strata.boundary_headings.values()
  columns += [(f"{b} MAE, µm", name) for b in headings for name in rules]
  methods = sorted(methods, key=lambda m: -m.estimate.mean.accuracy[scores_lib.RAW])
  rows = []
  for m in methods:
    parts = [
      _cells(m.estimate, lambda x: x.accuracy, 2, 100),
      _cells(m.estimate, lambda x: x.inconsistent[:, -1], 1),
      *(_cells(m.estimate, lambda x, b=b: x.mae_um[:, b], 2) for b in range(len(headings))),
    ]
    # Within one method, which decoding is best: more of the first part, less of the others.
    marked = [_mark_best_of(parts[0], max), *(_mark_best_of(part, min) for part in parts[1:])]
    rows.append([paper_results.display_name(m.name), *itertools.chain(*marked)])
  title = "Table 4. The paper's post-processing beside monotone decoding"
  notes = _notes(
    strata,
    "Bold: best decoding of a method. Posterior medians are computed at the temperature that makes"
    " the true boundaries of validation stacks most probable.",
  )
  notes = [f"Measured on {measured_on}.", *notes[:2]]
  return Table("table4_decoding", title, columns, rows, (), notes)


def comparison_table(
  comparisons: Sequence[paired_tests.Comparison],
  measured_on: str,
  strata: anatomy.Strata = anatomy.PAPER,
) -> Table:
  """Paired tests between methods."""
  measures = {"accuracy": ("Accuracy, %", 100)}
  measures |= {f"mae_{b}_um": (f"{h} MAE, µm", 1) for b, h in strata.boundary_headings.items()}
  columns = [("", "Measure"), ("", "First"), ("", "Second"), ("", "Patients")]
  columns += [("", "First minus second"), ("", "p (Wilcoxon)"), ("", "p (Holm)")]
  rows, rules, previous = [], [], None
  for c in comparisons:
    if c.measure != previous:
      rules.append(len(rows))
      previous = c.measure
    name, scale = measures[c.measure]
    ends = (scale * x for x in (c.difference, c.low, c.high))
    difference = Cell(*ends, decimals=2, bold=c.significant)
    names = (paper_results.display_name(x) for x in (c.first, c.second))
    p_values = (Cell(p, decimals=4) for p in (c.p_value, c.p_holm))
    rows.append([name, *names, Cell(c.patients, decimals=0), difference, *p_values])
  title = "Table 5. Paired comparisons between methods, by patient"
  notes = [
    f"Measured on {measured_on}.",
    "Differences of pooled means over seeds, with 95 % bootstrap intervals over patients, each for"
    " itself. Two-sided signed-rank tests on patients' own means; Holm's correction is for all"
    " pairs of methods, since the best of them was found on these stacks."
    f" Bold: the corrected p is below {paired_tests.SIGNIFICANT}.",
  ]
  return Table("table5_paired", title, columns, rows, rules, notes)


def settings_table(
  name: str, title: str, found: Sequence[tuple[str, str, Sequence[Method]]]
) -> Table:
  """What some methods reach under each setting of a sweep.

  Args:
    name: stem of its files.
    title: what the sweep asks.
    found: setting, dataset of the test stacks, and methods.
  """
  columns = [("", "Setting"), ("", "Tested on"), ("", "Method"), ("", "Seeds"), ("", "Accuracy, %")]
  headings = anatomy.PAPER.boundary_headings.values()
  columns += [("", "Impossible transitions"), *(("MAE, µm", b) for b in headings)]
  rows, rules = [], []
  for setting, dataset, methods in found:
    rules.append(len(rows))
    for m in methods:
      cells = [
        Cell(m.estimate.seeds, decimals=0),
        *_cells(m.estimate, lambda x: x.accuracy[scores_lib.RAW, None], 2, 100),
        *_cells(m.estimate, lambda x: x.inconsistent[scores_lib.RAW, -1:], 1),
        *_cells(m.estimate, lambda x: x.mae_um[scores_lib.PAPER_RULE], 2),
      ]
      rows.append([setting, dataset, paper_results.display_name(m.name), *cells])
  return Table(name, title, columns, rows, rules, _notes(anatomy.PAPER)[:1])


def uncertainty_table(
  assessed: Sequence[
    tuple[str, int, Sequence[tuple[calibration.Assessment, calibration.IntervalsWithMorePatients]]]
  ],
  measured_on: str,
  strata: anatomy.Strata = anatomy.PAPER,
) -> Table:
  """Calibration and intervals, single models beside their ensemble.

  Args:
    assessed: method, members (1, or the number of seeds in an ensemble), and what was found, one
      item a seed.
    measured_on: dataset.
    strata: that the methods tell apart.
  """
  headings = strata.boundary_headings.values()
  columns = [("", "Method"), ("", "Models"), ("", "Accuracy, %"), ("", "Temperature")]
  columns += [("Calibration error, %", name) for name in ("raw", "scaled")]
  columns += [("Width of 90 % interval, µm", name) for name in headings]
  columns += [("Covered, %", name) for name in headings]
  columns += [("Width with more patients, µm", name) for name in headings]
  columns += [("Covered with more patients, %", name) for name in headings]
  rows, patients = [], 0
  for name, members, pairs in assessed:
    found, more = zip(*pairs)
    patients = more[0].patients
    values = [
      np.array([100 * u.accuracy for u in found]),
      np.array([u.temperature for u in found]),
      np.array([100 * u.error_before for u in found]),
      np.array([100 * u.error_after for u in found]),
      *np.array([u.width_um for u in found]).T,
      *(100 * np.array([u.covered for u in found])).T,
      *np.array([r.width_um for r in more]).T,
      *(100 * np.array([r.covered for r in more])).T,
    ]
    models = "1" if members == 1 else f"ensemble of {members}"
    cells = [Cell(float(v.mean()), decimals=2 if i < 4 else 1) for i, v in enumerate(values)]
    rows.append([paper_results.display_name(name), models, *cells])
  title = "Table 6. Calibration and conformal boundary intervals, learned on validation stacks"
  notes = [
    f"Measured on {measured_on}, means over seeds. Intervals are posterior quantiles widened by"
    " split conformal prediction with patients as units (-: too few of them for 90 %, which takes"
    " nine). Covered: the share in a random stack of a random patient.",
    "Temperature: 1 where patients that it was not fitted on do not gain by another.",
    f"More patients: the {patients} of validation and half of the test split calibrate, the other"
    " half is covered; mean over 200 random divisions.",
  ]
  return Table("table6_uncertainty", title, columns, rows, (), notes)


def _table1_values(measures):
  return np.concatenate(
    [[measures.accuracy[scores_lib.RAW]], measures.sensitivity, measures.specificity]
  )


def _cells(estimate, pick, decimals, scale=1.0):
  ends = (scale * pick(x) for x in (estimate.mean, estimate.low, estimate.high))
  return [Cell(float(m), float(a), float(b), decimals) for m, a, b in zip(*ends)]


def _mark_best(rows, best):
  columns = [_mark_best_of(column, best) for column in zip(*rows)]
  return [list(row) for row in zip(*columns)]


def _mark_best_of(cells, best):
  values = [round(c.value, c.decimals) for c in cells if not np.isnan(c.value)]
  if not values or len(cells) < 2:
    return list(cells)
  top = best(values)
  return [dataclasses.replace(c, bold=round(c.value, c.decimals) == top) for c in cells]


def _ours(method, measured_on):
  seeds = method.estimate.seeds
  return f"{measured_on}, {seeds} seed{'s' if seeds > 1 else ''}"


def _nan_last(value):
  return np.inf if np.isnan(value) else value


def _papers(method: Method, strata: anatomy.Strata) -> paper_results.PaperRow | None:
  """The paper's row of a method; it has none of other strata."""
  return paper_results.METHODS.get(method.name) if strata == anatomy.PAPER else None


def _notes(strata, *more):
  notes = [
    "Ours: mean over seeds, in parentheses the 95 % interval by bootstrap over patients (none with"
    f" fewer than {bootstrap.MIN_PATIENTS}, or where patients do not differ).",
    *more,
  ]
  if strata != anatomy.PAPER:
    return [*notes, "The paper tells three strata apart and has no such rows."]
  return [*notes, f'"{paper_results.MEASURED_ON}": as the paper prints it, on other stacks.']
