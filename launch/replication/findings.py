"""The paper's findings, each put as a comparison that a study's rows can bear out or not."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from rcm_jax import anatomy
from rcm_jax.evaluation import paper_results
from rcm_jax.reporting import table_formats

SMALL_HALF_WIDTHS = ("toeplitz_d1", "toeplitz_d2", "toeplitz_d3")
_TOEPLITZ = ("toeplitz_d0", *SMALL_HALF_WIDTHS, "toeplitz_d5", "toeplitz_d7")
METHODS = ("ordered", "ordered_textures")  # ours, beyond the paper


class Figures(NamedTuple):
  """One method's means over seeds; None where nothing was measured.

  Attributes:
    accuracy: percent.
    inconsistent: impossible transitions.
    mae_um: of both boundaries, after median-then-max.
    own_mae_um: of both boundaries, by posterior medians.
    monotone_mae_um: of both boundaries, in the most probable labelling that skin allows.
  """

  accuracy: float
  inconsistent: float | None
  mae_um: tuple[float, float] | None
  own_mae_um: tuple[float, float] | None = None
  monotone_mae_um: tuple[float, float] | None = None


class Finding(NamedTuple):
  """A claim about methods.

  Attributes:
    claim: in words.
    shown: figures of all methods → the numbers that tell, as text.
    holds: figures of all methods → whether they bear the claim out.
    methods: that it is about.
  """

  claim: str
  shown: Callable[[Mapping[str, Figures]], str]
  holds: Callable[[Mapping[str, Figures]], bool]
  methods: tuple[str, ...]


def measured(rows: Sequence[Mapping[str, Any]]) -> dict[str, Figures]:
  """Returns each method's figures from rows in the form of results.json."""
  found = {}
  for method in dict.fromkeys(row["method"] for row in rows):
    runs = [row for row in rows if row["method"] == method]
    found[method] = Figures(
      100 * _mean([run["accuracy"] for run in runs]),
      _mean([run["inconsistent"]["total"] for run in runs]),
      _boundaries(runs, "median_then_max"),
      _boundaries(runs, "posterior_median"),
      _boundaries(runs, "monotone"),
    )
  return found


def papers() -> dict[str, Figures]:
  """Returns the paper's figures."""
  return {
    name: Figures(row.accuracy, row.inconsistent and sum(row.inconsistent), row.boundary_mae_um)
    for name, row in paper_results.METHODS.items()
  }


def _boundaries(runs, rule):
  errors = [
    [run["decoding"][rule]["boundary_mae_um"][b] for run in runs] for b in anatomy.PAPER.boundaries
  ]
  return tuple(_mean(values) for values in errors)


def _mean(values):
  return float(np.mean([np.nan if value is None else value for value in values]))


def _gain(better: str, worse: str) -> Callable[[Mapping[str, Figures]], str]:
  return lambda f: (
    f"{f[better].accuracy:.2f} against {f[worse].accuracy:.2f} % "
    f"({f[better].accuracy - f[worse].accuracy:+.2f} points)"
  )


def _beats(better: str, worse: str, claim: str) -> Finding:
  return Finding(
    claim,
    _gain(better, worse),
    lambda f: f[better].accuracy > f[worse].accuracy,
    (better, worse),
  )


def _best(f: Mapping[str, Figures], names: Sequence[str]) -> str:
  return max(names, key=lambda name: f[name].accuracy)


def _shown_best(f):
  first, *others = sorted(paper_results.METHODS, key=lambda name: -f[name].accuracy)
  return (
    f"best {paper_results.display_name(first)}, {f[first].accuracy:.2f} %; then "
    f"{paper_results.display_name(others[0])}, {f[others[0]].accuracy:.2f} %"
  )


def _shown_widths(f):
  return ", ".join(
    f"D = {name.removeprefix('toeplitz_d')}: {f[name].accuracy:.2f}" for name in _TOEPLITZ
  )


def _shown_consistency(f):
  best = _best(f, SMALL_HALF_WIDTHS)
  few, many = f[best].inconsistent, f["inception_v3"].inconsistent
  ratio = f"{many / few:.1f} times fewer" if few else "none at all"
  gain = f[best].accuracy - f["inception_v3"].accuracy
  return f"{few:.1f} against {many:.1f} transitions ({ratio}), {gain:+.2f} points of accuracy"


def _consistent(f):
  best = _best(f, SMALL_HALF_WIDTHS)
  return f[best].inconsistent * 9 <= f["inception_v3"].inconsistent


def _three_points(f):
  return f[_best(f, SMALL_HALF_WIDTHS)].accuracy - f["inception_v3"].accuracy >= 3


def _with_errors(f):
  errors = {name: f[name].mae_um for name in paper_results.METHODS}
  return {name: both for name, both in errors.items() if both and not np.isnan(both).any()}


def _shown_errors(f):
  errors = _with_errors(f)
  larger = sum(lower > upper for upper, lower in errors.values())
  means = np.mean(list(errors.values()), axis=0)
  return f"{means[0]:.1f} and {means[1]:.1f} µm on average; so in {larger} of {len(errors)} methods"


FINDINGS = (
  _beats("iv3_context", "inception_v3", "Context helps the CNN: three slices beat one"),
  _beats(
    "partial_sequence", "inception_v3", "Context helps: a recurrent window of three beats one"
  ),
  _beats("full_sequence", "partial_sequence", "The whole stack beats a part of it (recurrent)"),
  Finding(
    "Toeplitz attention with D ≤ 3 is the most accurate of the 13",
    _shown_best,
    lambda f: _best(f, list(paper_results.METHODS)) in SMALL_HALF_WIDTHS,
    tuple(paper_results.METHODS),
  ),
  Finding(
    "Among half-widths, 1 to 3 is best",
    _shown_widths,
    lambda f: _best(f, _TOEPLITZ) in SMALL_HALF_WIDTHS,
    _TOEPLITZ,
  ),
  Finding(
    "Toeplitz attention (best D ≤ 3) has at most a ninth of the single-slice CNN's impossible transitions",
    _shown_consistency,
    _consistent,
    (*SMALL_HALF_WIDTHS, "inception_v3"),
  ),
  Finding(
    "… and is at least 3 points more accurate",
    lambda f: _gain(_best(f, SMALL_HALF_WIDTHS), "inception_v3")(f),
    _three_points,
    (*SMALL_HALF_WIDTHS, "inception_v3"),
  ),
  Finding(
    "Errors at DEJ-dermis exceed those at epidermis-DEJ",
    _shown_errors,
    lambda f: all(lower > upper for upper, lower in _with_errors(f).values()),
    tuple(paper_results.METHODS),
  ),
)


def _least_errors(f):
  """The least error at each boundary that any method of Table 1 reaches, by the paper's rule."""
  return np.min(list(_with_errors(f).values()), axis=0)


def _errs_less(method, claim):
  """Claims that one method of ours errs 10 % less at both boundaries than any of the paper's."""

  def shown(f):
    least, own = _least_errors(f), np.array(f[method].own_mae_um)
    change = 100 * (own / least - 1)
    return (
      f"{own[0]:.2f} and {own[1]:.2f} µm against {least[0]:.2f} and {least[1]:.2f} "
      f"({change[0]:+.0f} and {change[1]:+.0f} %)"
    )

  return Finding(
    claim,
    shown,
    lambda f: bool(np.all(np.array(f[method].own_mae_um) <= 0.9 * _least_errors(f))),
    (method, *paper_results.METHODS),
  )


def _no_more(claim, field):
  """Claims that one decoding errs no more than median-then-max, whatever the method."""
  excess = lambda f: np.array([np.subtract(getattr(x, field), x.mae_um) for x in f.values()])

  def shown(f):
    found = excess(f)
    kept = (found <= 0).sum(0)
    text = f"epidermis-DEJ in {kept[0]}, DEJ-dermis in {kept[1]} of {len(f)} methods"
    return text + (f"; at most {found.max():.2f} µm more" if found.max() > 0 else "")

  return Finding(claim, shown, lambda f: bool(np.all(excess(f) <= 0)), ())


OURS = (
  _errs_less(
    "ordered",
    "The ordered head's errors are 10 % below the least of any method of Table 1, at both boundaries",
  ),
  _errs_less("ordered_textures", "… and with views of the textures beside the CNN's"),
  Finding(
    "The ordered head has no impossible transition",
    lambda f: f"{f['ordered'].inconsistent:.1f}",
    lambda f: f["ordered"].inconsistent == 0,
    ("ordered",),
  ),
  _no_more("Posterior medians err no more than median-then-max, whatever the method", "own_mae_um"),
  _no_more(
    "The most probable possible labelling errs no more than median-then-max, whatever the method",
    "monotone_mae_um",
  ),
)


def to_markdown(rows: Sequence[Mapping[str, Any]], measured_on: str) -> str:
  """Returns two tables: the paper's findings beside ours, and what goes beyond the paper.

  Args:
    rows: of all runs, in the form of results.json.
    measured_on: dataset.
  """
  ours, theirs = measured(rows), papers()
  known = [x for x in FINDINGS if set(x.methods) <= set(ours)]
  beyond = [x for x in OURS if set(x.methods) <= set(ours)]
  notes = ["Means over seeds; the intervals are in the tables."]
  return "\n".join(
    [
      f"# Findings on {measured_on}",
      "",
      table_formats.to_markdown(
        table_formats.Table(
          "findings",
          "The paper's findings",
          [
            ("", "Finding"),
            ("", "Paper, on its 504 stacks"),
            ("", f"Here, on {measured_on}"),
            ("", "Same direction"),
          ],
          [[x.claim, x.shown(theirs), x.shown(ours), _yes(x.holds(ours))] for x in known],
          notes=notes,
        )
      ),
      table_formats.to_markdown(
        table_formats.Table(
          "beyond",
          "Beyond the paper",
          [("", "Aim"), ("", f"Here, on {measured_on}"), ("", "Reached")],
          [[x.claim, x.shown(ours), _yes(x.holds(ours))] for x in beyond],
          notes=notes,
        )
      ),
    ]
  )


def _yes(holds: bool) -> str:
  return "yes" if holds else "**no**"
