"""The CNN of a configuration: trained, its features extracted, and its own predictions."""

from __future__ import annotations

import dataclasses
import json
import pathlib
from typing import NamedTuple

import jax
import numpy as np

from rcm_jax import cache, cnn, figures, stages
from rcm_jax.augment import Augmentation


class Classifier(NamedTuple):
  """A trained CNN, and where it and its features lie."""

  spec: cnn.CnnSpec
  model_dir: pathlib.Path
  features_dir: pathlib.Path


def classify_slices(run: stages.Run, seed: int) -> tuple[Classifier, stages.Result]:
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
  model_dir = stages.stage(
    run.cache_dir,
    run.writer,
    "train_cnn",
    described,
    lambda directory, advance: cnn.train(
      spec, run.splits, directory, advance=advance, **stages.hooks(run, "train_cnn")
    ),
  )
  features_dir = stages.stage(
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
    name: stages.cut_up(run.splits[name], np.load(features_dir / f"{name}_probabilities.npy"))
    for name in stages.EVALUATED
  }
  predictions = stages.predictions_by_stack(
    method, seed, stages.sees(spec.context), run.splits, probabilities
  )
  result = stages.Result(predictions, {(method, seed): sum(history["seconds"])})
  return Classifier(spec, model_dir, features_dir), result
