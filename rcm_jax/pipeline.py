"""The stages of a run, one after the other, each from its cache where it was done before.

sources → decode → train_cnn → extract → train_heads → evaluate
             └──── baselines ──────────────────┘
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
import dataclasses
import importlib.metadata
import itertools
import json
import pathlib
import subprocess
import sys
from typing import Any

import jax
import ml_collections
import numpy as np

from rcm_jax import cache, cnn, data, evaluate, figures, heads
from rcm_jax import writer as writer_lib
from rcm_jax.augment import Augmentation
from rcm_jax.baselines import hames, kaur
from rcm_jax.models.head import HeadSpec
from rcm_jax.predictions import StackPrediction
from tfds_rcm import prepare
from tfds_rcm.errors import UserError

_PACKAGES = (
  "jax",
  "jaxlib",
  "flax",
  "optax",
  "orbax-checkpoint",
  "numpy",
  "grain",
  "tensorflow-datasets",
  "ml-collections",
)


@dataclasses.dataclass(frozen=True)
class Result:
  """What a method hands to evaluation.

  Attributes:
    predictions: on validation and test stacks.
    seconds: (method, seed) → training time.
  """

  predictions: list[StackPrediction]
  seconds: dict[tuple[str, int], float]

  def __add__(self, other: Result) -> Result:
    return Result(self.predictions + other.predictions, self.seconds | other.seconds)


@dataclasses.dataclass(frozen=True)
class Run:
  """One run's configuration, its places on disk, and what it shows."""

  config: ml_collections.ConfigDict
  workdir: pathlib.Path
  cache_dir: pathlib.Path
  writer: writer_lib.Writer

  def stage(
    self,
    name: str,
    spec: Mapping[str, Any],
    compute: Callable[[pathlib.Path, writer_lib.Advance], None],
  ) -> pathlib.Path:
    """Returns a stage's directory, computed with a progress bar unless it is cached."""
    spec = {**spec, "version": importlib.import_module("rcm_jax").__version__}

    def shown(directory: pathlib.Path) -> None:
      with self.writer.progress(name) as advance:
        compute(directory, advance)

    return cache.stage(self.cache_dir, name, spec, shown)

  def hooks(self, stage: str) -> dict[str, Callable]:
    """Returns where a training reports its epochs."""
    return {
      "scalars": lambda step, values: self.writer.scalars(stage, step, values),
      "resumed": lambda step: self.writer.resume(stage, step),
    }


def run(config: ml_collections.ConfigDict, workdir: pathlib.Path, cache_dir: pathlib.Path) -> None:
  """Trains and evaluates one configuration, or goes on where it was interrupted.

  Args:
    config: see `configs/base.py`.
    workdir: gets results.json, predictions.csv, figures and metrics.
    cache_dir: holds the stages' results for all runs that share them.

  Raises:
    UserError: the configuration, the data or a directory cannot be worked with.
  """
  if config.model not in METHODS:
    raise UserError(f"config.model: '{config.model}' is none of {', '.join(METHODS)}")
  with cache.locked(workdir, wait=False):
    _claim(workdir, config)
    cache_dir.mkdir(parents=True, exist_ok=True)
    jax.config.update("jax_compilation_cache_dir", str(cache_dir / "xla"))
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 1.0)
    writer = writer_lib.Writer(workdir)
    try:
      this = Run(config, workdir, cache_dir, writer)
      splits_dir = _decode(this)
      splits = data.load_slices(splits_dir)
      result = METHODS[config.model](this, splits_dir.name, splits)
      dataset = {
        "name": "+".join(config.data.sources),
        "stacks": {name: len(split.stack_id) for name, split in splits.items()},
        "slices": {name: len(split) for name, split in splits.items()},
      }
      rows = evaluate.write_run(
        workdir, dataset, result.predictions, versions=_versions(), train_seconds=result.seconds
      )
      _shared_figures(workdir, result.predictions)
    finally:
      writer.close()
  test = f"{dataset['stacks']['test']} test stacks of {dataset['name']}"
  evaluate.print_table(rows, title=f"{config.method}: {test}")
  writer.console.print(f"results.json, predictions.csv and figures are in {workdir}")


def _claim(workdir: pathlib.Path, config: ml_collections.ConfigDict) -> None:
  """Writes config.json, or refuses a directory that another configuration has written to."""
  path = workdir / "config.json"
  mine = json.loads(config.to_json_best_effort())
  if path.exists():
    try:
      theirs = json.loads(path.read_text())["config"]
    except (ValueError, KeyError) as error:
      raise UserError(
        f"{path}: not a run's configuration ({error}); choose another --workdir"
      ) from error
    for key, (old, new) in _differences(theirs, mine).items():
      raise UserError(
        f"{workdir}: holds a run with config.{key} = {old}, not {new}; choose another --workdir"
      )
  cache.write_text(
    path,
    json.dumps(
      {"config": mine, "versions": _versions(), "git_revision": _git_revision()}, indent=2
    ),
  )


def _differences(old: Any, new: Any, prefix: str = "") -> dict[str, tuple[Any, Any]]:
  if isinstance(old, dict) and isinstance(new, dict):
    found = {}
    for key in sorted(old.keys() | new.keys()):
      found |= _differences(old.get(key), new.get(key), f"{prefix}.{key}" if prefix else key)
    return found
  return {} if old == new else {prefix: (old, new)}


def _versions() -> dict[str, str]:
  versions = {name: importlib.metadata.version(name) for name in _PACKAGES}
  return {"python": sys.version.split()[0], **versions}


def _git_revision() -> str | None:
  here = pathlib.Path(__file__).parent
  try:
    done = subprocess.run(
      ["git", "describe", "--always", "--dirty", "--abbrev=40"],
      cwd=here,
      capture_output=True,
      text=True,
      check=True,
    )
  except (OSError, subprocess.CalledProcessError):
    return None
  return done.stdout.strip()


def _decode(run: Run) -> pathlib.Path:
  config = run.config.data
  for source in config.sources:
    name, _, preset = source.partition("/")
    if name == "rcm_phantom":  # the embedded default makes itself
      with run.writer.progress("phantom") as advance:
        prepare.prepare_phantom(preset or "demo", config.data_dir, progress=advance)
  builders = [data.open_builder(source, config.data_dir) for source in config.sources]
  spec = {"sources": [data.fingerprint(b) for b in builders], "image_size": config.image_size}
  return run.stage(
    "decode",
    spec,
    lambda directory, advance: data.decode(
      builders, directory, image_size=config.image_size, advance=advance
    ),
  )


def _input(context: int | None) -> str:
  if context is None:
    return "whole stack"
  return "single image" if context == 1 else "partial stack"


def _predictions(
  method: str,
  seed: int,
  sees: str,
  splits: Mapping[str, data.Slices],
  probabilities: Mapping[str, np.ndarray],
) -> list[StackPrediction]:
  """Cuts probabilities, [n, 3] a split, into stacks."""
  return [
    StackPrediction(
      method=method,
      input=sees,
      seed=seed,
      split=name,
      stack_id=split.stack_id[stack],
      patient_id=split.patient_id[stack],
      depth_um=split.depth_um[rows],
      labels=split.labels[rows].astype(np.int32),
      probabilities=probabilities[name][rows],
    )
    for name, split in splits.items()
    if name in probabilities
    for stack in range(len(split.stack_id))
    for rows in [split.rows(stack)]
  ]


def _cnn_spec(config: ml_collections.ConfigDict) -> cnn.CnnSpec:
  return cnn.CnnSpec(**config.cnn, augmentation=Augmentation(**config.augmentation))


def _features(
  run: Run, source: str, splits: Mapping[str, data.Slices]
) -> tuple[pathlib.Path, Result]:
  """Trains the CNN and extracts features; returns where they are, and the CNN's own result."""
  spec = _cnn_spec(run.config)
  weights = spec.pretrained and cache.file_digest(pathlib.Path(spec.pretrained))
  described = {
    **dataclasses.asdict(spec),
    "pretrained": weights,
    "source": source,
    "backend": jax.default_backend(),
  }
  model_dir = run.stage(
    "train_cnn",
    described,
    lambda directory, advance: cnn.train(
      spec, splits, directory, advance=advance, **run.hooks("train_cnn")
    ),
  )
  wanted = run.config.features
  features_dir = run.stage(
    "extract",
    {"model": model_dir.name, "dtype": wanted.dtype},
    lambda directory, advance: cnn.extract(
      spec,
      model_dir,
      splits,
      directory,
      batch_size=wanted.batch_size,
      dtype=wanted.dtype,
      advance=advance,
    ),
  )
  history = json.loads((model_dir / "history.json").read_text())
  method = run.config.method if run.config.model == "cnn" else "inception_v3"
  seconds = {(method, spec.seed): sum(history["seconds"])}
  probabilities = {
    name: np.load(features_dir / f"{name}_probabilities.npy") for name in ("validation", "test")
  }
  figures.training_curves(
    {
      "loss": history["loss"],
      "accuracy": history["accuracy"],
      "validation accuracy": history["validation_accuracy"],
    },
    run.workdir / "figures" / "cnn_training.png",
  )
  return features_dir, Result(
    _predictions(method, spec.seed, _input(spec.context), splits, probabilities), seconds
  )


def _cnn(run: Run, source: str, splits: Mapping[str, data.Slices]) -> Result:
  return _features(run, source, splits)[1]


def _members(config: ml_collections.ConfigDict) -> list[heads.Member]:
  head = config.head
  return [
    heads.Member(seed, half_width, learning_rate, l1, dropout)
    for half_width, learning_rate, l1, dropout, seed in itertools.product(
      head.half_widths, head.learning_rates, head.l1s, head.dropouts, config.seeds
    )
  ]


def _member_method(config: ml_collections.ConfigDict, member: heads.Member) -> str:
  """Name of a member's row: the run's method, made exact where members differ in more than seed."""
  head = config.head
  name = config.method
  if head.attention == "toeplitz":
    stem = name.removesuffix(f"_d{max(head.half_widths)}")
    name = f"{stem}_d{member.half_width}"
  for field, values in (
    ("learning_rate", head.learning_rates),
    ("l1", head.l1s),
    ("dropout", head.dropouts),
  ):
    if len(values) > 1:
      name += f"_{field}={getattr(member, field):g}"
  return name


def _head(run: Run, source: str, splits: Mapping[str, data.Slices]) -> Result:
  features_dir, single = _features(run, source, splits)
  config = run.config
  head = config.head
  features = {
    name: data.features_of(split, np.load(features_dir / f"{name}_features.npy"))
    for name, split in splits.items()
  }
  longest = max(features[name].mask.shape[1] for name in ("train", "validation"))
  spec = HeadSpec(
    num_features=features["train"].values.shape[-1],
    hidden=head.hidden,
    cell=head.cell,
    bidirectional=head.bidirectional,
    window=head.window,
    attention=head.attention,
    half_width=max(head.half_widths),
    boundary=head.boundary,
    units=head.units,
    max_slices=min(head.max_slices, longest),
    decoder=head.decoder,
    feedback=head.feedback,
  )
  members = _members(config)
  described = {
    **dataclasses.asdict(spec),
    "members": [m._asdict() for m in members],
    "epochs": head.epochs,
    "batch_size": head.batch_size,
    "features": features_dir.name,
    "backend": jax.default_backend(),
  }
  train, validation = (features[name].cut(spec.max_slices) for name in ("train", "validation"))
  directory = run.stage(
    "train_heads",
    described,
    lambda directory, advance: heads.train(
      spec,
      members,
      train,
      validation,
      directory,
      epochs=head.epochs,
      batch_size=head.batch_size,
      advance=advance,
      **run.hooks("train_heads"),
    ),
  )
  trained = heads.load(spec, members, directory)
  result = single
  for name in ("validation", "test"):
    padded = trained.probabilities(features[name])
    for member, probabilities in zip(members, padded, strict=True):
      flat = {name: probabilities[features[name].mask]}
      result += Result(
        _predictions(
          _member_method(config, member), int(member.seed), _input(head.window), splits, flat
        ),
        {(_member_method(config, member), int(member.seed)): trained.history["seconds"]},
      )
  _head_figures(run, trained, features["test"])
  return result


def _head_figures(run: Run, trained: heads.Trained, test: Any) -> None:
  folder = run.workdir / "figures"
  history = trained.history
  names = [_member_method(run.config, m) for m in trained.members]
  figures.head_training(
    names, history["loss"], history["validation_accuracy"], folder / "head_training.png"
  )
  if trained.spec.attention == "toeplitz":
    figures.toeplitz_weights(trained.toeplitz_taps(), folder / "toeplitz_weights.png")


def _shared_figures(workdir: pathlib.Path, predictions: list[StackPrediction]) -> None:
  folder = workdir / "figures"
  figures.boundary_error_histograms(predictions, folder / "boundary_errors.png")
  figures.strata_ribbon(predictions, folder / "strata.png")


def _baseline(module: Any) -> Callable[..., Result]:
  def compute(run: Run, source: str, splits: Mapping[str, data.Slices]) -> Result:
    raise UserError("not wired")

  return compute


METHODS = {"head": _head, "cnn": _cnn, "hames": _baseline(hames), "kaur": _baseline(kaur)}
