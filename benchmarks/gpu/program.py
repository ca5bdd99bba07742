"""One program of a GPU run, and how it is lowered for devices that are not there."""

from __future__ import annotations

from collections.abc import Callable
import dataclasses
from typing import Any

import jax
import numpy as np


@dataclasses.dataclass(frozen=True)
class Program:
  """One program.

  Attributes:
    name: what it is.
    group: heads, ops, cnn or stacks.
    devices: that it is for.
    lower: called while tracing for them, with the sharding of arrays on the first one.
    steps: of training that one call does.
  """

  name: str
  group: str
  devices: int
  lower: Callable[[Any], jax.stages.Lowered]
  steps: int = 1


def on(tree: Any, place: Any) -> Any:
  """Describes arrays that lie there."""
  describe = lambda a: jax.ShapeDtypeStruct(np.shape(a), a.dtype, sharding=place)
  return jax.tree.map(describe, tree)


def lower(function: Callable, place: Any, *args: Any) -> jax.stages.Lowered:
  """Lowers a function that nobody has compiled yet, for arguments like these."""
  return jax.jit(function).lower(*on(args, place))
