"""What every method shares: a run's places on disk, its cached stages, and how results go on."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
import dataclasses
import pathlib
from typing import Any

import ml_collections
import numpy as np

from rcm_jax import __version__, anatomy
from rcm_jax.cnn import inception
from rcm_jax.data import slices as slices_lib
from rcm_jax.evaluation.predictions import StackPrediction
from rcm_jax.run import initial
from rcm_jax.runtime import metric_writer as writer_lib
from rcm_jax.runtime import stage_cache

EVALUATED = ("validation", "test")


@dataclasses.dataclass(frozen=True)
class Run:
  """One run's configuration, its places on disk, and what it shows.

  Attributes:
    config: see `configs/base.py`.
    workdir: of this run alone.
    cache_dir: holds the stages' results.
    writer: of progress and metrics.
    source: names the data of training and validation, for the hashes of what follows from it.
    tested: names the data of the test split.
    splits: the decoded slices.
    about: configuration, versions and git revision, which checkpoints carry.
    dataset: what figures on the test split are measured on.
    sources: data sets of training and validation.
    start: what training starts from; None for nothing of ours.
    num_features: of a slice.
  """

  config: ml_collections.ConfigDict
  workdir: pathlib.Path
  cache_dir: pathlib.Path
  writer: writer_lib.Writer
  source: str
  tested: str
  splits: Mapping[str, slices_lib.Slices]
  about: Mapping[str, Any] = dataclasses.field(default_factory=dict)
  dataset: str = ""
  sources: tuple[str, ...] = ()
  start: initial.Start | None = None
  num_features: int = inception.NUM_FEATURES

  @property
  def strata(self) -> anatomy.Strata:
    """Strata that the labels tell apart."""
    return self.splits["train"].strata

  def seen_data(self) -> dict[str, str]:
    """Describes the data to a stage that sees all splits, the test split too."""
    if self.tested == self.source:
      return {"source": self.source}
    return {"source": self.source, "tested": self.tested}


@dataclasses.dataclass(frozen=True)
class Result:
  """What a method hands to evaluation.

  Attributes:
    predictions: on validation and test stacks.
    seconds: (method, seed) → training time.
  """

  predictions: list[StackPrediction] = dataclasses.field(default_factory=list)
  seconds: dict[tuple[str, int], float] = dataclasses.field(default_factory=dict)

  def __add__(self, other: Result) -> Result:
    return Result(self.predictions + other.predictions, self.seconds | other.seconds)


def stage(
  cache_dir: pathlib.Path,
  writer: writer_lib.Writer,
  name: str,
  spec: Mapping[str, Any],
  compute: Callable[[pathlib.Path, writer_lib.Advance], None],
  *,
  everywhere: bool = False,
) -> pathlib.Path:
  """Returns a stage's directory, filled by `compute` with a progress bar unless it is cached.

  See `cache.stage`.
  """

  def shown(directory: pathlib.Path) -> None:
    with writer.progress(name) as advance:
      compute(directory, advance)

  return stage_cache.stage(
    cache_dir, name, {**spec, "version": __version__}, shown, everywhere=everywhere
  )


def dataset_name(wanted: ml_collections.ConfigDict) -> str:
  """Returns what figures on the test split were measured on."""
  trained = "+".join(wanted.sources)
  if wanted.strata != len(anatomy.PAPER):
    trained += f", {wanted.strata} strata"
  if wanted.train_stacks is not None:
    trained += f" (trained on {wanted.train_stacks} stacks)"
  if not wanted.test_sources:
    return trained
  return f"{'+'.join(wanted.test_sources)} (trained on {trained})"


def hooks(run: Run, name: str) -> dict[str, Any]:
  """Where a training reports its epochs, and what its checkpoints carry."""
  return {
    "scalars": lambda step, values: run.writer.scalars(name, step, values),
    "resumed": lambda step: run.writer.resume(name, step),
    "about": run.about,
  }


def sees(slices: int | None) -> str:
  """Names what a model sees at once, as `results.json` does; None is a whole stack."""
  if slices is None:
    return "whole stack"
  return "single image" if slices == 1 else "partial stack"


def predictions_by_stack(
  method: str,
  seed: int,
  sees: str,
  splits: Mapping[str, slices_lib.Slices],
  probabilities: Mapping[str, Iterable[np.ndarray]],
  ordered: bool = False,
) -> list[StackPrediction]:
  """Puts probabilities, one array [n, C] a stack and split, beside what is known of the stacks."""
  return [
    StackPrediction(
      method=method,
      input=sees,
      seed=seed,
      split=name,
      stack_id=splits[name].stack_id[stack],
      patient_id=splits[name].patient_id[stack],
      depth_um=splits[name].depth_um[splits[name].rows(stack)][: len(classified)],
      labels=splits[name].labels[splits[name].rows(stack)][: len(classified)].astype(np.int32),
      probabilities=classified,
      ordered=ordered,
      strata=splits[name].strata,
    )
    for name, by_stack in probabilities.items()
    for stack, classified in enumerate(by_stack)
  ]


def cut_up(split: slices_lib.Slices, rows: np.ndarray) -> list[np.ndarray]:
  """Divides an array of one row a slice, [n, …], into one array a stack."""
  return [rows[split.rows(stack)] for stack in range(len(split.stack_id))]


def load_rows(path: pathlib.Path, *, mapped: bool = False) -> np.ndarray:
  """Reads an array that a stage has written, one row a slice, or leaves it on disk until it is used."""
  return np.load(path, allow_pickle=False, mmap_mode="r" if mapped else None)
