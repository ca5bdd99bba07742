"""Timing that can be believed: implementations in turn, medians with spread, the machine's limits."""

from __future__ import annotations

from collections.abc import Callable, Mapping
import functools
import importlib.util
import math
import statistics
import time

import jax
import jax.numpy as jnp


def alternate(
  calls: Mapping[str, Callable[[], object]],
  *,
  repeats: int = 7,
  warmup: int = 2,
  min_seconds: float = 0.02,
  settle: bool = False,
) -> dict[str, dict[str, float]]:
  """Times callables in turn, so that drift of the machine hits all alike.

  Args:
    calls: implementation name → a call that does the whole work once. JAX results are waited for;
      other libraries must return only when done.
    repeats: rounds; each round times every implementation once.
    warmup: calls of each before the first round (compilation, caches).
    min_seconds: a short call is repeated within a round until it takes this long.
    settle: in every round an untimed call goes before, for calls that the memory of the one before
      matters to: where that has asked the system for much and given it back, even a copy takes half as
      long again.

  Returns:
    Name → {"median", "min", "max"}, seconds a call.
  """
  inner = {}
  for name, call in calls.items():
    for _ in range(max(warmup, 1)):
      once = _seconds(call, 1)
    inner[name] = max(1, round(min_seconds / max(once, 1e-9)))
  samples = {name: [] for name in calls}
  for _ in range(repeats):
    for name, call in calls.items():
      if settle:
        jax.block_until_ready(call())
      samples[name].append(_seconds(call, inner[name]))
  return {
    name: {"median": statistics.median(s), "min": min(s), "max": max(s)}
    for name, s in samples.items()
  }


def _seconds(call: Callable[[], object], times: int) -> float:
  start = time.perf_counter()
  for _ in range(times):
    out = call()
  jax.block_until_ready(out)
  return (time.perf_counter() - start) / times


@functools.cache
def matmul_flops_per_second(size: int | None = None, dtype: str = "float32") -> float:
  """Rate of one large square matrix product on the default device: the ceiling for arithmetic."""
  size = size or (2048 if jax.default_backend() == "cpu" else 8192)
  a = jnp.full((size, size), 0.5, dtype)
  product = jax.jit(lambda a: a @ a)
  best = alternate({"product": lambda: product(a)}, repeats=5)["product"]["min"]
  return 2 * size**3 / best


@functools.cache
def copy_bytes_per_second(megabytes: int | None = None) -> float:
  """Rate of reading and writing a large array once (bytes read plus bytes written): the ceiling for traffic."""
  megabytes = megabytes or (128 if jax.default_backend() == "cpu" else 1024)
  a = jnp.zeros(megabytes * 2**20 // 4, jnp.float32)
  copy = jax.jit(lambda a: a + 1)
  best = alternate({"copy": lambda: copy(a)}, repeats=5)["copy"]["min"]
  return 2 * a.nbytes / best


def product_flops(function: Callable[..., object], *args: object) -> int:
  """Multiplications and additions of a function's convolutions and matrix products, loops left out.

  Counted in its jaxpr: XLA's own count (`cost_analysis`) is not to be had of a GPU's plugin.
  """

  def count(jaxpr) -> int:
    total = 0
    for equation in jaxpr.eqns:
      size = math.prod(equation.outvars[0].aval.shape)
      shapes = [variable.aval.shape for variable in equation.invars]
      if equation.primitive.name == "dot_general":
        (contracted, _), _ = equation.params["dimension_numbers"]
        total += 2 * size * math.prod(shapes[0][axis] for axis in contracted)
      elif equation.primitive.name == "conv_general_dilated":
        out_features = equation.params["dimension_numbers"].rhs_spec[0]
        total += 2 * size * math.prod(shapes[1]) // shapes[1][out_features]
      for inner in jax.tree.leaves(
        list(equation.params.values()), is_leaf=lambda value: hasattr(value, "eqns")
      ):
        inner = getattr(inner, "jaxpr", inner)
        total += count(inner) if hasattr(inner, "eqns") else 0
    return total

  return count(jax.make_jaxpr(function)(*args).jaxpr)


def row(
  benchmark: str, case: str, implementation: str, timed: Mapping[str, float], floor: float | None
) -> dict:
  """One row of a benchmark's table and of its JSON file."""
  return {
    "benchmark": benchmark,
    "case": case,
    "implementation": implementation,
    **{f"seconds_{k}": timed[k] for k in ("median", "min", "max")},
    "floor_seconds": floor,
  }


def peer(name: str) -> bool:
  """Whether a peer's package is installed; says so where it is not."""
  if importlib.util.find_spec(name) is not None:
    return True
  print(f"{name}: not installed, left out (pip install -r requirements-bench.txt)")
  return False
