"""What a GPU run does with whole stacks beside training: heads that classify, validation, calibration, decoding."""

from __future__ import annotations

from collections.abc import Callable
import functools
from typing import Any

from flax import nnx
import jax
import numpy as np

from benchmarks.gpu.program import Program, on
from rcm_jax.anatomy import PAPER
from rcm_jax.arrays import MAX_SLICES
from rcm_jax.decoding import intervals, strata
from rcm_jax.evaluation import scores, temperature
from rcm_jax.heads import training as head_training
from rcm_jax.heads.head import Head, HeadSpec
from rcm_jax.inference import describe

VALIDATION, TEST = 61, 198  # stacks of the paper
MEMBERS = 120
_CALIBRATION = intervals.Calibration(1.0, (1.0, 1.0), 0.9)


def programs(spec: HeadSpec) -> list[Program]:
  """Returns them all; `spec` is of the heads that classify."""
  labels, values, depth, mask = _stacks(TEST)
  of_stack = lambda p, d, m: intervals.boundary_intervals_um(p, d, m, _CALIBRATION)
  judged = _stacks(VALIDATION)
  one = np.float32(1)
  # Name → jitted function and arguments.
  known: dict[str, tuple[Callable, tuple]] = {
    f"decoding: median_then_max; {TEST} stacks": (
      jax.jit(jax.vmap(strata.median_then_max)),
      (labels, mask),
    ),
    f"decoding: monotone; {TEST} stacks": (jax.jit(jax.vmap(strata.monotone)), (values, mask)),
    f"decoding: calibrated intervals; {TEST} stacks": (
      jax.jit(jax.vmap(of_stack)),
      (values, depth, mask),
    ),
    f"decoding: what predict tells; {TEST} stacks": (
      describe._interpret,
      (values, depth, mask, _CALIBRATION),
    ),
    f"validation: scores; {VALIDATION} stacks": (scores._score_stacks, (*judged, one)),
    f"calibration: boundary temperature; {VALIDATION} stacks": (
      temperature._boundary_loss,
      (judged[0], judged[1], judged[3], one),
    ),
  }
  classify = functools.partial(_lower_heads, spec)
  return [
    Program(f"heads that classify: {MEMBERS} members, {TEST} stacks", "stacks", 1, classify),
    *(
      Program(name, "stacks", 1, functools.partial(_lower_known, function, args))
      for name, (function, args) in known.items()
    ),
  ]


def _stacks(count: int) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
  """Labels, probabilities, depths and mask."""
  shape = (count, MAX_SLICES)
  return (
    np.zeros(shape, np.int32),
    np.zeros((*shape, len(PAPER)), np.float32),
    np.zeros(shape, np.float32),
    np.ones(shape, bool),
  )


def _lower_known(function: Callable, args: tuple, place: Any) -> jax.stages.Lowered:
  scalars = lambda leaf: np.asarray(leaf, np.float32) if np.ndim(leaf) == 0 else leaf
  return function.lower(*on(jax.tree.map(scalars, args), place))


def _lower_heads(spec: HeadSpec, place: Any) -> jax.stages.Lowered:
  start = lambda key: nnx.state(Head(spec, nnx.Rngs(params=key)), nnx.Param)
  params = jax.eval_shape(jax.vmap(start), jax.random.split(jax.random.key(0), MEMBERS))
  values = jax.ShapeDtypeStruct((TEST, MAX_SLICES, spec.num_features), np.float32)
  half_widths = np.full(MEMBERS, spec.attention.half_width, np.int32)
  args = on((params, half_widths, values, np.ones((TEST, MAX_SLICES), bool)), place)
  return head_training._probabilities(spec).lower(*args)
