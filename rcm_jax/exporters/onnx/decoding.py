"""Decoding as an ONNX graph: `reading.read` without loops.

A possible labelling is a pair of boundaries (see `ops.boundaries`), and a stack has few enough slices
that the table of all pairs is small. Its largest entry is the most probable labelling; its sums are
the boundaries' distribution and the slices' marginals.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from rcm_jax.decoding.intervals import Calibration
from rcm_jax.exporters.onnx.graph import Value

_TINY = float(np.finfo(np.float32).tiny)
_IMPOSSIBLE = -1e30


class Reading(NamedTuple):
  """One stack, read: what `export.serving_fn` returns."""

  strata: Any
  probabilities: Any
  boundary_um: Any
  interval_um: Any
  in_stack: Any


def read(members: Sequence[Value], depth_um: Value, calibration: Calibration) -> Reading:
  """Adds the ensemble's mean, and decoding.

  Args:
    members: evidence of each member, float32 [T, 3].
    depth_um: float32 [T].
    calibration: of the ensemble.
  """
  temperature = calibration.boundary_temperature
  if temperature is None:  # an ordered head
    tables = [_pairs(evidence) for evidence in members]
    tables = [_normalized(table, 1.0) for table in tables]
    posterior = _mean([_boundaries(table) for table in tables])
    mean = _mean([_marginals(table) for table in tables])
    first, _, last = _columns(mean)
    strata = (first <= 0.5).cast(np.int32) + (last >= 0.5).cast(np.int32)
  else:
    mean = _mean([evidence.softmax() for evidence in members])
    pairs = _pairs(_log(mean))
    posterior = _boundaries(_normalized(pairs, temperature))
    strata = _most_probable(pairs)
  probabilities = (_log(mean) / calibration.temperature).softmax()
  tail = (1 - calibration.coverage) / 2
  low, median, high = (_quantile(posterior, q, depth_um) for q in (tail, 0.5, 1 - tail))
  margin = np.array(calibration.margin_um, np.float32)
  graph = depth_um.graph
  low = graph.op("Min", low - margin, median)
  high = graph.op("Max", high + margin, median)
  ends = graph.concat([low.unsqueeze(1), high.unsqueeze(1)], axis=1)
  outside = posterior.rows(0, 1, axis=1) + posterior.rows(-1, axis=1)
  return Reading(strata, probabilities, median, ends, 1.0 - outside.squeeze(1))


def outputs(found: Reading) -> dict[str, tuple[Any, Sequence[int | str], Value]]:
  """Returns type, shape and value by name, as `Graph.model` takes them."""
  types = Reading(np.int32, *[np.float32] * 4)
  shapes = Reading(("slices",), ("slices", 3), (2,), (2, 2), (2,))
  return {
    name: (getattr(types, name), getattr(shapes, name), value)
    for name, value in found._asdict().items()
  }


def _mean(values):
  total = values[0]
  for value in values[1:]:
    total = total + value
  return total / float(len(values))


def _log(probabilities):
  graph = probabilities.graph
  return graph.op("Log", graph.op("Max", probabilities, _TINY))


def _columns(x):
  return [x.rows(c, c + 1, axis=1).squeeze(1) for c in range(3)]


def _pairs(evidence: Value) -> Value:
  """Scores of all pairs: row b2, column b1, each 0 … T."""
  graph = evidence.graph
  epidermis, dej, dermis = _columns(evidence)

  def sums(x):
    return graph.op("CumSum", graph.concat([[0.0], x], axis=0), np.int64(0))

  scores = sums(dej - dermis).unsqueeze(1) + sums(epidermis - dej).unsqueeze(0)
  count = evidence.size()
  b1 = graph.range(count + 1).unsqueeze(0)
  b2 = graph.range(count + 1).unsqueeze(1)
  # Both may be one where the stack has but one stratum: all dermis, or all epidermis.
  possible = (b1 < b2) | (b2 <= 0) | (b1 >= count)
  possible = possible & (b1 <= b2)
  return graph.op("Where", possible, scores, _IMPOSSIBLE)


def _normalized(pairs: Value, temperature: float) -> Value:
  flat = (pairs / temperature).reshape(-1)
  return pairs.graph.op("Reshape", flat.softmax(0), pairs.graph.op("Shape", pairs))


def _boundaries(table: Value) -> Value:
  """P(b1) and P(b2): [2, T + 1]."""
  return table.graph.concat([table.sum(0).unsqueeze(0), table.sum(1).unsqueeze(0)], axis=0)


def _marginals(table: Value) -> Value:
  """Each slice's stratum probabilities [T, 3], as sums of positive numbers alone."""
  graph = table.graph
  size = table.size()
  boundary = graph.range(size).unsqueeze(0)
  t = graph.range(size - 1).unsqueeze(1)
  passed = (boundary <= t).cast(np.float32)
  ahead = (t < boundary).cast(np.float32)
  epidermis = ahead @ table.sum(0)
  dermis = passed @ table.sum(1)
  dej = (ahead * (passed @ table.transpose(1, 0))).sum(1)
  return graph.concat([p.unsqueeze(1) for p in (epidermis, dej, dermis)], axis=1)


def _most_probable(pairs: Value) -> Value:
  """Strata [T] of the best pair; of equals the one with the deepest boundaries, as `decode.monotone`."""
  graph = pairs.graph
  size = pairs.size()
  best = graph.op("ArgMax", pairs.reshape(-1), axis=0, keepdims=0, select_last_index=1)
  t = graph.range(size - 1)
  strata = (best / size <= t).cast(np.int32)
  return strata + (graph.op("Mod", best, size) <= t).cast(np.int32)


def _quantile(posterior: Value, level: float, depth_um: Value) -> Value:
  """`decode.boundary_quantiles_um`: each cell is crossed as far as the level has come in it."""
  graph = posterior.graph
  ends = depth_um.rows(-2)  # one slice of a stack of one
  last = depth_um.rows(-1)
  step = last - ends.rows(0, 1)
  places = graph.concat([depth_um, last + step], axis=0)
  between = (places.rows(1) + places.rows(0, -1)) / 2.0
  first = places.rows(0, 1) * 2.0 - between.rows(0, 1)
  edges = graph.concat([first, between, last + step * 1.5], axis=0)
  up_to = graph.op("CumSum", posterior, np.int64(1))
  share = (level - (up_to - posterior)) / graph.op("Max", posterior, _TINY)
  crossed = graph.op("Clip", share, 0.0, 1.0)
  return (crossed * (edges.rows(1) - edges.rows(0, -1))).sum(1) + first
