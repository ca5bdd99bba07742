"""How close single precision must come: the one rule that tests of numbers share.

A processor, its number of threads and the compiler's fusion choose the order of sums, so two right
programs differ by what rounding does to them, and no figure that one machine printed says by how
much. The rule compares with the same formula in float64, and measures rounding where the formula is:

    |got − exact| ≤ FACTOR · max(|plain − exact|, eps · scale)      (largest entry of each array)

`exact` is the formula in float64, `plain` the same formula in float32 as one writes it down. Without
`plain` (the formula is a handful of operations) only the second term is left. `scale` is the size of
`exact`, or where terms cancel, which can be told of none but the formula, that of the terms. FACTOR covers other
orders of the same sums; a wrong term is off by orders of magnitude more.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import numpy as np

FACTOR = 16


def in_float64(function: Callable[..., Any], *args: Any) -> Any:
  """Returns a JAX function's value with all floating-point arguments, and all of it, in float64."""
  with jax.enable_x64(True):
    return jax.tree.map(np.asarray, function(*jax.tree.map(_wide, args)))


def references(function: Callable[..., Any], *args: Any) -> tuple[Any, Any]:
  """Returns a formula's value in float64, and as it is; compiled whole, not one operation after another."""
  compiled = jax.jit(function)
  return in_float64(compiled, *args), compiled(*args)


def _wide(leaf: Any) -> Any:
  if isinstance(leaf, (np.ndarray, jax.Array)) and jax.dtypes.issubdtype(leaf.dtype, np.floating):
    return jax.numpy.asarray(np.asarray(leaf, np.float64))
  return leaf


def assert_close(
  got: Any,
  exact: Any,
  plain: Any = None,
  *,
  factor: float = FACTOR,
  scale: float = 0.0,
  name: str = "",
) -> None:
  """Holds trees of arrays to the rule above, array by array.

  Args:
    got: what is tested, in its own precision.
    exact: the same from float64.
    plain: the same from the formula as one writes it down, in the precision of `got`.
    factor: multiple of rounding's error that is allowed.
    scale: of terms that may cancel.
    name: of what is compared, for the message.
  """
  tree = jax.tree.structure(got)
  assert jax.tree.structure(exact) == tree, f"{jax.tree.structure(exact)} is not {tree}"
  plain = exact if plain is None else plain
  leaves = zip(*(jax.tree.leaves(t) for t in (got, exact, plain)), strict=True)
  for number, (one, true, rounded) in enumerate(leaves):
    one = np.asarray(one)
    eps = jax.numpy.finfo(one.dtype).eps
    true = np.asarray(true, np.float64)
    assert one.shape == true.shape, (one.shape, true.shape)
    assert np.isfinite(true).all()
    size = max(_largest(true), scale)
    rounding = max(_largest(np.asarray(rounded, np.float64) - true), float(eps) * size)
    error = _largest(one.astype(np.float64) - true)
    assert error <= factor * rounding, (
      f"{name or 'array'} {number}: off by {error:.3g}, {error / max(rounding, 1e-300):.3g} times "
      f"what rounding alone does ({rounding:.3g}); {factor} times are allowed"
    )


def _largest(values: np.ndarray) -> float:
  return float(np.abs(values).max(initial=0.0))
