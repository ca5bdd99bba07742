"""What a configuration's `model` does: from decoded slices to predictions, stage by stage."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
import dataclasses
import itertools
import json
import pathlib
import re
from typing import Any, NamedTuple

import jax
import ml_collections
import numpy as np

from rcm_jax import (
  __version__,
  bundle,
  cache,
  cnn,
  data,
  figures,
  heads,
  model_card,
  study,
)
from rcm_jax import writer as writer_lib
from rcm_jax.arrays import Features
from rcm_jax.augment import Augmentation
from rcm_jax.baselines import hames, kaur
from rcm_jax.models.head import HeadSpec
from rcm_jax.predictions import StackPrediction

EVALUATED = ("validation", "test")
MAPPED_STACKS = 4  # test stacks whose attention maps are kept


@dataclasses.dataclass(frozen=True)
class Run:
  """One run's configuration, its places on disk, and what it shows.

  Attributes:
    config: see `configs/base.py`.
    workdir: of this run alone.
    cache_dir: holds the stages' results.
    writer: of progress and metrics.
    source: names the decoded data, for the hashes of what follows from it.
    splits: the decoded slices.
  """

  config: ml_collections.ConfigDict
  workdir: pathlib.Path
  cache_dir: pathlib.Path
  writer: writer_lib.Writer
  source: str
  splits: Mapping[str, data.Slices]


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
) -> pathlib.Path:
  """Returns a stage's directory, filled by `compute` with a progress bar unless it is cached."""

  def shown(directory: pathlib.Path) -> None:
    with writer.progress(name) as advance:
      compute(directory, advance)

  return cache.stage(cache_dir, name, {**spec, "version": __version__}, shown)


def _hooks(run: Run, name: str) -> dict[str, Callable]:
  """Where a training reports its epochs."""
  return {
    "scalars": lambda step, values: run.writer.scalars(name, step, values),
    "resumed": lambda step: run.writer.resume(name, step),
  }


def _sees(slices: int | None) -> str:
  if slices is None:
    return "whole stack"
  return "single image" if slices == 1 else "partial stack"


def _by_stack(
  method: str,
  seed: int,
  sees: str,
  splits: Mapping[str, data.Slices],
  probabilities: Mapping[str, Iterable[np.ndarray]],
  ordered: bool = False,
) -> list[StackPrediction]:
  """Puts probabilities, one array [n, 3] a stack and split, beside what is known of the stacks."""
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
    )
    for name, by_stack in probabilities.items()
    for stack, classified in enumerate(by_stack)
  ]


def _cut_up(split: data.Slices, rows: np.ndarray) -> list[np.ndarray]:
  return [rows[split.rows(stack)] for stack in range(len(split.stack_id))]


class _Classifier(NamedTuple):
  """A trained CNN, and where it and its features lie."""

  spec: cnn.CnnSpec
  model_dir: pathlib.Path
  features_dir: pathlib.Path


def _classify_slices(run: Run, seed: int) -> tuple[_Classifier, Result]:
  """Trains the CNN and extracts features; returns where they are, and the CNN's own result."""
  config = run.config
  spec = cnn.CnnSpec(
    **{**config.cnn, "seed": seed}, augmentation=Augmentation(**config.augmentation)
  )
  described = dataclasses.asdict(spec)
  if spec.pretrained:
    described["pretrained"] = cache.file_digest(pathlib.Path(spec.pretrained))
  else:  # what follows only from it determines nothing
    for name in ("pretrained_input", "frozen_epochs", "body_rate"):
      del described[name]
  described |= {
    "source": run.source,
    "backend": jax.default_backend(),
  }
  model_dir = stage(
    run.cache_dir,
    run.writer,
    "train_cnn",
    described,
    lambda directory, advance: cnn.train(
      spec, run.splits, directory, advance=advance, **_hooks(run, "train_cnn")
    ),
  )
  features_dir = stage(
    run.cache_dir,
    run.writer,
    "extract",
    {"model": model_dir.name, "dtype": config.features.dtype},
    lambda directory, advance: cnn.extract(
      spec,
      model_dir,
      run.splits,
      directory,
      batch_size=config.features.batch_size,
      dtype=config.features.dtype,
      advance=advance,
    ),
  )
  history = json.loads((model_dir / "history.json").read_text())
  figures.training_curves(
    {
      "loss": history["loss"],
      "accuracy": history["accuracy"],
      "validation accuracy": history["validation_accuracy"],
    },
    run.workdir / "figures" / "cnn_training.png",
  )
  method = config.method if config.model == "cnn" else "inception_v3"
  probabilities = {
    name: _cut_up(run.splits[name], np.load(features_dir / f"{name}_probabilities.npy"))
    for name in EVALUATED
  }
  predictions = _by_stack(method, seed, _sees(spec.context), run.splits, probabilities)
  result = Result(predictions, {(method, seed): sum(history["seconds"])})
  return _Classifier(spec, model_dir, features_dir), result


def _cnn(run: Run) -> Result:
  return sum((_classify_slices(run, seed)[1] for seed in run.config.seeds), Result())


def _members(config: ml_collections.ConfigDict) -> list[heads.Member]:
  """Every combination of the tuples under `config.head` and of the seeds, which vary fastest."""
  values = [config.head[f"{name}s"] for name in heads.Member._fields if name != "seed"]
  return [
    heads.Member(seed, *hyperparameters)
    for *hyperparameters, seed in itertools.product(*values, config.seeds)
  ]


def _method(config: ml_collections.ConfigDict, member: heads.Member) -> str:
  """Name of a member's row: the run's method, made exact where members differ in more than seed."""
  head = config.head
  name = config.method
  # The name may go on behind the half-width.
  if head.attention == "toeplitz" and (len(head.half_widths) > 1 or head.likelihood == "slices"):
    width = f"_d{member.half_width}"
    name, found = re.subn(r"_d\d+(?=_|$)", width, name, count=1)
    name += "" if found else width
  for field in ("learning_rate", "l1", "dropout", "mae_weight"):
    if len(head[f"{field}s"]) > 1:
      name += f"_{field}={getattr(member, field):g}"
  return name


def _head_spec(config: ml_collections.ConfigDict, features: Mapping[str, Features]) -> HeadSpec:
  head = config.head
  longest = max(features[name].mask.shape[1] for name in ("train", "validation"))
  return HeadSpec(
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
    likelihood=head.likelihood,
  )


def _head(run: Run) -> Result:
  config = run.config
  classifier, single = _classify_slices(run, config.cnn.seed)
  features = {
    name: data.features_of(split, np.load(classifier.features_dir / f"{name}_features.npy"))
    for name, split in run.splits.items()
  }
  spec, members = _head_spec(config, features), _members(config)
  described = {
    **dataclasses.asdict(spec),
    "members": [member._asdict() for member in members],
    "epochs": config.head.epochs,
    "batch_size": config.head.batch_size,
    "features": classifier.features_dir.name,
    "backend": jax.default_backend(),
  }
  train, validation = (features[name].cut(spec.max_slices) for name in ("train", "validation"))
  directory = stage(
    run.cache_dir,
    run.writer,
    "train_heads",
    described,
    lambda directory, advance: heads.train(
      spec,
      members,
      train,
      validation,
      directory,
      epochs=config.head.epochs,
      batch_size=config.head.batch_size,
      advance=advance,
      **_hooks(run, "train_heads"),
    ),
  )
  trained = heads.load(spec, members, directory)
  result = single
  for name in EVALUATED:
    # A perceptron with one score a slice cannot see more slices than it was trained on.
    seen = features[name].cut(spec.max_slices) if spec.attention == "location" else features[name]
    for member, padded in zip(members, trained.probabilities(seen), strict=True):
      by_stack = [rows[real] for rows, real in zip(padded, seen.mask, strict=True)]
      method, seed = _method(config, member), int(member.seed)
      predictions = _by_stack(
        method, seed, _sees(spec.window), run.splits, {name: by_stack}, spec.ordered
      )
      result += Result(predictions, {(method, seed): trained.history["seconds"]})
  _show_heads(run, trained, features["test"].cut(spec.max_slices))
  _keep_model(run, classifier, trained, result.predictions)
  return result


def _keep_model(
  run: Run,
  classifier: _Classifier,
  trained: heads.Trained,
  predictions: Sequence[StackPrediction],
) -> None:
  """Writes what `predict` and `export` need: all seeds of the run's method as one ensemble.

  Where members differ in more than their seed and none has the method's own name, it is the
  kind of member that is best on validation.
  """
  names = [_method(run.config, member) for member in trained.members]
  best = np.max(trained.history["validation_accuracy"], axis=1)
  mean = {name: np.mean([b for b, n in zip(best, names) if n == name]) for name in names}
  method = run.config.method if run.config.method in mean else max(mean, key=mean.get)
  rows = [i for i, name in enumerate(names) if name == method]
  description = model_card.describe(
    [p for p in predictions if p.method == method],
    run.splits,
    dataset="+".join(run.config.data.sources),
    cnn=dataclasses.asdict(classifier.spec),
    head=trained.spec,
    half_widths=tuple(int(trained.members[i].half_width) for i in rows),
    seeds=tuple(int(trained.members[i].seed) for i in rows),
  )
  chosen = jax.tree.map(lambda leaf: leaf[np.array(rows)], trained.params)
  network = cnn.load(classifier.spec, classifier.model_dir)
  bundle.save(run.workdir / "model", description, network, chosen)


def _show_heads(run: Run, trained: heads.Trained, test: Features) -> None:
  """Draws what was learned, and keeps the attention for figures over several runs."""
  folder = run.workdir / "figures"
  history = trained.history
  names = [_method(run.config, member) for member in trained.members]
  figures.head_training(
    names, history["loss"], history["validation_accuracy"], folder / "head_training.png"
  )
  taps = {}
  if trained.spec.attention == "toeplitz":
    by_width = trained.toeplitz_taps()
    figures.toeplitz_weights(by_width, folder / "toeplitz_weights.png")
    rows = {width: iter(weights) for width, weights in by_width.items()}
    for name, member in zip(names, trained.members, strict=True):
      taps[name, int(member.seed)] = next(rows[int(member.half_width)])
  maps = {}
  if trained.spec.attention != "none":
    shown = test.first(MAPPED_STACKS)
    for name, member, weights in zip(
      names, trained.members, trained.attention_weights(shown), strict=True
    ):
      for stack_id, rows, real in zip(shown.stack_id, weights, shown.mask, strict=True):
        maps[name, int(member.seed), stack_id] = rows[: real.sum(), : real.sum()]
  study.write_attention(run.workdir, maps, taps)


def _baseline(run: Run, module: Any, model_class: Any) -> Result:
  """Fits a texture classifier once a seed."""
  name = run.config.model
  train, validation = run.splits["train"], run.splits["validation"]
  result = Result()
  for seed in run.config.seeds:

    def fit(directory: pathlib.Path, advance: writer_lib.Advance, seed: int = seed) -> None:
      del advance  # the number of candidates is the search's own affair; it says what it tries
      model = module.fit(
        train.slices,
        train.labels,
        validation.slices,
        validation.labels,
        seed=seed,
        progress=run.writer.console.print,
      )
      model.save(directory / "model.npz")
      for split in EVALUATED:
        np.save(directory / f"{split}.npy", module.predict_proba(model, run.splits[split].slices))

    spec = {"seed": seed, "source": run.source, "backend": jax.default_backend()}
    directory = stage(run.cache_dir, run.writer, name, spec, fit)
    run.writer.console.print(
      f"{name}, seed {seed}: {model_class.load(directory / 'model.npz').chosen}"
    )
    probabilities = {
      split: _cut_up(run.splits[split], np.load(directory / f"{split}.npy")) for split in EVALUATED
    }
    predictions = _by_stack(run.config.method, seed, _sees(1), run.splits, probabilities)
    result += Result(predictions)
  return result


# A new kind of model is one entry here.
METHODS: dict[str, Callable[[Run], Result]] = {
  "head": _head,
  "cnn": _cnn,
  "hames": lambda run: _baseline(run, hames, hames.Hames),
  "kaur": lambda run: _baseline(run, kaur, kaur.Kaur),
}
