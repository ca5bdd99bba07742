"""A small language for ONNX graphs: values with operators, and a `Graph` that collects nodes."""

from __future__ import annotations

from collections.abc import Callable, Sequence
import dataclasses
from typing import Any

import numpy as np
from onnx import ModelProto, TensorProto, helper, numpy_helper

OPSET = 18
IR_VERSION = 8  # what ONNX Runtime 1.14 and later read


@dataclasses.dataclass(frozen=True)
class Value:
  """A tensor of a graph. Python numbers beside it become float32, or int64 if they are integers."""

  graph: Graph
  name: str

  def __add__(self, other: Any) -> Value:
    return self.graph.op("Add", self, other)

  def __sub__(self, other: Any) -> Value:
    return self.graph.op("Sub", self, other)

  def __rsub__(self, other: Any) -> Value:
    return self.graph.op("Sub", other, self)

  def __mul__(self, other: Any) -> Value:
    return self.graph.op("Mul", self, other)

  def __truediv__(self, other: Any) -> Value:
    return self.graph.op("Div", self, other)

  def __matmul__(self, other: Any) -> Value:
    return self.graph.op("MatMul", self, other)

  def __lt__(self, other: Any) -> Value:
    return self.graph.op("Less", self, other)

  def __le__(self, other: Any) -> Value:
    return self.graph.op("LessOrEqual", self, other)

  def __ge__(self, other: Any) -> Value:
    return self.graph.op("GreaterOrEqual", self, other)

  def __and__(self, other: Any) -> Value:
    return self.graph.op("And", self, other)

  def __or__(self, other: Any) -> Value:
    return self.graph.op("Or", self, other)

  def cast(self, dtype: Any) -> Value:
    """Converts to a numpy type."""
    return self.graph.op("Cast", self, to=helper.np_dtype_to_tensor_dtype(np.dtype(dtype)))

  def reshape(self, *shape: int) -> Value:
    """Reshapes; one size may be -1."""
    return self.graph.op("Reshape", self, list(shape))

  def transpose(self, *axes: int) -> Value:
    """Permutes the axes."""
    return self.graph.op("Transpose", self, perm=list(axes))

  def squeeze(self, axis: int) -> Value:
    """Leaves out an axis of size 1."""
    return self.graph.op("Squeeze", self, [axis])

  def unsqueeze(self, axis: int) -> Value:
    """Inserts an axis of size 1."""
    return self.graph.op("Unsqueeze", self, [axis])

  def rows(self, start: int, stop: int | Value | None = None, axis: int = 0) -> Value:
    """Slices one axis, as `x[start:stop]` does."""
    end = np.iinfo(np.int64).max if stop is None else stop
    end = end.reshape(1) if isinstance(end, Value) else [end]
    return self.graph.op("Slice", self, [start], end, [axis])

  def size(self, axis: int = 0) -> Value:
    """Number of entries along an axis, int64 []."""
    return self.graph.op("Shape", self, start=axis, end=axis + 1).squeeze(0)

  def take(self, indices: Value) -> Value:
    """Gathers rows of the first axis."""
    return self.graph.op("Gather", self, indices, axis=0)

  def sum(self, axis: int) -> Value:
    """Adds up along an axis."""
    return self.graph.op("ReduceSum", self, [axis], keepdims=0)

  def softmax(self, axis: int = -1) -> Value:
    """Normalised exponentials."""
    return self.graph.op("Softmax", self, axis=axis)


class Graph:
  """Nodes and constants in the order in which they were asked for.

  Args:
    outer: the graph around this one, if it is the body of a loop; names stay unique in all.
  """

  def __init__(self, outer: Graph | None = None):
    self._nodes: list[Any] = []
    self._constants: list[Any] = []
    self._names = outer._names if outer else iter(range(1 << 30))

  def constant(self, value: Any) -> Value:
    """Adds a constant. Python numbers become float32, or int64 if they are integers."""
    array = np.asarray(value)
    if not isinstance(value, np.ndarray | np.generic) and array.dtype == np.float64:
      array = array.astype(np.float32)
    name = f"constant{next(self._names)}"
    self._constants.append(numpy_helper.from_array(np.ascontiguousarray(array), name))
    return Value(self, name)

  def op(self, kind: str, *inputs: Any, **attributes: Any) -> Value:
    """Adds an operator with one output; inputs that are no values become constants."""
    return self.ops(kind, 1, *inputs, **attributes)[0]

  def ops(self, kind: str, outputs: int, *inputs: Any, **attributes: Any) -> list[Value]:
    """Adds an operator with several outputs; an input that is None is left out."""
    given = [
      "" if x is None else x.name if isinstance(x, Value) else self.constant(x).name for x in inputs
    ]
    made = [f"{kind.lower()}{next(self._names)}" for _ in range(outputs)]
    self._nodes.append(helper.make_node(kind, given, made, **attributes))
    return [Value(self, name) for name in made]

  def concat(self, values: Sequence[Any], axis: int) -> Value:
    """Joins values along an axis."""
    return self.op("Concat", *values, axis=axis)

  def range(self, count: Value) -> Value:
    """Returns 0 … count - 1, int64."""
    return self.op("Range", np.int64(0), count, np.int64(1))

  def scan(
    self,
    step: Callable[[Graph, Sequence[Value], Value], tuple[Sequence[Value], Value]],
    states: Sequence[np.ndarray],
    inputs: Value,
  ) -> Value:
    """Goes along the first axis, as `jax.lax.scan`.

    Args:
      step: (graph of the body, states, this row) → (new states, the row's output).
      states: what the first step is given.
      inputs: the rows.

    Returns:
      All rows' outputs.
    """
    body = Graph(outer=self)
    names = [f"state{next(self._names)}" for _ in states]
    row = f"row{next(self._names)}"
    new, output = step(body, [Value(body, name) for name in names], Value(body, row))
    # An output of a graph needs a node of its own.
    results = [body.op("Identity", value) for value in (*new, output)]
    anything = lambda name: helper.make_tensor_value_info(name, TensorProto.FLOAT, None)
    proto = helper.make_graph(
      body._nodes,
      "body",
      [anything(name) for name in (*names, row)],
      [anything(value.name) for value in results],
      body._constants,
    )
    return self.ops("Scan", len(states) + 1, *states, inputs, body=proto, num_scan_inputs=1)[-1]

  def input(self, name: str) -> Value:
    """Returns an input of the whole graph."""
    return Value(self, name)

  def model(
    self,
    name: str,
    inputs: dict[str, tuple[Any, Sequence[int | str]]],
    outputs: dict[str, tuple[Any, Sequence[int | str], Value]],
    *,
    about: str = "",
    metadata: dict[str, str] | None = None,
  ) -> ModelProto:
    """Makes a model of all that was added.

    Args:
      name: of the graph.
      inputs: name → (numpy type, shape; a name stands for any size).
      outputs: name → (numpy type, shape, value).
      about: documentation for readers.
      metadata: further texts by name.
    """

    def described(name, dtype, shape):
      kind = helper.np_dtype_to_tensor_dtype(np.dtype(dtype))
      return helper.make_tensor_value_info(name, kind, list(shape))

    named = [
      helper.make_node("Identity", [value.name], [name]) for name, (*_, value) in outputs.items()
    ]
    graph = helper.make_graph(
      self._nodes + named,
      name,
      [described(name, *rest) for name, rest in inputs.items()],
      [described(name, dtype, shape) for name, (dtype, shape, _) in outputs.items()],
      self._constants,
    )
    model = helper.make_model(
      graph,
      opset_imports=[helper.make_opsetid("", OPSET)],
      ir_version=IR_VERSION,
      producer_name="rcm_jax",
      doc_string=about,
    )
    helper.set_model_props(model, metadata or {})
    return model
