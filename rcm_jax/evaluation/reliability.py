"""Whether slices are right as often as their probabilities say."""

from __future__ import annotations

from typing import NamedTuple

from jaxtyping import Float, Int
import numpy as np


class Reliability(NamedTuple):
  """Slices grouped by confidence, least confident first.

  Attributes:
    confidence: mean probability of the predicted stratum.
    accuracy: share of slices predicted right.
    count: slices.
  """

  confidence: Float[np.ndarray, " bins"]
  accuracy: Float[np.ndarray, " bins"]
  count: Int[np.ndarray, " bins"]


def reliability(
  probabilities: Float[np.ndarray, "n C"], labels: Int[np.ndarray, "n"], bins: int = 15
) -> Reliability:
  """Groups slices by confidence into bins of equally many slices."""
  confidence = probabilities.max(axis=-1).astype(np.float64)
  right = probabilities.argmax(axis=-1) == labels
  groups = np.array_split(np.argsort(confidence, kind="stable"), min(bins, len(labels)))
  return Reliability(
    np.array([confidence[g].mean() for g in groups]),
    np.array([right[g].mean() for g in groups]),
    np.array([len(g) for g in groups]),
  )


def expected_calibration_error(
  probabilities: Float[np.ndarray, "n C"], labels: Int[np.ndarray, "n"], bins: int = 15
) -> float:
  """Returns the mean gap between confidence and accuracy over equally filled bins."""
  groups = reliability(probabilities, labels, bins)
  return float(np.average(np.abs(groups.confidence - groups.accuracy), weights=groups.count))
