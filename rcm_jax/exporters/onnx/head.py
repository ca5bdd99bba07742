"""A sequence head as an ONNX graph: features of one whole stack → scores of every stratum.

There is no padding, so there is no mask. Gates and weights are those of `ops.gru`, `ops.rnn` and
`ops.feedback`, in ONNX's order.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import jax.numpy as jnp
import numpy as np

from rcm_jax.exporters.onnx.graph import Graph, Value
from rcm_jax.heads.head import HeadSpec
from rcm_jax.ops import toeplitz

Params = Mapping[str, Any]  # one member's, as the head nests them


def unary_scores(spec: HeadSpec, params: Params, half_width: int, features: Value) -> Value:
  """Adds one member of the ensemble.

  Args:
    spec: the architecture.
    params: numpy arrays by module and name.
    half_width: D of this member; Toeplitz attention only.
    features: float32 [T, F].

  Returns:
    float32 [T, C]: logits, or unary scores of the monotone model.
  """
  encode = _encode if spec.window is None else _encode_windows
  h = encode(spec, params["encoder"], features)
  context = _ATTENTIONS[spec.attention.kind](spec, params.get("attention", {}), half_width, h)
  return _DECODERS[spec.decoder](params["decoder"], context)


# cell → (ONNX's operator, its gates as places in Keras' order, attributes)
_CELLS = {
  "gru": ("GRU", (0, 1, 2), {"linear_before_reset": 1}),
  "rnn": ("RNN", (0,), {}),
  "lstm": ("LSTM", (0, 3, 1, 2), {}),
}


def _cell_weights(spec: HeadSpec, params: Params) -> list[np.ndarray]:
  """W [directions, gates · H, F], R [directions, gates · H, H], B [directions, 2 · gates · H]."""
  gates = _CELLS[spec.cell][1]
  directions = 1 + spec.bidirectional
  width = len(gates) * spec.hidden

  def in_order(x):
    parts = np.split(x, len(gates), axis=-1)
    return np.concatenate([parts[gate] for gate in gates], axis=-1)

  kernel, recurrent = (
    in_order(params[name].reshape(directions, -1, width)).transpose(0, 2, 1)
    for name in ("kernel", "recurrent_kernel")
  )
  bias = in_order(params["bias"].reshape(directions, -1, width))  # of the input, of the state
  bias = np.concatenate([bias, np.zeros_like(bias)], axis=1)[:, :2]
  return [kernel, recurrent, bias.reshape(directions, 2 * width)]


def _encode(spec: HeadSpec, params: Params, x: Value) -> Value:
  kind, _, attributes = _CELLS[spec.cell]
  direction = "bidirectional" if spec.bidirectional else "forward"
  weights = _cell_weights(spec, params)
  y = x.graph.op(
    kind, x.unsqueeze(1), *weights, direction=direction, hidden_size=spec.hidden, **attributes
  )  # [T, directions, 1, H]
  return y.reshape(-1, spec.hidden * (1 + spec.bidirectional))


def _encode_windows(spec: HeadSpec, params: Params, x: Value) -> Value:
  """Last states of runs over each slice's window: down to the slice, and up to it."""
  graph = x.graph
  kind, _, attributes = _CELLS[spec.cell]
  half = spec.window // 2
  count = x.size()
  here = graph.range(count)
  steps = np.arange(half + 1)[:, None]
  first = graph.op("Max", here - half, np.int64(0))
  last = graph.op("Min", here + half, count - 1)
  # Short runs, at the stack's ends, are padded behind; `lengths` keeps padding out.
  runs = [("forward", graph.op("Min", first + steps, here), here - first + 1)]
  if spec.bidirectional:
    runs.append(("reverse", graph.op("Min", here + steps, last), last - here + 1))
  states = []
  for direction, (name, rows, lengths) in enumerate(runs):
    weights = [w[direction : direction + 1] for w in _cell_weights(spec, params)]
    _, state = graph.ops(
      kind,
      2,
      x.take(rows),
      *weights,
      lengths.cast(np.int32),
      direction=name,
      hidden_size=spec.hidden,
      **attributes,
    )
    states.append(state.squeeze(0))
  return graph.concat(states, axis=1)


def _toeplitz(spec: HeadSpec, params: Params, half_width: int, h: Value) -> Value:
  """A convolution over depth, the same for every unit."""
  graph = h.graph
  taps = np.asarray(toeplitz.toeplitz_weights(jnp.asarray(params["logits"]), half_width))
  half = len(taps) // 2
  over_depth = lambda x: graph.op("Conv", x, taps[None, None], pads=[half, half])
  rows = h.transpose(1, 0).unsqueeze(1)  # [E, 1, T]
  out = over_depth(rows)
  if spec.attention.edge_mode == "renormalize":
    ones = graph.op("Expand", 1.0, graph.concat([[1, 1], h.size().reshape(1)], axis=0))
    out = out / over_depth(ones)
  return out.squeeze(1).transpose(1, 0)


def _additive(spec: HeadSpec, params: Params, half_width: int, h: Value) -> Value:
  query = h @ params["query"]["kernel"] + params["query"]["bias"]
  key = h @ params["key"]["kernel"]
  both = h.graph.op("Tanh", query.unsqueeze(1) + key.unsqueeze(0))
  return (both @ params["value"]["kernel"]).squeeze(2).softmax() @ h


def _location(spec: HeadSpec, params: Params, half_width: int, h: Value) -> Value:
  hidden = h.graph.op("Tanh", h @ params["query"]["kernel"] + params["query"]["bias"])
  scores = hidden @ params["value"]["kernel"] + params["value"]["bias"]
  return scores.rows(0, h.size(), axis=1).softmax() @ h


_ATTENTIONS = {
  "none": lambda spec, params, half_width, h: h,
  "toeplitz": _toeplitz,
  "additive": _additive,
  "location": _location,
}


def _dense(params: Params, context: Value) -> Value:
  base = context @ params["kernel"] + params["bias"]
  if params.get("feedback_kernel") is None:
    return base

  def step(graph: Graph, states, row):
    del graph
    logits = row + states[0] @ params["feedback_kernel"]
    return [logits.softmax()], logits

  start = np.zeros(params["bias"].shape, np.float32)
  return base.graph.scan(step, [start], base)


def _gru(params: Params, context: Value) -> Value:
  hidden = params["recurrent_kernel"].shape[0]
  features = params["gru_kernel"].shape[0] - params["bias"].shape[0]
  base = context @ params["gru_kernel"][:features] + params["gru_bias"][0]

  def step(graph: Graph, states, row):
    h, told = states
    x = row + told @ params["gru_kernel"][features:]
    rec = h @ params["recurrent_kernel"] + params["gru_bias"][1]
    gate = lambda of, place: of.rows(place * hidden, (place + 1) * hidden)
    z = graph.op("Sigmoid", gate(x, 0) + gate(rec, 0))
    r = graph.op("Sigmoid", gate(x, 1) + gate(rec, 1))
    g = graph.op("Tanh", gate(x, 2) + r * gate(rec, 2))
    h = z * h + (1.0 - z) * g
    logits = h @ params["kernel"] + params["bias"]
    return [h, logits.softmax()], logits

  start = [np.zeros(hidden, np.float32), np.zeros(params["bias"].shape, np.float32)]
  return base.graph.scan(step, start, base)


_DECODERS = {"dense": _dense, "gru": _gru}
