"""Any number of finished runs, read back and put together by dataset, method and seed."""

from __future__ import annotations

from collections.abc import Mapping
import dataclasses
import json
import os
import pathlib
from typing import Any
import zipfile

from jaxtyping import Float
import numpy as np

from rcm_jax.evaluation import paper_results
from rcm_jax.evaluation import predictions as predictions_lib
from tfds_rcm import errors

RESULTS = "results.json"
PREDICTIONS = "predictions.csv"
ATTENTION = "attention.npz"


@dataclasses.dataclass
class Study:
  """Runs on one dataset.

  Attributes:
    dataset: its name.
    predictions: method → seed → stacks of all splits that the runs kept.
    maps: (method, seed, stack) → attention map.
    taps: (method, seed) → Toeplitz weights, shallow to deep.
  """

  dataset: str
  predictions: dict[str, dict[int, list[predictions_lib.StackPrediction]]]
  maps: dict[tuple[str, int, str], Float[np.ndarray, "n n"]]
  taps: dict[tuple[str, int], Float[np.ndarray, "K"]]

  def of_split(self, method: str, split: str) -> list[list[predictions_lib.StackPrediction]]:
    """Returns one method's stacks of a split, one list a seed."""
    runs = self.predictions[method].values()
    return [[p for p in run if p.split == split] for run in runs]


def gather(directory: str | os.PathLike) -> tuple[list[Study], list[str]]:
  """Reads every finished run at or below a directory.

  The tables need predictions.csv alone; results.json names the dataset and each method's input.
  Where several runs hold the same method and seed (the CNN that many heads share), they count
  once, from the run written last.

  Args:
    directory: searched through all its folders.

  Returns:
    One study a dataset, by name, and a note on each run that was left out.

  Raises:
    UserError: there is no such directory, or no finished run in it.
  """
  directory = pathlib.Path(directory)
  if not directory.is_dir():
    raise errors.UserError(f"{directory}: no such directory; --runs is where runs' workdirs lie")
  folders = {path.parent for name in (RESULTS, PREDICTIONS) for path in directory.rglob(name)}
  studies: dict[str, Study] = {}
  notes = []
  for folder in sorted(folders, key=_written_at):
    try:
      _add_run(studies, folder)
    except (errors.UserError, OSError, ValueError, KeyError, TypeError) as error:
      reason = error if isinstance(error, errors.UserError) else "half-written or not a run's"
      notes.append(f"{folder}: left out ({reason})")
  if not studies:
    seen = f"; {'; '.join(notes)}" if notes else ""
    raise errors.UserError(
      f"{directory}: no finished run in it or below ({RESULTS} beside {PREDICTIONS}); run"
      f" rcm_jax.main first{seen}"
    )
  return [studies[name] for name in sorted(studies)], notes


def write_attention(
  workdir: str | os.PathLike,
  maps: Mapping[tuple[str, int, str], Float[np.ndarray, "n n"]],
  taps: Mapping[tuple[str, int], Float[np.ndarray, "K"]],
) -> None:
  """Keeps what figures of attention are drawn from in a run's directory, in one go.

  Args:
    workdir: the run's.
    maps: (method, seed, stack) → attention of each slice (row) over the stack's slices.
    taps: (method, seed) → learned Toeplitz weights, shallow to deep.
  """
  values = {json.dumps(["map", *key]): value for key, value in maps.items()}
  values |= {json.dumps(["taps", *key]): value for key, value in taps.items()}
  path = pathlib.Path(workdir) / ATTENTION
  part = path.with_name(f".{path.name}.part")
  with part.open("wb") as f:
    names = np.array(list(values))
    np.savez_compressed(f, names=names, **{f"a{i}": v for i, v in enumerate(values.values())})
  part.replace(path)


def _written_at(folder):
  path = folder / RESULTS
  return path.stat().st_mtime if path.exists() else 0.0, str(folder)


def _add_run(studies, folder):
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
  maps, taps = _read_attention(folder / ATTENTION)
  study = studies.setdefault(dataset, Study(dataset, {}, {}, {}))
  for (method, seed), stacks in runs.items():
    if any(p.split == "test" for p in stacks):
      study.predictions.setdefault(method, {})[seed] = stacks
  study.maps.update(maps)
  study.taps.update(taps)


def _read_attention(path):
  maps, taps = {}, {}
  if not path.exists():
    return maps, taps
  try:
    with np.load(path, allow_pickle=False) as values:
      for i, name in enumerate(values["names"]):
        kind, *key = json.loads(str(name))
        (maps if kind == "map" else taps)[tuple(key)] = values[f"a{i}"]
  except zipfile.BadZipFile as error:
    raise errors.UserError(f"{path}: not a whole .npz file; delete it") from error
  return maps, taps
