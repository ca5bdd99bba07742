"""Tables as data, rendered to Markdown, CSV and LaTeX."""

from __future__ import annotations

from collections.abc import Sequence
import csv
import dataclasses
import io
import math


@dataclasses.dataclass(frozen=True)
class Cell:
  """A number with its 95 % interval.

  Attributes:
    value: shown; NaN is shown as "-".
    low: lower end, None without interval.
    high: upper end.
    decimals: digits after the point.
    bold: whether it is the best of its kind.
  """

  value: float | int
  low: float | None = None
  high: float | None = None
  decimals: int = 2
  bold: bool = False


@dataclasses.dataclass(frozen=True)
class Table:
  """A titled table with two-level headings.

  Attributes:
    name: stem of its files.
    title: "Table N. What it shows".
    columns: (group, column) headings; an empty group stands alone.
    rows: one entry a column; names as text, numbers as cells.
    rules: indices of rows that a block begins at.
    notes: sentences that stand below.
  """

  name: str
  title: str
  columns: Sequence[tuple[str, str]]
  rows: Sequence[Sequence[str | Cell]]
  rules: Sequence[int] = ()
  notes: Sequence[str] = ()

  def __str__(self) -> str:
    return to_markdown(self)

  def _repr_markdown_(self) -> str:  # what a notebook shows
    return to_markdown(self)


def to_markdown(table: Table) -> str:
  """Renders a table as GitHub-flavored Markdown; intervals follow in parentheses."""
  headings = [" ".join(filter(None, column)) for column in table.columns]
  numeric = _numeric_columns(table)
  lines = [f"## {table.title}", "", _pipes(headings)]
  lines.append(_pipes("---:" if i in numeric else "---" for i in range(len(headings))))
  for row in table.rows:
    lines.append(_pipes(_text(entry, "**{}**", "{} ({})") for entry in row))
  lines += ["", *table.notes] if table.notes else []
  return "\n".join(lines) + "\n"


def to_csv(table: Table) -> str:
  """Renders a table for programs: full precision, interval ends in columns of their own."""
  numeric = _numeric_columns(table)
  bounded = {i for i in numeric if any(_has_interval(row[i]) for row in table.rows)}
  text = io.StringIO()
  writer = csv.writer(text, lineterminator="\n")
  heading: list[str] = []
  for i, column in enumerate(table.columns):
    name = _slug(" ".join(filter(None, column)))
    heading += [name, f"{name}_low", f"{name}_high"] if i in bounded else [name]
  writer.writerow(heading)
  for row in table.rows:
    out: list[str] = []
    for i, entry in enumerate(row):
      if not isinstance(entry, Cell):
        out += [entry, "", ""] if i in bounded else [entry]
      else:
        ends = (entry.value, entry.low, entry.high) if i in bounded else (entry.value,)
        out += ["" if x is None or math.isnan(x) else repr(float(x)) for x in ends]
    writer.writerow(out)
  return text.getvalue()


def to_latex(table: Table) -> str:
  """Renders a table for the `booktabs` package; intervals follow in small type."""
  numeric = _numeric_columns(table)
  caption = table.title.partition(". ")[2]  # LaTeX numbers tables itself
  spec = "".join("r" if i in numeric else "l" for i in range(len(table.columns)))
  lines = [r"\begin{table}", r"\centering", rf"\caption{{{_escape(caption)}}}"]
  lines += [rf"\label{{tab:{table.name}}}", rf"\begin{{tabular}}{{{spec}}}", r"\toprule"]
  if any(group for group, _ in table.columns):
    lines += _latex_groups(table.columns)
  lines.append(" & ".join(_escape(column) for _, column in table.columns) + r" \\")
  lines.append(r"\midrule")
  for i, row in enumerate(table.rows):
    if i in table.rules and i:
      lines.append(r"\midrule")
    lines.append(" & ".join(_latex_entry(entry) for entry in row) + r" \\")
  lines += [r"\bottomrule", r"\end{tabular}"]
  lines += [rf"\par\footnotesize {_escape(' '.join(table.notes))}"] if table.notes else []
  return "\n".join([*lines, r"\end{table}"]) + "\n"


def _numeric_columns(table):
  return {
    i for i in range(len(table.columns)) if any(isinstance(row[i], Cell) for row in table.rows)
  }


def _has_interval(entry):
  return isinstance(entry, Cell) and entry.low is not None


def _pipes(entries):
  return "| " + " | ".join(entries) + " |"


def _number(value, decimals):
  if math.isnan(value):
    return "-"
  if math.isinf(value):
    return "∞"
  smallest = 10**-decimals
  return f"<{smallest:.{decimals}f}" if 0 < value < smallest / 2 else f"{value:.{decimals}f}"


def _text(entry, bold, with_interval):
  if not isinstance(entry, Cell):
    return entry
  value = _number(entry.value, entry.decimals)
  value = bold.format(value) if entry.bold else value
  if entry.low is None or math.isnan(entry.low):
    return value
  ends = (_number(end, entry.decimals) for end in (entry.low, entry.high))
  return with_interval.format(value, ", ".join(ends))


def _latex_entry(entry):
  if not isinstance(entry, Cell):
    return _escape(entry)
  text = _text(entry, r"\textbf{{{}}}", r"{} {{\scriptsize ({})}}")
  return text.replace("-", "$-$").replace("<", "$<$").replace("∞", r"$\infty$")


def _latex_groups(columns):
  spans: list[list] = []
  for group, _ in columns:
    if spans and group and spans[-1][0] == group:
      spans[-1][1] += 1
    else:
      spans.append([group, 1])
  entries, rules, start = [], [], 1
  for group, width in spans:
    entries.append(rf"\multicolumn{{{width}}}{{c}}{{{_escape(group)}}}" if group else "")
    if group:
      rules.append(rf"\cmidrule(lr){{{start}-{start + width - 1}}}")
    start += width
  return [" & ".join(entries) + r" \\", " ".join(rules)]


def _escape(text):
  special = {"\\": r"\textbackslash{}", "~": r"\textasciitilde{}", "^": r"\textasciicircum{}"}
  special |= {c: "\\" + c for c in "&%$#_{}"}
  special |= {
    "µ": r"\textmu{}",
    "→": r"$\rightarrow$",
    "±": r"$\pm$",
    "–": "--",
    "−": "$-$",
    "∞": r"$\infty$",
  }
  return "".join(special.get(c, c) for c in text)


def _slug(text):
  text = text.lower().replace("%", "percent").replace("µm", "um").replace("→", " ")
  return "_".join("".join(c if c.isalnum() else " " for c in text).split())
