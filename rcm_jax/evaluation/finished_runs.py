"""Any number of finished runs, read back and put together by dataset, method and seed."""

from __future__ import annotations

import dataclasses
import json
import os
import pathlib
from typing import Any

from jaxtyping import Float
import numpy as np

from rcm_jax import anatomy
from rcm_jax.evaluation import attention_file, paper_results
from rcm_jax.evaluation import predictions as predictions_lib
from rcm_jax.evaluation.results import PREDICTIONS, RESULTS
from tfds_rcm import errors


@dataclasses.dataclass
class FinishedRuns:
  """Runs on one dataset.

  Attributes:
    dataset: its name.
    predictions: method → seed → stacks of all splits that the runs kept.
    maps: (method, seed, stack) → attention map.
    taps: (method, seed) → Toeplitz weights, shallow to deep.
    temperature_of: method → temperature of posterior medians, of models that brought their own.
  """

  dataset: str
  predictions: dict[str, dict[int, list[predictions_lib.StackPrediction]]]
  maps: dict[tuple[str, int, str], Float[np.ndarray, "n n"]]
  taps: dict[tuple[str, int], Float[np.ndarray, "K"]]
  temperature_of: dict[str, float] = dataclasses.field(default_factory=dict)

  @property
  def strata(self) -> anatomy.Strata:
    """That all of them tell apart."""
    return next(run[0].strata for seeds in self.predictions.values() for run in seeds.values())

  def of_split(self, method: str, split: str) -> list[list[predictions_lib.StackPrediction]]:
    """Returns one method's stacks of a split, one list a seed."""
    runs = self.predictions[method].values()
    return [[p for p in run if p.split == split] for run in runs]


def gather(directory: str | os.PathLike) -> tuple[list[FinishedRuns], list[str]]:
  """Reads every finished run at or below a directory.

  The tables need predictions.csv alone; results.json names the dataset and each method's input.
  Where several runs hold the same method and seed (the CNN that many heads share), they count
  once, from the run written last.

  Args:
    directory: searched through all its folders.

  Returns:
    The runs on each dataset, by its name, and a note on each run that was left out.

  Raises:
    UserError: there is no such directory, or no finished run in it.
  """
  directory = pathlib.Path(directory)
  if not directory.is_dir():
    raise errors.UserError(f"{directory}: no such directory; --runs is where runs' workdirs lie")
  folders = {path.parent for name in (RESULTS, PREDICTIONS) for path in directory.rglob(name)}
  datasets: dict[str, FinishedRuns] = {}
  notes = []
  for folder in sorted(folders, key=_written_at):
    try:
      _add_run(datasets, folder)
    except (errors.UserError, OSError, ValueError, KeyError, TypeError) as error:
      reason = error if isinstance(error, errors.UserError) else "half-written or not a run's"
      notes.append(f"{folder}: left out ({reason})")
  if not datasets:
    seen = f"; {'; '.join(notes)}" if notes else ""
    raise errors.UserError(
      f"{directory}: no finished run in it or below ({RESULTS} beside {PREDICTIONS}); run"
      f" rcm_jax.main first{seen}"
    )
  return [datasets[name] for name in sorted(datasets)], notes


def _written_at(folder):
  path = folder / RESULTS
  return path.stat().st_mtime if path.exists() else 0.0, str(folder)


def _add_run(datasets, folder):
  for name in (RESULTS, PREDICTIONS):
    if not (folder / name).exists():
      raise errors.UserError(f"no {name} yet")
  results: dict[str, Any] = json.loads((folder / RESULTS).read_text(encoding="utf-8"))
  dataset = results["dataset"]["name"]
  inputs = {name: row.input for name, row in paper_results.METHODS.items()}
  inputs |= {row["method"]: row["input"] for row in results["rows"]}
  runs: dict[tuple[str, int], list] = {}
  ordered = {row["method"] for row in results["rows"] if row.get("ordered")}
  for p in predictions_lib.read_csv(folder / PREDICTIONS, inputs, ordered):
    runs.setdefault((p.method, p.seed), []).append(p)
  known = datasets.get(dataset)
  told = {p.strata for stacks in runs.values() for p in stacks}
  if known is not None and known.predictions and told != {known.strata}:
    raise errors.UserError(f"other strata than the other runs on {dataset}; evaluate it by itself")
  maps, taps = attention_file.read(folder / attention_file.ATTENTION)
  found = datasets.setdefault(dataset, FinishedRuns(dataset, {}, {}, {}))
  for (method, seed), stacks in runs.items():
    if any(p.split == "test" for p in stacks):
      found.predictions.setdefault(method, {})[seed] = stacks
  for row in results["rows"]:
    if row.get("boundary_temperature") is not None:
      found.temperature_of[row["method"]] = float(row["boundary_temperature"])
  found.maps.update(maps)
  found.taps.update(taps)
