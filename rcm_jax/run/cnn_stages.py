"""The CNN of a configuration: trained, its features extracted, and its own predictions."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
import dataclasses
import json
import pathlib
from typing import Any, NamedTuple

import ml_collections
import numpy as np

from rcm_jax.cnn import extraction, folded_inception, inception, pretrained
from rcm_jax.cnn import spec as cnn_spec
from rcm_jax.cnn import training as cnn_training
from rcm_jax.cnn.augmentation import augmentation_of
from rcm_jax.data import feature_file
from rcm_jax.ops.backend import numerics
from rcm_jax.reporting import plots
from rcm_jax.run import initial, stages
from rcm_jax.runtime import devices, files, resumable
from rcm_jax.runtime.metric_writer import Advance
from tfds_rcm.errors import UserError

ENGINES = ("xla", "onnxruntime")


class Classifier(NamedTuple):
  """A trained CNN, and where it and its features lie; of a file of features, only these.

  Attributes:
    spec: of the CNN.
    model_dir: where the CNN lies.
    features_dir: where features of training and validation lie.
    test_dir: where those of the test split lie.
    encoder: what made the features of a file.
  """

  spec: cnn_spec.CnnSpec | None
  model_dir: pathlib.Path | None
  features_dir: pathlib.Path
  test_dir: pathlib.Path
  encoder: str | None = None

  def load(self, split: str, kind: str) -> np.ndarray:
    """Returns one row a slice of a split; `kind` is features, which stay on disk, or probabilities."""
    folder = self.test_dir if split == "test" else self.features_dir
    return stages.load_rows(folder / f"{split}_{kind}.npy", mapped=kind == "features")


def classify_slices(run: stages.Run, seed: int) -> tuple[Classifier, stages.Result]:
  """Trains the CNN and extracts features; returns where they are, and the CNN's own result."""
  config = run.config
  if config.features.file:
    return _read_features(run)
  _on_cpu(config)  # before anything trains
  spec = cnn_spec.CnnSpec(
    **{**config.cnn, "seed": seed, "count_include_pad": _counts_padding(config.cnn, run.start)},
    augmentation=augmentation_of(config.augmentation.to_dict()),
    num_strata=len(run.strata),
    init=run.start.key if run.start else None,
  )
  described = dataclasses.asdict(spec)
  del described["num_strata"]  # that of `source`
  if not spec.count_include_pad:  # as every cache that was written before there was a choice
    del described["count_include_pad"]
  if spec.pretrained:
    described["pretrained"] = files.file_digest(pathlib.Path(spec.pretrained))
  else:  # what follows only from it determines nothing
    del described["pretrained_input"]
  if not spec.init:
    del described["init"]
  if not spec.fine_tunes:
    for name in ("frozen_epochs", "body_rate"):
      del described[name]
  described |= {
    "source": run.source,
    "backend": numerics(),
  }
  model_dir = stages.stage(
    run.cache_dir,
    run.writer,
    "train_cnn",
    described,
    lambda directory, advance: cnn_training.train(
      spec,
      run.splits,
      directory,
      advance=advance,
      state=run.start.network_state() if run.start else None,
      **stages.hooks(run, "train_cnn"),
    ),
    everywhere=True,
  )
  classifier = extract_features(run, spec, model_dir)
  history = json.loads((model_dir / resumable.HISTORY).read_text())
  if devices.is_first():
    curves = ("loss", "accuracy", "validation_accuracy")
    plots.training_curves(
      {name.replace("_", " "): history[name] for name in curves},
      run.workdir / "figures" / "cnn_training.png",
    )
  method = config.name if config.pipeline == "cnn" else _row(config)
  result = _result(run, classifier, method, seed, spec.context)
  return classifier, stages.Result(result.predictions, {(method, seed): sum(history["seconds"])})


def _row(config: ml_collections.ConfigDict) -> str:
  """Names the row of a CNN that heads stand on: the paper's, unless it has seen other instruments."""
  other_gray_levels = config.augmentation.photometry.share > 0
  return "inception_v3_photometry" if other_gray_levels else "inception_v3"


def _counts_padding(wanted: ml_collections.ConfigDict, start: initial.Start | None) -> bool:
  if start:
    return start.model.description.cnn.get("count_include_pad", False)
  if wanted.count_include_pad is not None:
    return wanted.count_include_pad
  return bool(wanted.pretrained) and pretrained.counts_padding(wanted.pretrained)


def _result(
  run: stages.Run, classifier: Classifier, method: str, seed: int, context: int
) -> stages.Result:
  probabilities = {
    name: stages.cut_up(run.splits[name], classifier.load(name, "probabilities"))
    for name in stages.EVALUATED
  }
  return stages.Result(
    stages.predictions_by_stack(method, seed, stages.sees(context), run.splits, probabilities)
  )


def _read_features(run: stages.Run) -> tuple[Classifier, stages.Result]:
  """Unpacks the file of features that the configuration names."""
  known = feature_file.load(run.config.features.file)

  def unpack(directory: pathlib.Path, advance: Advance) -> None:
    del advance
    for (name, kind), values in known.values.items():
      np.save(directory / f"{name}_{kind}.npy", values)

  folder = stages.stage(run.cache_dir, run.writer, "features", {"source": run.source}, unpack)
  classifier = Classifier(None, None, folder, folder, known.method)
  if ("test", "probabilities") not in known.values:
    return classifier, stages.Result()
  return classifier, _result(run, classifier, known.method, known.seed, 1)


def _on_cpu(
  config: ml_collections.ConfigDict,
) -> Callable[[inception.InceptionV3], folded_inception.Extractor] | None:
  """What extracts on the host, if the configuration wants that.

  Raises:
    UserError: the engine is not installed.
  """
  if config.features.engine == "xla":
    return None
  try:
    from rcm_jax.exporters.onnx import extractor
  except ModuleNotFoundError as error:
    if error.name not in ("onnx", "onnxruntime"):
      raise
    raise UserError(
      "config.features.engine: 'onnxruntime' needs two packages; run `pip install onnx onnxruntime`"
    ) from error
  return extractor.extract_fn


def _extract(
  run: stages.Run,
  spec: cnn_spec.CnnSpec,
  model_dir: pathlib.Path,
  splits: Sequence[str],
  described: Mapping[str, Any],
) -> pathlib.Path:
  return stages.stage(
    run.cache_dir,
    run.writer,
    "extract",
    described,
    lambda directory, advance: extraction.extract(
      spec,
      model_dir,
      {name: run.splits[name] for name in splits},
      directory,
      batch_size=run.config.features.batch_size,
      dtype=run.config.features.dtype,
      advance=advance,
      on_cpu=_on_cpu(run.config),
    ),
    everywhere=True,
  )


def extract_features(
  run: stages.Run, spec: cnn_spec.CnnSpec, model_dir: pathlib.Path
) -> Classifier:
  """Extracts the features of all splits by the CNN in `model_dir`."""
  # The test split apart: the same model may be tested on other data.
  described = {"model": model_dir.name, "dtype": run.config.features.dtype}
  engine = run.config.features.engine
  if engine != "xla":  # as every cache that was written before there was a choice
    described["engine"] = engine
  features_dir = _extract(run, spec, model_dir, ("train", "validation"), described)
  test_dir = _extract(run, spec, model_dir, ("test",), {**described, "tested": run.tested})
  return Classifier(spec, model_dir, features_dir, test_dir)
