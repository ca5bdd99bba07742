"""Pipelines that end in sequence heads: on the CNN's features, on textures too, or trained with the CNN."""

from __future__ import annotations

from collections.abc import Callable, Sequence
import dataclasses
import pathlib

import jax
import numpy as np

from rcm_jax.arrays import Features
from rcm_jax.cnn import extraction
from rcm_jax.data import pca, stored
from rcm_jax.data import slices as slices_lib
from rcm_jax.evaluation import attention_file
from rcm_jax.heads import streaming
from rcm_jax.heads import training as head_training
from rcm_jax.heads.head import HeadSpec
from rcm_jax.heads.objective import Member
from rcm_jax.ops.backend import numerics
from rcm_jax.reporting import plots
from rcm_jax.run import end_to_end, head_config, initial, stages
from rcm_jax.run.cnn_stages import Classifier, classify_slices, extract_features
from rcm_jax.run.keep_model import OnTextures, keep_model
from rcm_jax.runtime import devices
from rcm_jax.textures import encoder as texture_encoder
from rcm_jax.textures import learning as texture_learning
from tfds_rcm.errors import UserError

MAPPED_STACKS = 4  # test stacks whose attention maps are kept
BySplit = dict[str, Features] | dict[str, stored.StoredStacks]


def train_head(run: stages.Run) -> stages.Result:
  """Trains heads on the CNN's features."""
  # First, so that a head that cannot be is told before the CNN trains.
  spec, members = _architecture(run)
  classifier, single = classify_slices(run, run.config.cnn.seed)
  of_cnn = _features_on_disk(run, classifier) or _load_features(run, classifier.load)
  features, of_features = _features_for(spec, of_cnn)
  trained = _train_heads(run, spec, members, classifier.features_dir.name, features)
  result = single + _classify_stacks(run, trained, features, run.config.name)
  _show_heads(run, trained, features["test"].cut(spec.max_slices))
  keep_model(run, classifier, trained, result.predictions, of_features)
  return result


def _architecture(run: stages.Run) -> tuple[HeadSpec, list[Member]]:
  """Heads and members of the configuration, which fit the model that they start from."""
  spec = head_config.spec(run.config, run.splits, run.num_features)
  if run.start:
    initial.check_heads(run.start, run.config, spec)
  return spec, head_config.members(run.config)


def _features_for(spec: HeadSpec, features: BySplit) -> tuple[BySplit, pca.Components | None]:
  """Returns what heads see of the CNN's features, and the map to it if it is another."""
  if spec.num_features == features["train"].num_features:
    return features, None
  if isinstance(features["train"], stored.StoredStacks):
    return stored.with_components(features, spec.num_features)
  of_features, seen = pca.of_splits(features, spec.num_features)
  return seen, of_features


def train_views(run: stages.Run) -> stages.Result:
  """Trains ordered heads on the CNN's features and on textures, and averages what they say."""
  config = run.config
  if config.head.likelihood != "boundaries" or config.features.file is not None:
    raise UserError(
      f"config.pipeline = {config.pipeline}: averages distributions over boundaries, made from images; "
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
  result += _stacks_of_members(run, trained, seen, probabilities, config.name, seconds=seconds)
  on_textures = OnTextures(
    encoders,
    [texture_encoder.load(d) for d in folders],
    wanted,
    [trained for _, trained in views[1:]],
  )
  keep_model(run, classifier, trained, result.predictions, of_features, on_textures)
  return result


def _extract_textures(run: stages.Run, spec: texture_encoder.TextureSpec) -> pathlib.Path:
  return stages.stage(
    run.cache_dir,
    run.writer,
    "textures",
    {**dataclasses.asdict(spec), **run.seen_data(), "backend": numerics()},
    lambda directory, advance: texture_learning.extract(spec, run.splits, directory, advance),
  )


def train_end_to_end(run: stages.Run) -> stages.Result:
  """Fine-tunes the CNN and all heads of the two-stage solution, which keeps rows of its own."""
  config = run.config
  if jax.process_count() > 1:
    raise UserError(f"config.pipeline = {config.pipeline}: trains in one process; start only one")
  if config.head.pca_components is not None:
    raise UserError(
      f"config.pipeline = {config.pipeline}: features change under the heads; leave "
      "config.head.pca_components empty"
    )
  # First, so that a head that cannot be is told before the CNN trains.
  spec, members = _architecture(run)
  two_stage, single = classify_slices(run, config.cnn.seed)
  features = _load_features(run, two_stage.load)
  before = _train_heads(run, spec, members, two_stage.features_dir.name, features)
  name = config.name.removesuffix("_end_to_end")
  result = single + _classify_stacks(run, before, features, name)
  tuning = end_to_end.Tuning(
    **config.end_to_end,
    seed=config.cnn.seed,
    input_dropout=config.head.input_dropout,
    augmentation=two_stage.spec.augmentation,
  )
  described = {
    **dataclasses.asdict(tuning),
    "model": two_stage.model_dir.name,
    "heads": before.directory.name,
    "backend": numerics(),
  }
  directory = stages.stage(
    run.cache_dir,
    run.writer,
    "end_to_end",
    described,
    lambda directory, advance: end_to_end.train(
      extraction.load(two_stage.spec, two_stage.model_dir),
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
  result += _classify_stacks(run, trained, features, config.name)
  _show_heads(run, trained, features["test"].cut(spec.max_slices))
  keep_model(run, classifier, trained, result.predictions)
  return result


def _features_on_disk(
  run: stages.Run, classifier: Classifier
) -> dict[str, stored.StoredStacks] | None:
  """Returns all splits' features where those that heads are trained on are too many for the memory."""
  bytes_of = lambda split: len(split.stack_id) * int(split.lengths.max()) * run.num_features * 4
  needed = sum(bytes_of(run.splits[name]) for name in ("train", "validation")) / 1e9
  if needed <= run.config.features.memory_gb:
    return None
  run.writer.console.print(
    f"features need {needed:.1f} GB, more than config.features.memory_gb = "
    f"{run.config.features.memory_gb:g}: heads read them from disk"
  )
  return {
    name: stored.StoredStacks(split, classifier.load(name, "features"), int(split.lengths.max()))
    for name, split in run.splits.items()
  }


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
  features: BySplit,
) -> head_training.Trained:
  """Trains heads on features that come from the stages `source`."""
  config = run.config
  recipe = {
    name: config.head[name]
    for name in (
      "epochs",
      "batch_size",
      "input_dropout",
      "ema_decay",
      "l1_reduction",
      "shortest_crop",
    )
  }
  start = run.start.head_params(members) if run.start else None
  described = {
    **dataclasses.asdict(spec),
    "members": [member._asdict() for member in members],
    **({"init": run.start.key} if run.start else {}),
    **recipe,
    "features": source,
    "backend": numerics(),
  }
  del described["num_strata"]  # that of the features
  train, validation = (features[name].cut(spec.max_slices) for name in ("train", "validation"))
  streams = isinstance(train, stored.StoredStacks)
  trainer = streaming.train if streams else head_training.train
  directory = stages.stage(
    run.cache_dir,
    run.writer,
    "train_heads",
    described,
    lambda directory, advance: trainer(
      spec,
      members,
      train,
      validation,
      directory,
      **recipe,
      advance=advance,
      start=start,
      **stages.hooks(run, "train_heads"),
    ),
    everywhere=True,
  )
  return head_training.load(spec, members, directory)


def _classify_stacks(
  run: stages.Run, trained: head_training.Trained, features: BySplit, name: str
) -> stages.Result:
  """Predicts every evaluated stack with every member; `name` is of the members' rows."""
  seen = _seen(trained, features)
  probabilities = {split: trained.probabilities(found) for split, found in seen.items()}
  return _stacks_of_members(
    run, trained, seen, probabilities, name, seconds=trained.history["seconds"]
  )


def _seen(trained: head_training.Trained, features: BySplit) -> BySplit:
  """What the heads can see of the evaluated stacks."""
  return {split: features[split].cut(trained.spec.limit) for split in stages.EVALUATED}


def _stacks_of_members(
  run: stages.Run,
  trained: head_training.Trained,
  features: BySplit,
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
      method, seed = head_config.row_name(run.config, member, name), int(member.seed)
      predictions = stages.predictions_by_stack(
        method, seed, stages.sees(spec.window), run.splits, {split: by_stack}, spec.ordered
      )
      result += stages.Result(predictions, {(method, seed): seconds})
  return result


def _show_heads(
  run: stages.Run, trained: head_training.Trained, test: Features | stored.StoredStacks
) -> None:
  """Draws what was learned, and keeps the attention for figures over several runs."""
  if not devices.is_first():
    return
  folder = run.workdir / "figures"
  history = trained.history
  names = [head_config.row_name(run.config, member) for member in trained.members]
  plots.head_training(
    names, history["loss"], history["validation_accuracy"], folder / "head_training.png"
  )
  taps = {}
  if trained.spec.attention.kind == "toeplitz":
    by_width = trained.toeplitz_taps()
    plots.toeplitz_weights(by_width, folder / "toeplitz_weights.png")
    rows = {width: iter(weights) for width, weights in by_width.items()}
    for name, member in zip(names, trained.members, strict=True):
      taps[name, int(member.seed)] = next(rows[int(member.half_width)])
  maps = {}
  if trained.spec.attention.kind != "none":
    shown = test.first(MAPPED_STACKS)
    for name, member, weights in zip(
      names, trained.members, trained.attention_weights(shown), strict=True
    ):
      for stack_id, rows, real in zip(shown.stack_id, weights, shown.mask, strict=True):
        maps[name, int(member.seed), stack_id] = rows[: real.sum(), : real.sum()]
  attention_file.write(run.workdir, maps, taps)
