"""What a configuration's `model` does: from decoded slices to predictions, stage by stage."""

from __future__ import annotations

from collections.abc import Callable, Sequence
import dataclasses
import pathlib
from typing import Any, NamedTuple

import jax
import numpy as np

from rcm_jax.arrays import Features
from rcm_jax.baselines import hames, kaur
from rcm_jax.cnn import spec as cnn_spec
from rcm_jax.data import feature_file
from rcm_jax.data import slices as slices_lib
from rcm_jax.evaluation import finished_runs
from rcm_jax.evaluation.predictions import StackPrediction
from rcm_jax.heads import fold_pca
from rcm_jax.heads import training as head_training
from rcm_jax.heads.head import HeadSpec
from rcm_jax.heads.train_epochs import Member
from rcm_jax.inference import bundle, model_card
from rcm_jax.reporting import plots
from rcm_jax.run import depth_prior, end_to_end, head_config, stages
from rcm_jax.run.cnn_stages import Classifier, classify_slices, extract_features
from rcm_jax.runtime import metric_writer as writer_lib
from rcm_jax.textures import encoder as texture_encoder
from rcm_jax.textures import learning as texture_learning
from tfds_rcm.errors import UserError

MAPPED_STACKS = 4  # test stacks whose attention maps are kept


def _cnn(run: stages.Run) -> stages.Result:
  return sum((classify_slices(run, seed)[1] for seed in run.config.seeds), stages.Result())


def _features(run: stages.Run) -> stages.Result:
  classifier, result = classify_slices(run, run.config.cnn.seed)
  feature_file.save(
    run.workdir / feature_file.NAME,
    run.splits,
    classifier.load,
    dataset=stages.dataset_name(run.config.data),
    method=run.config.method,
    seed=run.config.cnn.seed,
  )
  return result


def _head(run: stages.Run) -> stages.Result:
  # First, so that a head that cannot be is told before the CNN trains.
  spec, members = head_config.spec(run.config, run.splits), head_config.members(run.config)
  classifier, single = classify_slices(run, run.config.cnn.seed)
  features, of_features = _features_for(spec, _load_features(run, classifier.load))
  trained = _train_heads(run, spec, members, classifier.features_dir.name, features)
  result = single + _classify_stacks(run, trained, features, run.config.method)
  _show_heads(run, trained, features["test"].cut(spec.max_slices))
  if classifier.spec is not None:
    _keep_model(run, classifier, trained, result.predictions, of_features)
  return result


def _features_for(
  spec: HeadSpec, features: dict[str, Features]
) -> tuple[dict[str, Features], fold_pca.Components | None]:
  """Returns what heads see of the CNN's features, and the map to it if it is another."""
  if spec.num_features == features["train"].values.shape[-1]:
    return features, None
  of_features, seen = fold_pca.of_splits(features, spec.num_features)
  return seen, of_features


class _OnTextures(NamedTuple):
  """Encoders of textures, and the heads of each view, which reads some of them."""

  specs: Sequence[texture_encoder.TextureSpec] = ()
  encoders: Sequence[texture_encoder.Encoder] = ()
  views: Sequence[tuple[int, ...]] = ()
  heads: Sequence[head_training.Trained] = ()


def _views(run: stages.Run) -> stages.Result:
  """Trains ordered heads on the CNN's features and on textures, and averages what they say."""
  config = run.config
  if config.head.likelihood != "boundaries" or config.features.file is not None:
    raise UserError(
      f"config.model = {config.model}: averages distributions over boundaries, made from images; "
      "leave config.head.likelihood at 'boundaries' and config.features.file empty"
    )
  spec, members = head_config.spec(config, run.splits), head_config.members(config)
  encoders, wanted = head_config.textures(config, run.splits)
  classifier, result = classify_slices(run, config.cnn.seed)
  features, of_features = _features_for(spec, _load_features(run, classifier.load))
  views = [(features, _train_heads(run, spec, members, classifier.features_dir.name, features))]
  folders = [_extract_textures(run, encoder) for encoder in encoders]
  for view in wanted:
    read = [folders[i] for i in view]

    def load(split, kind, read=read):
      return np.concatenate([stages.load_rows(d / f"{split}_{kind}.npy") for d in read], axis=1)

    features = _load_features(run, load)
    narrow = dataclasses.replace(spec, num_features=features["train"].values.shape[-1])
    name = "+".join(directory.name for directory in read)
    views.append((features, _train_heads(run, narrow, members, name, features)))
  by_view = [(_seen(trained, found), trained) for found, trained in views]
  probabilities = {
    split: np.mean([trained.probabilities(seen[split]) for seen, trained in by_view], axis=0)
    for split in stages.EVALUATED
  }
  seconds = sum(trained.history["seconds"] for _, trained in views)
  seen, trained = by_view[0]
  _show_heads(run, trained, seen["test"].cut(spec.max_slices))
  result += _stacks_of_members(run, trained, seen, probabilities, config.method, seconds=seconds)
  on_textures = _OnTextures(
    encoders,
    [texture_encoder.load(d) for d in folders],
    wanted,
    [trained for _, trained in views[1:]],
  )
  _keep_model(run, classifier, trained, result.predictions, of_features, on_textures)
  return result


def _extract_textures(run: stages.Run, spec: texture_encoder.TextureSpec) -> pathlib.Path:
  return stages.stage(
    run.cache_dir,
    run.writer,
    "textures",
    {**dataclasses.asdict(spec), **run.seen_data(), "backend": jax.default_backend()},
    lambda directory, advance: texture_learning.extract(spec, run.splits, directory, advance),
  )


def _end_to_end(run: stages.Run) -> stages.Result:
  """Fine-tunes the CNN and all heads of the two-stage solution, which keeps rows of its own."""
  config = run.config
  if jax.process_count() > 1:
    raise UserError(f"config.model = {config.model}: trains in one process; start only one")
  if config.head.components is not None:
    raise UserError(
      f"config.model = {config.model}: features change under the heads; leave "
      "config.head.components empty"
    )
  # First, so that a head that cannot be is told before the CNN trains.
  spec, members = head_config.spec(config, run.splits), head_config.members(config)
  two_stage, single = classify_slices(run, config.cnn.seed)
  features = _load_features(run, two_stage.load)
  before = _train_heads(run, spec, members, two_stage.features_dir.name, features)
  name = config.method.removesuffix("_end_to_end")
  result = single + _classify_stacks(run, before, features, name)
  tuning = end_to_end.Tuning(
    **config.end_to_end, seed=config.cnn.seed, augmentation=two_stage.spec.augmentation
  )
  described = {
    **dataclasses.asdict(tuning),
    "model": two_stage.model_dir.name,
    "heads": before.directory.name,
    "backend": jax.default_backend(),
  }
  directory = stages.stage(
    run.cache_dir,
    run.writer,
    "end_to_end",
    described,
    lambda directory, advance: end_to_end.train(
      cnn_spec.load(two_stage.spec, two_stage.model_dir),
      spec,
      members,
      before.params,
      run.splits,
      directory,
      tuning,
      advance=advance,
      **stages.hooks(run, "end_to_end"),
    ),
  )
  classifier = extract_features(run, two_stage.spec, directory)
  features = _load_features(run, classifier.load)
  trained = head_training.load(spec, members, directory)
  result += _classify_stacks(run, trained, features, config.method)
  _show_heads(run, trained, features["test"].cut(spec.max_slices))
  _keep_model(run, classifier, trained, result.predictions)
  return result


def _load_features(run: stages.Run, load: Callable[[str, str], np.ndarray]) -> dict[str, Features]:
  return {
    name: slices_lib.features_of(split, load(name, "features"))
    for name, split in run.splits.items()
  }


def _train_heads(
  run: stages.Run,
  spec: HeadSpec,
  members: Sequence[Member],
  source: str,
  features: dict[str, Features],
) -> head_training.Trained:
  """Trains heads on features that come from the stages `source`."""
  config = run.config
  described = {
    **dataclasses.asdict(spec),
    "members": [member._asdict() for member in members],
    "epochs": config.head.epochs,
    "batch_size": config.head.batch_size,
    "features": source,
    "backend": jax.default_backend(),
  }
  train, validation = (features[name].cut(spec.max_slices) for name in ("train", "validation"))
  directory = stages.stage(
    run.cache_dir,
    run.writer,
    "train_heads",
    described,
    lambda directory, advance: head_training.train(
      spec,
      members,
      train,
      validation,
      directory,
      epochs=config.head.epochs,
      batch_size=config.head.batch_size,
      advance=advance,
      **stages.hooks(run, "train_heads"),
    ),
    everywhere=True,
  )
  return head_training.load(spec, members, directory)


def _classify_stacks(
  run: stages.Run, trained: head_training.Trained, features: dict[str, Features], name: str
) -> stages.Result:
  """Predicts every evaluated stack with every member; `name` is of the members' rows."""
  seen = _seen(trained, features)
  probabilities = {split: trained.probabilities(found) for split, found in seen.items()}
  return _stacks_of_members(
    run, trained, seen, probabilities, name, seconds=trained.history["seconds"]
  )


def _seen(trained: head_training.Trained, features: dict[str, Features]) -> dict[str, Features]:
  """What the heads can see of the evaluated stacks."""
  # A perceptron with one score a slice cannot see more slices than it was trained on.
  limit = trained.spec.max_slices if trained.spec.attention == "location" else None
  return {split: features[split].cut(limit) for split in stages.EVALUATED}


def _stacks_of_members(
  run: stages.Run,
  trained: head_training.Trained,
  features: dict[str, Features],
  probabilities: dict[str, np.ndarray],
  name: str,
  *,
  seconds: float,
) -> stages.Result:
  """Hands on probabilities [M, N, T, C], by split, as rows of the members of `trained`."""
  spec, result = trained.spec, stages.Result()
  for split, of_members in probabilities.items():
    for member, padded in zip(trained.members, of_members, strict=True):
      by_stack = [rows[real] for rows, real in zip(padded, features[split].mask, strict=True)]
      method, seed = head_config.method(run.config, member, name), int(member.seed)
      predictions = stages.predictions_by_stack(
        method, seed, stages.sees(spec.window), run.splits, {split: by_stack}, spec.ordered
      )
      result += stages.Result(predictions, {(method, seed): seconds})
  return result


def _keep_model(
  run: stages.Run,
  classifier: Classifier,
  trained: head_training.Trained,
  predictions: Sequence[StackPrediction],
  of_features: fold_pca.Components | None = None,
  on_textures: _OnTextures = _OnTextures(),  # noqa: B008
) -> None:
  """Writes what `predict` and `export` need: all seeds of the run's method as one ensemble.

  Where members differ in more than their seed and none has the method's own name, it is the
  kind of member that is best on validation.
  """
  names = [head_config.method(run.config, member) for member in trained.members]
  best = np.max(trained.history["validation_accuracy"], axis=1)
  mean = {name: np.mean([b for b, n in zip(best, names) if n == name]) for name in names}
  method = run.config.method if run.config.method in mean else max(mean, key=mean.get)
  rows = [i for i, name in enumerate(names) if name == method]
  chosen = lambda trained: jax.tree.map(lambda leaf: leaf[np.array(rows)], trained.params)
  head, params = trained.spec, chosen(trained)
  if of_features is not None:
    head, params = fold_pca.unfold(head, params, of_features)
  description = model_card.describe(
    [p for p in predictions if p.method == method],
    run.splits,
    dataset=stages.dataset_name(run.config.data),
    cnn=dataclasses.asdict(classifier.spec),
    head=head,
    half_widths=tuple(int(trained.members[i].half_width) for i in rows),
    seeds=tuple(int(trained.members[i].seed) for i in rows),
    textures=tuple(on_textures.specs),
    views=tuple(on_textures.views),
  )
  network = cnn_spec.load(classifier.spec, classifier.model_dir)
  on_views = tuple(map(chosen, on_textures.heads))
  model = bundle.Bundle(description, network, params, tuple(on_textures.encoders), on_views)
  bundle.save(run.workdir / "model", model)


def _show_heads(run: stages.Run, trained: head_training.Trained, test: Features) -> None:
  """Draws what was learned, and keeps the attention for figures over several runs."""
  folder = run.workdir / "figures"
  history = trained.history
  names = [head_config.method(run.config, member) for member in trained.members]
  plots.head_training(
    names, history["loss"], history["validation_accuracy"], folder / "head_training.png"
  )
  taps = {}
  if trained.spec.attention == "toeplitz":
    by_width = trained.toeplitz_taps()
    plots.toeplitz_weights(by_width, folder / "toeplitz_weights.png")
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
  finished_runs.write_attention(run.workdir, maps, taps)


def _baseline(run: stages.Run, module: Any, model_class: Any) -> stages.Result:
  """Fits a texture classifier once a seed."""
  name = run.config.model
  train, validation = run.splits["train"], run.splits["validation"]
  result = stages.Result()
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
      for split in stages.EVALUATED:
        np.save(directory / f"{split}.npy", module.predict_proba(model, run.splits[split].slices))

    spec = {"seed": seed, **run.seen_data(), "backend": jax.default_backend()}
    directory = stages.stage(run.cache_dir, run.writer, name, spec, fit)
    run.writer.console.print(
      f"{name}, seed {seed}: {model_class.load(directory / 'model.npz').chosen}"
    )
    probabilities = {
      split: stages.cut_up(run.splits[split], stages.load_rows(directory / f"{split}.npy"))
      for split in stages.EVALUATED
    }
    predictions = stages.predictions_by_stack(
      run.config.method, seed, stages.sees(1), run.splits, probabilities
    )
    result += stages.Result(predictions)
  return result


# A new kind of model is one entry here.
METHODS: dict[str, Callable[[stages.Run], stages.Result]] = {
  "head": _head,
  "views": _views,
  "end_to_end": _end_to_end,
  "cnn": _cnn,
  "features": _features,
  "hames": lambda run: _baseline(run, hames, hames.Hames),
  "kaur": lambda run: _baseline(run, kaur, kaur.Kaur),
  "depth_prior": depth_prior.classify_by_depth,
}
