"""One run's results: predictions.csv, and results.json, which sums up its test split."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
import json
import os
import pathlib
from typing import Any

import numpy as np

from rcm_jax.evaluation import estimates, temperature
from rcm_jax.evaluation import predictions as predictions_lib
from rcm_jax.evaluation import scores as scores_lib
from rcm_jax.runtime import files
from tfds_rcm import errors

RESULTS = "results.json"
PREDICTIONS = "predictions.csv"


def summarize(
  predictions: Sequence[predictions_lib.StackPrediction],
  train_seconds: Mapping[tuple[str, int], float] | None = None,
  temperature_of: Mapping[str, float] | None = None,
) -> list[dict[str, Any]]:
  """Sums up the test split, one row a method and seed, in the form of results.json.

  Fractions, not percent. `inconsistent` counts the raw predictions (Table 2); boundaries are
  read after `median_then_max` (Table 3). `decoding` gives the same figures under every
  post-processing; posterior medians are computed at the temperature that suits the run's
  validation stacks. What cannot be computed (a stratum without slices) is None.

  Args:
    predictions: of any methods and seeds.
    train_seconds: (method, seed) → training time.
    temperature_of: method → temperature of posterior medians, where the method has one of its own.
  """
  runs: dict[tuple[str, int], dict[str, list]] = {}
  for p in predictions:
    runs.setdefault((p.method, p.seed), {}).setdefault(p.split, []).append(p)
  seconds = train_seconds or {}
  return [
    _row(
      key,
      splits["test"],
      splits.get("validation", []),
      seconds.get(key),
      (temperature_of or {}).get(key[0]),
    )
    for key, splits in runs.items()
    if "test" in splits
  ]


def write_run(
  workdir: str | os.PathLike,
  dataset: Mapping[str, Any],
  predictions: Sequence[predictions_lib.StackPrediction],
  *,
  versions: Mapping[str, str],
  train_seconds: Mapping[tuple[str, int], float] | None = None,
  temperature_of: Mapping[str, float] | None = None,
  about: Mapping[str, Any] | None = None,
) -> list[dict[str, Any]]:
  """Writes predictions.csv, then results.json, whose presence says that the run is complete.

  Args:
    workdir: directory of the run; made if missing.
    dataset: {"name", "stacks": {split: count}, "slices": {split: count}}.
    predictions: of all splits that should be kept.
    versions: package → version.
    train_seconds: (method, seed) → training time.
    temperature_of: see `summarize`.
    about: what else results.json says, by name.

  Returns:
    The rows of results.json.

  Raises:
    UserError: a prediction is malformed or a file cannot be written.
  """
  workdir = pathlib.Path(workdir)
  rows = summarize(predictions, train_seconds, temperature_of)
  results = {"dataset": dict(dataset), "versions": dict(versions), **(about or {}), "rows": rows}
  try:
    workdir.mkdir(parents=True, exist_ok=True)
    (workdir / RESULTS).unlink(missing_ok=True)
    predictions_lib.write_csv(workdir / PREDICTIONS, predictions)
    text = json.dumps(results, indent=2, ensure_ascii=False, allow_nan=False)
    files.write_text(workdir / RESULTS, text + "\n")
  except OSError as error:
    raise errors.UserError(
      f"{workdir}: results cannot be written ({error.strerror}); free space there or choose"
      " another directory"
    ) from error
  return rows


def score(
  test: Sequence[predictions_lib.StackPrediction],
  validation: Sequence[predictions_lib.StackPrediction],
  own: float | None = None,
) -> scores_lib.StackScores:
  """Scores a run's test stacks.

  Posterior medians are at the temperature that is its own, else of its validation stacks, else 1.
  """
  if own is not None or not validation:
    return scores_lib.score(test, 1.0 if own is None else own)
  return scores_lib.score(test, temperature.fit_boundary_temperature(validation))


def _row(key, predictions, validation, train_seconds, own_temperature):
  method, seed = key
  strata = predictions[0].strata
  scores = score(predictions, validation, own_temperature)
  measures = estimates.measure(scores)
  inconsistent = measures.inconsistent.astype(int)  # by labelling and kind, the total last
  decoding = {}
  for rule, mae, median in zip(scores_lib.BOUNDARY_RULES, measures.mae_um, measures.median_um):
    decoding[rule] = {
      "boundary_mae_um": _named(strata.boundaries, mae),
      "boundary_median_um": _named(strata.boundaries, median),
    }
    if rule in scores_lib.LABELLINGS:
      labelling = scores_lib.LABELLINGS.index(rule)
      decoding[rule]["accuracy"] = _number(measures.accuracy[labelling])
      decoding[rule]["inconsistent"] = int(inconsistent[labelling, -1])
  return {
    "method": method,
    "input": predictions[0].input,
    "ordered": predictions[0].ordered,
    "seed": seed,
    "accuracy": _number(measures.accuracy[scores_lib.RAW]),
    "sensitivity": _named(strata.names, measures.sensitivity),
    "specificity": _named(strata.names, measures.specificity),
    "inconsistent": dict(
      zip((*strata.transitions, "total"), inconsistent[scores_lib.RAW].tolist(), strict=True)
    ),
    "boundary_mae_um": decoding["median_then_max"]["boundary_mae_um"],
    "boundary_median_um": decoding["median_then_max"]["boundary_median_um"],
    "boundary_n": _counts(strata.boundaries, scores.counted),
    "train_seconds": train_seconds,
    "decoding": decoding,
    **({} if own_temperature is None else {"boundary_temperature": own_temperature}),
  }


def _number(value):
  return None if np.isnan(value) else float(value)


def _named(names, values):
  return {name: _number(value) for name, value in zip(names, values, strict=True)}


def _counts(names, counted):
  return dict(zip(names, counted.sum(0).tolist(), strict=True))
