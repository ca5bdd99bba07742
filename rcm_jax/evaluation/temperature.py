"""Temperatures that make probabilities honest, learned on validation stacks."""

from __future__ import annotations

from collections.abc import Sequence
import math

import jax
import jax.numpy as jnp
from jaxtyping import Float, Int
import numpy as np
from scipy import optimize, special

from rcm_jax.decoding import boundaries, intervals, monotone_model
from rcm_jax.evaluation import predictions as predictions_lib
from tfds_rcm import errors

_TINY = np.finfo(np.float32).tiny
_LOG_TEMPERATURE_RANGE = (math.log(0.05), math.log(20.0))


def supported_temperature(
  validation: Sequence[predictions_lib.StackPrediction],
) -> float:
  """Finds the temperature for slices, if patients that it was not fitted on gain by it.

  Scaling can make honest probabilities worse: the patients of a validation split are few, and one
  temperature follows their luck. So each patient is scaled by the temperature that the others
  ask for, and the likelihood of its labels must rise: over patients, by more than the mean's
  standard error.

  Args:
    validation: stacks.

  Returns:
    The temperature that fits all of them; 1 where patients do not gain, or there is only one.

  Raises:
    UserError: there are no stacks.
  """
  fitted = fit_temperature(*predictions_lib.slices_of(validation))
  patients = sorted({p.patient_id for p in validation})
  if len(patients) < 2:
    return 1.0
  gains = np.array([_gain_by_others(validation, patient) for patient in patients])
  error = gains.std(ddof=1) / math.sqrt(len(gains))
  return fitted if gains.mean() > error else 1.0


def fit_temperature(probabilities: Float[np.ndarray, "n C"], labels: Int[np.ndarray, "n"]) -> float:
  """Finds the temperature of least negative log-likelihood (Guo et al. 2017).

  Args:
    probabilities: of validation slices.
    labels: their true strata.

  Raises:
    UserError: there are no slices.
  """
  if not len(labels):
    raise errors.UserError("temperature scaling: no validation slices; keep a validation split")
  logits = intervals.log(probabilities)

  found = optimize.minimize_scalar(
    lambda log_temperature: np.mean(_surprise(logits, labels, math.exp(log_temperature))),
    bounds=_LOG_TEMPERATURE_RANGE,
    method="bounded",
  )
  return math.exp(found.x)


def fit_boundary_temperature(
  validation: Sequence[predictions_lib.StackPrediction],
) -> float | None:
  """Finds the temperature under which the true boundaries are most probable.

  The monotone model takes slices as independent witnesses, but neighbors err together, so that
  a stack's evidence counts for too much. Dividing it by a temperature, mostly well above the one
  that suits single slices, makes the boundaries' distribution honest and its medians better.

  Args:
    validation: stacks, with or without all boundaries.

  Returns:
    The temperature; None for an ordered head, which has learned to weigh a stack's evidence.

  Raises:
    UserError: there are no stacks.
  """
  if not validation:
    raise errors.UserError("boundary temperature: no validation stacks; keep a validation split")
  if validation[0].ordered:
    return None
  padded = predictions_lib.pad(validation)
  stacks = padded.labels, padded.probabilities, padded.mask
  found = optimize.minimize_scalar(
    lambda log_temperature: float(_boundary_loss(*stacks, math.exp(log_temperature))),
    bounds=(math.log(0.2), math.log(100.0)),
    method="bounded",
    options={"xatol": 0.02},
  )
  return math.exp(found.x)


def _gain_by_others(validation, patient):
  """How much less surprising a patient's labels are at the temperature of the other patients."""
  others = [p for p in validation if p.patient_id != patient]
  temperature = fit_temperature(*predictions_lib.slices_of(others))
  probabilities, labels = predictions_lib.slices_of(
    [p for p in validation if p.patient_id == patient]
  )
  logits = intervals.log(probabilities)
  return np.sum(_surprise(logits, labels, 1.0) - _surprise(logits, labels, temperature))


def _surprise(logits, labels, temperature):
  """Negative log-likelihood of each slice's label."""
  scaled = special.log_softmax(logits / temperature, axis=-1)
  return -np.take_along_axis(scaled, labels[:, None].astype(int), axis=-1)[:, 0]


@jax.jit
def _boundary_loss(labels, probabilities, mask, temperature):
  def one(labels, probabilities, mask):
    posterior = monotone_model.posterior_of(probabilities, mask, temperature).probability
    true = boundaries.boundary_indices(labels, mask, probabilities.shape[-1])
    return -jnp.sum(jnp.log(jnp.maximum(posterior[jnp.arange(len(true)), true], _TINY)))

  return jnp.mean(jax.vmap(one)(labels, probabilities, mask))
