"""Scores of every stack under every decoding: what summaries, tables and tests add up."""

from __future__ import annotations

from collections.abc import Sequence
import dataclasses

import jax
import jax.numpy as jnp
from jaxtyping import Bool, Float, Int
import numpy as np

from rcm_jax.decoding import boundaries, monotone_model
from rcm_jax.decoding import strata as strata_lib
from rcm_jax.evaluation import metrics
from rcm_jax.evaluation import predictions as predictions_lib

LABELLINGS = ("raw", "median_then_max", "monotone")
BOUNDARY_RULES = ("median_then_max", "monotone", "posterior_median")
RAW = LABELLINGS.index("raw")  # what Tables 1 and 2 measure
PAPER_RULE = BOUNDARY_RULES.index("median_then_max")  # what Table 3 measures


@dataclasses.dataclass(frozen=True)
class StackScores:
  """Scores of N stacks of one run, on the host.

  Attributes:
    stack_id: name of each stack.
    patient_id: patient of each stack.
    confusion: by labelling (`LABELLINGS`), true and predicted stratum.
    inconsistent: impossible transitions by labelling and kind.
    error_um: signed boundary errors in µm by rule (`BOUNDARY_RULES`) and boundary; 0 where the
      boundary does not count.
    counted: whether the ground truth has the boundary.
  """

  stack_id: tuple[str, ...]
  patient_id: tuple[str, ...]
  confusion: Int[np.ndarray, "N 3 C C"]
  inconsistent: Int[np.ndarray, "N 3 kinds"]
  error_um: Float[np.ndarray, "N 3 S"]
  counted: Bool[np.ndarray, "N S"]


def score(
  predictions: Sequence[predictions_lib.StackPrediction],
  boundary_temperature: float | None = 1.0,
) -> StackScores:
  """Scores stacks of one run, all in one compiled call.

  Args:
    predictions: of the stacks.
    boundary_temperature: what posterior medians are computed at, unless the probabilities tell
      the boundaries by themselves.
  """
  padded = predictions_lib.pad(predictions)
  ordered = predictions[0].ordered
  confusion, inconsistent, error_um, counted = jax.device_get(
    _score_stacks(
      padded.labels,
      padded.probabilities,
      padded.depth_um,
      padded.mask,
      None if ordered else boundary_temperature,
    )
  )
  return StackScores(
    stack_id=tuple(p.stack_id for p in predictions),
    patient_id=tuple(p.patient_id for p in predictions),
    confusion=confusion,
    inconsistent=inconsistent,
    error_um=error_um.astype(np.float64),
    counted=counted,
  )


def _score_stack(labels, probabilities, depth_um, mask, boundary_temperature):
  count = probabilities.shape[-1]
  raw = strata_lib.strata_of(probabilities, ordered=boundary_temperature is None)
  most_probable = strata_lib.monotone(jnp.log(probabilities), mask)
  labellings = (raw, strata_lib.median_then_max(raw, mask), most_probable)
  errors = [
    boundaries.boundary_errors_um(labels, x, depth_um, mask, count)[0] for x in labellings[1:]
  ]
  median = monotone_model.posterior_of(probabilities, mask, boundary_temperature).median
  true = boundaries.boundary_indices(labels, mask, count)
  error, counted = boundaries.index_errors_um(median, true, depth_um, mask)
  return (
    jnp.stack([metrics.confusion_matrix(labels, strata, mask, count) for strata in labellings]),
    jnp.stack([metrics.inconsistent_transitions(strata, mask, count) for strata in labellings]),
    jnp.stack([*errors, error]),
    counted,
  )


_score_stacks = jax.jit(jax.vmap(_score_stack, in_axes=(0, 0, 0, 0, None)))
