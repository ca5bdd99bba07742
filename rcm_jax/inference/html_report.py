"""A stack's prediction as one HTML file that needs nothing else: no network, no other file."""

from __future__ import annotations

import base64
from collections.abc import Iterable, Mapping
import html
import io
import json
import pathlib
import re
from typing import Any

from jaxtyping import UInt8
import numpy as np
from PIL import Image

from rcm_jax import anatomy

TEMPLATE = pathlib.Path(__file__).with_name("report.html")
SHOWN_PIXELS = 512  # longest side of a slice in the report
_JPEG_QUALITY = 82


def render(result: Mapping[str, Any], slices: UInt8[np.ndarray, "T height width"] | None) -> str:
  """Returns the report: slice viewer, strata, probabilities, intervals, attention, plan.

  Every text of `result` is escaped, since names come from files.

  Args:
    result: as `prediction.schema.json` has it.
    slices: gray levels, shallow first, as many as `result` has; None without images.
  """
  images = [] if slices is None else [_data_uri(image) for image in slices]
  strata = anatomy.of_names(result["model"]["strata"])
  data = {
    "result": result,
    "images": images,
    "width": 0 if slices is None else slices.shape[2],
    "titles": strata.titles,
  }
  coverage = result["model"]["coverage"]
  parts = {
    "title": html.escape(result["stack"]["id"]),
    "facts": html.escape(_facts(result)),
    "use": html.escape(result["use"]),
    "warnings": _warnings(result),
    "boundaries": _boundaries(result, strata),
    "thickness": _thickness(result, strata),
    "legend": _legend(strata),
    "plan": _plan(result),
    "interval": "dashed: boundary" + ("" if coverage is None else "; shaded: its interval"),
    "coverage": html.escape(_coverage(result["model"], strata)),
    "data": _script_json(data),
  }
  template = TEMPLATE.read_text(encoding="utf-8")
  # In one go, so that nothing that is filled in is taken for a place to fill.
  return re.sub(r"\{\{(\w+)\}\}", lambda place: parts[place[1]], template)


def _script_json(data):
  # Inside a script element only "<" could end the data; the others are for careless parsers.
  text = json.dumps(data, allow_nan=False, separators=(",", ":"))
  for character in "<>&":
    text = text.replace(character, f"\\u{ord(character):04x}")
  return text


def _data_uri(image):
  picture = Image.fromarray(image)
  picture.thumbnail((SHOWN_PIXELS, SHOWN_PIXELS), Image.Resampling.LANCZOS)
  file = io.BytesIO()
  picture.save(file, "JPEG", quality=_JPEG_QUALITY)
  return "data:image/jpeg;base64," + base64.b64encode(file.getvalue()).decode("ascii")


def _facts(result):
  stack, model = result["stack"], result["model"]
  count = len(result["slices"])
  step = "" if stack["step_um"] is None else f", {stack['step_um']:g} µm apart"
  return (
    f"{stack['source']} · {count} slices{step} · {model['method']}, {model['members']} "
    f"member{'s' if model['members'] > 1 else ''}, trained on {model['dataset']}, rcm_jax "
    f"{model['version']}"
  )


def _warnings(result):
  if not result["warnings"]:
    return ""
  lines = "".join(f"<li>{html.escape(w['message'])}</li>" for w in result["warnings"])
  return (
    f'<section class="card warnings" role="alert"><h2>Look twice</h2><ul>{lines}</ul></section>'
  )


def _coverage(model, strata):
  """What the intervals promise, and what they kept."""
  if model["coverage"] is None:
    return ""
  measured = ", ".join(
    f"{title} {covered:.0%}"
    for title, covered in zip(
      strata.boundary_titles.values(), model["measured_coverage"].values(), strict=True
    )
    if covered is not None
  )
  promised = (
    "Intervals are meant to hold the true boundary, in a random stack of a random patient, with a"
    f" probability of {model['coverage']:.0%}"
  )
  kept = (
    f"; in stacks of {model['test_patients']} test patients they did: {measured}"
    if measured
    else ""
  )
  return f"{promised}{kept}."


def _um(at):
  return f"{at['depth_um']:.1f}\N{NO-BREAK SPACE}µm"


def _boundaries(result, strata):
  rows = []
  tiled = result["stack"]["tiles"] > 1
  for b in result["boundaries"]:
    by_eye = " – read by eye" if b["read_by_eye"] else ""
    depth = "not in this stack" if b["depth_um"] is None else f"{_um(b)}{by_eye}"
    sure = f"{b['probability_shown']:.0%}"
    lateral = () if not tiled else ("" if b["lateral_um"] is None else f"{b['lateral_um']:.1f}",)
    title = strata.boundary_titles[b["name"]]
    rows.append((title, depth, _range(b), *lateral, sure, b["slice"]))
  more = ("over the field, µm",) if tiled else ()
  return _table(("", "depth", "interval, µm", *more, "in stack", "first slice"), rows)


def _thickness(result, strata):
  if not result["thickness"]:
    return ""
  rows = []
  for layer in result["thickness"]:
    at = layer["thickness_um"]
    shown = "not shown whole" if at is None else f"{at:.1f}\N{NO-BREAK SPACE}µm"
    rows.append((strata.layers[layer["stratum"]], shown, _range(layer, 1), None))
  table = _table(("", "thickness", "interval, µm", ""), rows)
  note = "Stratum corneum: from the first contact with skin, where depths are 0."
  return f'<h2 class="next">Thickness</h2>{table}<div class="dim">{note}</div>'


def _legend(strata):
  return "".join(
    f'<span><i style="background:var(--{name})"></i>{html.escape(title)}</span>'
    for name, title in strata.titles.items()
  )


def _plan(result):
  rows = []
  for number, mosaic in enumerate(result["plan"], start=1):
    depth = "–" if mosaic["depth_um"] is None else _um(mosaic)
    if mosaic["note"]:
      depth = f"{depth} ({mosaic['note']})" if mosaic["depth_um"] is not None else mosaic["note"]
    rows.append((f"{number} {mosaic['name']}", depth, _range(mosaic), mosaic["slice"]))
  return _table(("layer", "depth", "interval, µm", "nearest slice"), rows)


def _range(item, decimals=0):
  low, high = item["low_um"], item["high_um"]
  return "" if low is None or high is None else f"{low:.{decimals}f} – {high:.{decimals}f}"


def _table(titles: Iterable[str], rows: Iterable[tuple]) -> str:
  """One line a row; the last cell of each, a slice or None, becomes a button to go there."""
  head = "".join(f"<th>{html.escape(title)}</th>" for title in titles)
  lines = []
  for name, depth, *numbers, index in rows:
    go = ""
    if index is not None:
      go = f'<button data-slice="{index}" aria-label="show slice {index}">{index}</button>'
    cells = "".join(f'<td class="number">{html.escape(number)}</td>' for number in numbers)
    lines.append(
      f"<tr><td>{html.escape(name)}</td><td>{html.escape(depth)}</td>{cells}<td>{go}</td></tr>"
    )
  return f"<table><thead><tr>{head}</tr></thead><tbody>{''.join(lines)}</tbody></table>"
