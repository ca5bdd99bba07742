"""Decoding as an ONNX graph: `interpretation.interpret` without loops.

A possible labelling is a pair of boundaries (see `decoding.monotone_model`), and a stack has few enough slices
that the table of all pairs is small. Its largest entry is the most probable labelling; its sums are
the boundaries' distribution and the slices' marginals.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from rcm_jax.decoding.intervals import Calibration
from rcm_jax.decoding.monotone_model import HALF
from rcm_jax.exporters.onnx.graph import Value

_TINY = float(np.finfo(np.float32).tiny)
_IMPOSSIBLE = -1e30


class Outputs(NamedTuple):
  """What `stablehlo.serving_fn` returns of one stack."""

  strata: Any
  probabilities: Any
  boundary_um: Any
  interval_um: Any
  in_stack: Any
  most_probable_strata: Any


def decode(members: Sequence[Value], depth_um: Value, calibration: Calibration) -> Outputs:
  """Adds the ensemble's mean, and decoding.

  Args:
    members: unary scores of each member, float32 [T, 3].
    depth_um: float32 [T].
    calibration: of the ensemble.
  """
  temperature = calibration.boundary_temperature
  if temperature is None:  # an ordered head
    tables = [_pairs(unary_scores) for unary_scores in members]
    tables = [_normalized(table, 1.0) for table in tables]
    posterior = _mean([_boundaries(table) for table in tables])
    mean = _mean([_marginals(table) for table in tables])
  else:
    mean = _mean([unary_scores.softmax() for unary_scores in members])
    posterior = _boundaries(_normalized(_pairs(_log(mean)), temperature))
  median = _medians(posterior)
  probabilities = (_log(mean) / calibration.temperature).softmax()
  tail = (1 - calibration.coverage) / 2
  low, high = (_quantile(posterior, q, depth_um) for q in (tail, 1 - tail))
  margin = np.array(calibration.margin_um, np.float32)
  graph = depth_um.graph
  depth = _depths(median, depth_um)
  low = graph.op("Min", low - margin, depth)
  high = graph.op("Max", high + margin, depth)
  ends = graph.concat([low.unsqueeze(1), high.unsqueeze(1)], axis=1)
  outside = posterior.rows(0, 1, axis=1) + posterior.rows(-1, axis=1)
  slices = graph.range(depth_um.size()).unsqueeze(1)
  return Outputs(
    strata=(median.unsqueeze(0) <= slices).cast(np.int32).sum(1),
    probabilities=probabilities,
    boundary_um=depth,
    interval_um=ends,
    in_stack=1.0 - outside.squeeze(1),
    most_probable_strata=_most_probable(_pairs(_log(mean))),
  )


def outputs(found: Outputs) -> dict[str, tuple[Any, Sequence[int | str], Value]]:
  """Returns type, shape and value by name, as `Graph.model` takes them."""
  types = Outputs(np.int32, *[np.float32] * 4, np.int32)
  shapes = Outputs(("slices",), ("slices", 3), (2,), (2, 2), (2,), ("slices",))
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


def _pairs(unary_scores: Value) -> Value:
  """Scores of all pairs: row b2, column b1, each 0 … T."""
  graph = unary_scores.graph
  epidermis, dej, dermis = _columns(unary_scores)

  def sums(x):
    return graph.op("CumSum", graph.concat([[0.0], x], axis=0), np.int64(0))

  scores = sums(dej - dermis).unsqueeze(1) + sums(epidermis - dej).unsqueeze(0)
  count = unary_scores.size()
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
  """Strata [T] of the best pair; of equals the one with the deepest boundaries, as `strata.monotone`."""
  graph = pairs.graph
  size = pairs.size()
  best = graph.op("ArgMax", pairs.reshape(-1), axis=0, keepdims=0, select_last_index=1)
  t = graph.range(size - 1)
  strata = (best / size <= t).cast(np.int32)
  return strata + (graph.op("Mod", best, size) <= t).cast(np.int32)


def _medians(posterior: Value) -> Value:
  """`monotone_model.BoundaryPosterior.median`, int64 [2]."""
  graph = posterior.graph
  up_to = graph.op("CumSum", posterior, np.int64(1)).rows(0, -1, axis=1)
  count = up_to.size(1)
  median = (up_to < HALF).cast(np.int64).sum(1)
  first, second = median.rows(0, 1), median.rows(1, 2)
  inside = ((first >= 1) & (first < count)).cast(np.int64)
  return graph.concat([first, graph.op("Max", second, first + inside)], axis=0)


def _depths(indices: Value, depth_um: Value) -> Value:
  """`boundaries.boundary_depths_um`."""
  graph = depth_um.graph
  last = depth_um.rows(-1)
  step = last - depth_um.rows(-2).rows(0, 1)  # a stack of one has no step
  return graph.concat([depth_um, last + step], axis=0).take(indices)


def _quantile(posterior: Value, level: float, depth_um: Value) -> Value:
  """`intervals.boundary_quantiles_um`: each cell is crossed as far as the level has come in it."""
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
