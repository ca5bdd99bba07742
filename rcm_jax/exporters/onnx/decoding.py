"""Decoding as an ONNX graph: `interpretation.interpret` without loops.

A possible labelling is a chain of boundaries (see `decoding.monotone_model`), and a stack has few enough slices
that the table of all pairs of neighbours is small. Sums over a table go one boundary further, and its
own sums are the boundaries' distribution and the slices' marginals; its largest entries lead to the
most probable labelling.
"""

from __future__ import annotations

from collections.abc import Sequence
import itertools
from typing import Any, NamedTuple

import numpy as np

from rcm_jax.decoding.intervals import Calibration
from rcm_jax.decoding.monotone_model import HALF
from rcm_jax.exporters.onnx.graph import Value

_TINY = float(np.finfo(np.float32).tiny)
_IMPOSSIBLE = -1e30


class _Chain(NamedTuple):
  """Probabilities of a stack's boundaries.

  Attributes:
    alone: [T + 1] of each.
    pairs: [T + 1, T + 1] of each and the next one: row of the one below, column of the one above.
  """

  alone: list[Value]
  pairs: list[Value]


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
    members: unary scores of each member, float32 [T, C].
    depth_um: float32 [T].
    calibration: of the ensemble.
  """
  temperature = calibration.boundary_temperature
  strata = len(calibration.margin_um) + 1
  if temperature is None:  # an ordered head
    chains = [_chain(_sums(unary_scores, strata)) for unary_scores in members]
    posterior = _mean([_boundaries(chain) for chain in chains])
    mean = _mean([_marginals(chain) for chain in chains])
  else:
    mean = _mean([unary_scores.softmax() for unary_scores in members])
    posterior = _boundaries(_chain(_sums(_log(mean) / temperature, strata)))
  median = _medians(posterior, strata - 1)
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
    most_probable_strata=_most_probable(_sums(_log(mean), strata)),
  )


def outputs(found: Outputs, strata: int) -> dict[str, tuple[Any, Sequence[int | str], Value]]:
  """Returns type, shape and value by name, as `Graph.model` takes them.

  Args:
    found: of `decode`.
    strata: their number.
  """
  inner = strata - 1
  types = Outputs(np.int32, *[np.float32] * 4, np.int32)
  shapes = Outputs(("slices",), ("slices", strata), (inner,), (inner, 2), (inner,), ("slices",))
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


def _sums(unary_scores: Value, strata: int) -> list[Value]:
  """Score of each boundary at 0 … T: [T + 1] each."""
  graph = unary_scores.graph
  columns = [unary_scores.rows(c, c + 1, axis=1).squeeze(1) for c in range(strata)]
  from_start = lambda x: graph.op("CumSum", graph.concat([[0.0], x], axis=0), np.int64(0))
  return [from_start(above - below) for above, below in itertools.pairwise(columns)]


def _pairs(above: Value, below: Value) -> Value:
  """Scores of two neighbouring boundaries together: row of the one below, column of the one above."""
  graph = above.graph
  last = above.size() - 1
  b1 = graph.range(last + 1).unsqueeze(0)
  b2 = graph.range(last + 1).unsqueeze(1)
  # Both may be one where the stack begins below both, or ends above them.
  possible = (b1 < b2) | (b2 <= 0) | (b1 >= last)
  possible = possible & (b1 <= b2)
  return graph.op("Where", possible, below.unsqueeze(1) + above.unsqueeze(0), _IMPOSSIBLE)


def _log_sum(pairs: Value, axis: int) -> Value:
  """Logarithm of the sum of exponentials over an axis."""
  graph = pairs.graph
  most = graph.op("ReduceMax", pairs, np.array([axis]), keepdims=1)
  return graph.op("Log", graph.op("Exp", pairs - most).sum(axis)) + most.squeeze(axis)


def _chain(sums: Sequence[Value]) -> _Chain:
  if len(sums) == 1:
    return _Chain([sums[0].softmax(0)], [])
  down_to, up_to = [sums[0]], [sums[-1]]  # scores of all boundaries from an end to this one
  for own in sums[1:-1]:
    down_to.append(own + _log_sum(_pairs(down_to[-1], own * 0.0), axis=1))
  for own in sums[-2:0:-1]:
    up_to.insert(0, own + _log_sum(_pairs(own * 0.0, up_to[0]), axis=0))
  pairs = [_normalized(_pairs(*both)) for both in zip(down_to, up_to, strict=True)]
  return _Chain([pairs[0].sum(0), *(pair.sum(1) for pair in pairs)], pairs)


def _normalized(pairs: Value) -> Value:
  return pairs.graph.op("Reshape", pairs.reshape(-1).softmax(0), pairs.graph.op("Shape", pairs))


def _boundaries(chain: _Chain) -> Value:
  """P(b) of all boundaries: [S, T + 1]."""
  return chain.alone[0].graph.concat([p.unsqueeze(0) for p in chain.alone], axis=0)


def _marginals(chain: _Chain) -> Value:
  """Each slice's stratum probabilities [T, C], as sums of positive numbers alone."""
  graph, size = chain.alone[0].graph, chain.alone[0].size()
  boundary = graph.range(size).unsqueeze(0)
  t = graph.range(size - 1).unsqueeze(1)
  passed = (boundary <= t).cast(np.float32)
  ahead = (t < boundary).cast(np.float32)
  inner = [(ahead * (passed @ pair.transpose(1, 0))).sum(1) for pair in chain.pairs]
  columns = [ahead @ chain.alone[0], *inner, passed @ chain.alone[-1]]
  return graph.concat([p.unsqueeze(1) for p in columns], axis=1)


def _most_probable(sums: Sequence[Value]) -> Value:
  """Strata [T] of the best labelling; of equals the one with the deepest boundaries, as `strata.monotone`."""
  graph = sums[0].graph
  deepest = lambda scores, axis: graph.op(
    "ArgMax", scores, axis=axis, keepdims=0, select_last_index=1
  )
  best, sources = sums[0], []
  for own in sums[1:]:
    pairs = _pairs(best, own)
    sources.append(deepest(pairs, 1))
    best = graph.op("ReduceMax", pairs, np.array([1]), keepdims=0)
  found = [deepest(best, 0)]
  for source in reversed(sources):
    found.append(source.take(found[-1]))
  t = graph.range(best.size() - 1)
  strata = [(index <= t).cast(np.int32) for index in found]
  total = strata[0]
  for passed in strata[1:]:
    total = total + passed
  return total


def _medians(posterior: Value, boundaries: int) -> Value:
  """`monotone_model.BoundaryPosterior.median`, int64 [S]."""
  graph = posterior.graph
  up_to = graph.op("CumSum", posterior, np.int64(1)).rows(0, -1, axis=1)
  count = up_to.size(1)
  median = (up_to < HALF).cast(np.int64).sum(1)
  found = [median.rows(0, 1)]
  for b in range(1, boundaries):
    inside = ((found[-1] >= 1) & (found[-1] < count)).cast(np.int64)
    found.append(graph.op("Max", median.rows(b, b + 1), found[-1] + inside))
  return graph.concat(found, axis=0)


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
