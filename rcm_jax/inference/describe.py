"""Describes an ensemble: calibrates it on validation stacks and scores it on test stacks."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
import math
from typing import Any

import jax
import numpy as np

from rcm_jax.decoding import intervals
from rcm_jax.decoding.intervals import Calibration
from rcm_jax.evaluation import calibration as calibration_lib
from rcm_jax.evaluation import predictions as predictions_lib
from rcm_jax.heads.head import HeadSpec
from rcm_jax.inference import interpretation
from rcm_jax.inference.description import Description, Training, gray_levels
from rcm_jax.textures.encoder import TextureSpec

COVERAGES = (0.9, 0.8, 0.7, 0.6, 0.5)  # the first that the validation patients suffice for


def describe(
  predictions: Sequence[predictions_lib.StackPrediction],
  splits: Mapping[str, Any],
  *,
  dataset: str,
  cnn: dict[str, Any] | None,
  head: HeadSpec,
  seeds: tuple[int, ...],
  half_widths: tuple[int, ...],
  textures: tuple[TextureSpec, ...] = (),
  views: tuple[tuple[int, ...], ...] = (),
  **more: Any,
) -> Description:
  """Calibrates an ensemble on its validation stacks and scores it on its test stacks.

  Args:
    predictions: of all members, on validation and test stacks.
    splits: `data.slices.Slices` by split.
    dataset: names of the sources.
    cnn: the fields of the `CnnSpec`; None without images.
    head: architecture of the sequence heads.
    seeds: of the members.
    half_widths: D of each member.
    textures: see `Description`.
    views: see `Description`.
    **more: what else the `Description` says.
  """
  ensemble = calibration_lib.ensemble(predictions)
  validation, test = ([p for p in ensemble if p.split == split] for split in ("validation", "test"))
  calibration, wide_um = calibration_of(validation)
  return Description(
    method=predictions[0].method,
    image_shape=None if cnn is None else splits["train"].slices.shape[1:],
    field_um=splits["train"].field_um,
    cnn=cnn,
    head=head,
    seeds=seeds,
    half_widths=half_widths,
    calibration=calibration,
    training=training_of(dataset, splits, wide_um),
    figures=figures_of(calibration, test),
    textures=textures,
    views=views,
    strata=predictions[0].strata,
    **more,
  )


def training_of(
  dataset: str, splits: Mapping[str, Any], wide_um: tuple[float, ...] | None
) -> Training:
  """Measures what a model was trained on.

  Args:
    dataset: names of the sources.
    splits: `data.slices.Slices` by split.
    wide_um: see `Training`.
  """
  train = splits["train"]
  gray, steps, first = [], [], []
  for stack in range(len(train.stack_id)):
    rows = train.rows(stack)
    gray += [gray_levels(image) for image in train.slices[rows] if image.size]
    steps.append(np.diff(train.depth_um[rows]))
    first.append(float(train.depth_um[rows][0]))
  steps = np.concatenate(steps)
  gray = gray or [(0.0, 0.0), (255.0, 255.0)]  # without images, nothing is too dark or bright
  low, high = np.percentile(gray, [0.5, 99.5], axis=0)
  return Training(
    dataset=dataset,
    stacks={name: len(split.stack_id) for name, split in splits.items()},
    patients={name: len(set(split.patient_id)) for name, split in splits.items()},
    slices={name: len(split) for name, split in splits.items()},
    step_um=tuple(float(f(steps)) if steps.size else 0.0 for f in (np.min, np.median, np.max)),
    gray_mean=(float(low[0]), float(high[0])),
    gray_spread=(float(low[1]), float(high[1])),
    wide_um=wide_um,
    first_um=(min(first), max(first)),
  )


def calibration_of(
  validation: Sequence[predictions_lib.StackPrediction],
) -> tuple[Calibration, tuple[float, ...] | None]:
  """Fits temperature and intervals on an ensemble's validation stacks.

  The coverage is the first of `COVERAGES` that there are enough patients for.

  Returns:
    The calibration, and the width of each boundary's interval that 19 of 20 validation
    stacks stay below; None where there are too few patients for any interval.
  """
  for coverage in COVERAGES:
    fitted = calibration_lib.calibrate(validation, coverage)
    if all(map(math.isfinite, fitted.margin_um)):
      break
  else:
    return fitted, None
  padded = predictions_lib.pad(validation)
  ends = intervals.intervals_of_stacks_um(
    padded.probabilities, padded.depth_um, padded.mask, fitted
  )
  widths = np.asarray(ends[:, :, 2] - ends[:, :, 0], np.float64)
  return fitted, tuple(np.percentile(widths, 95, axis=0).tolist())


_interpret = jax.jit(jax.vmap(interpretation.interpret, in_axes=(0, 0, 0, None)))


def figures_of(
  calibration: Calibration, test: Sequence[predictions_lib.StackPrediction]
) -> dict[str, float | None]:
  """Scores an ensemble on test stacks by the function that `rcm_jax.predict` shows stacks by.

  Returns:
    Fractions, µm, and None where nothing was counted. `accuracy` is that of the strata between the
    boundaries, `slice_accuracy` that of each slice's most probable stratum. A boundary counts
    where the labels have it; where `predict` says that it is not in the stack, its error is that
    of the first slice, or of one step past the last.
  """
  padded = predictions_lib.pad(test)
  found = jax.device_get(
    _interpret(padded.probabilities, padded.depth_um, padded.mask, calibration)
  )
  true, counted = calibration_lib.true_depths_um(padded)
  error = np.abs(found.boundary_um[:, :, 1].astype(np.float64) - true)
  held = calibration_lib.assess(calibration, test)
  figures = {
    "accuracy": (found.strata == padded.labels)[padded.mask].mean(),
    "slice_accuracy": held.accuracy,
    "expected_calibration_error": held.error_after,
  }
  strata = test[0].strata
  for b, name in enumerate(strata.boundaries):
    has = counted[:, b]
    figures |= {
      f"{name}_mae_um": error[has, b].mean() if has.any() else math.nan,
      f"{name}_stacks": has.sum(),
      f"{name}_interval_width_um": held.width_um[b],
      f"{name}_interval_coverage": held.covered[b],
    }
  thickness = calibration_lib.assess_thickness(calibration, test)
  for i, name in enumerate(list(strata.layers)[1:]):
    figures |= {
      f"{name}_thickness_mae_um": thickness.mae_um[i],
      f"{name}_thickness_interval_width_um": thickness.width_um[i],
      f"{name}_thickness_interval_coverage": thickness.covered[i],
    }
  return {name: float(x) if math.isfinite(x) else None for name, x in figures.items()}
