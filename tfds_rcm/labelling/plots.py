"""Pictures of the readers' agreement as SVG, to stand in a page."""

from __future__ import annotations

import html
import math

from jaxtyping import Int
import numpy as np

from tfds_rcm.labelling.comparison import Differences


def bland_altman(differences: Differences, title: str) -> str:
  """A Bland–Altman plot as SVG: difference over mean depth, bias and limits as lines."""
  width, height, left, bottom, top, right = 480, 300, 52, 40, 14, 112
  d = differences
  low, high = d.limits
  reach = max(abs(low), abs(high), *map(abs, d.difference_um.tolist()), 1.0) * 1.08
  x_low, x_high = float(d.mean_um.min()), float(d.mean_um.max())
  pad = max(x_high - x_low, 1.0) * 0.06
  x_low, x_high = x_low - pad, x_high + pad
  x = lambda um: left + (um - x_low) / (x_high - x_low) * (width - left - right)
  y = lambda um: top + (reach - um) / (2 * reach) * (height - top - bottom)
  parts = []
  for um in _ticks(-reach, reach):
    parts.append(
      f"<line class=grid x1={left} x2={width - right} y1={y(um):.1f} y2={y(um):.1f} />"
      f"<text x={left - 6} y={y(um) + 4:.1f} text-anchor=end>{_number(um)}</text>"
    )
  for um in _ticks(x_low, x_high):
    parts.append(
      f"<text x={x(um):.1f} y={height - bottom + 16} text-anchor=middle>{_number(um)}</text>"
    )
  for um, name in ((d.bias.value, "bias"), (low, "−1.96 SD"), (high, "+1.96 SD")):
    kind = "bias" if name == "bias" else "limit"
    value = f"{um:+.1f}".replace("-", "−")
    parts.append(
      f"<line class={kind} x1={left} x2={width - right} y1={y(um):.1f} y2={y(um):.1f} />"
      f"<text x={width - right + 4} y={y(um) + 4:.1f}>{name} {value}</text>"
    )
  for stack_id, mean, difference in zip(d.stack_id, d.mean_um, d.difference_um):
    parts.append(
      f"<circle cx={x(mean):.1f} cy={y(difference):.1f} r=4><title>{html.escape(stack_id)}: "
      f"{difference:+.1f} µm at {mean:.0f} µm</title></circle>"
    )
  label = html.escape(title, quote=True)
  return (
    f"<figure class=card><figcaption>{html.escape(title)}</figcaption>"
    f'<svg viewBox="0 0 {width} {height}" role=img aria-label="Bland–Altman plot, {label}">'
    f"{''.join(parts)}"
    f"<text x={(left + width - right) / 2} y={height - 6} text-anchor=middle>mean depth, µm</text>"
    f'<text transform="translate(14 {(top + height - bottom) / 2}) rotate(-90)" '
    "text-anchor=middle>difference, µm</text></svg></figure>"
  )


def _number(um: float) -> str:
  return f"{um:g}".replace("-", "−")


def _ticks(low: float, high: float) -> list[float]:
  rough = (high - low) / 5
  size = 10.0 ** math.floor(math.log10(rough))
  step = next(k * size for k in (1, 2, 5, 10) if k * size >= rough)
  return [k * step for k in range(math.ceil(low / step), math.floor(high / step) + 1)]


def strip(reader: str, labels: Int[np.ndarray, " T"]) -> str:
  """Strata from left (shallow) to right as a thin bar."""
  count, start, parts = len(labels), 0, []
  for t in range(1, count + 1):
    if t == count or labels[t] != labels[start]:
      parts.append(f"<rect x={start} width={t - start} height=10 class=s{labels[start]} />")
      start = t
  name = html.escape(reader, quote=True)
  return (
    f'<div><span>{html.escape(reader)}</span><svg viewBox="0 0 {count} 10" preserveAspectRatio=none '
    f'role=img aria-label="strata by {name}">{"".join(parts)}</svg></div>'
  )
