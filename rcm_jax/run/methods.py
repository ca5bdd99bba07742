"""What a configuration's `pipeline` does: from decoded slices to predictions, stage by stage."""

from __future__ import annotations

import pathlib
from typing import Any

import numpy as np

from rcm_jax.baselines import hames, kaur
from rcm_jax.data import feature_file
from rcm_jax.ops.backend import numerics
from rcm_jax.run import depth_prior, head_methods, stages, work
from rcm_jax.run.cnn_stages import classify_slices
from rcm_jax.run.work import Method
from rcm_jax.runtime import devices
from rcm_jax.runtime import metric_writer as writer_lib


def _cnn(run: stages.Run) -> stages.Result:
  return sum((classify_slices(run, seed)[1] for seed in run.config.seeds), stages.Result())


def _features(run: stages.Run) -> stages.Result:
  classifier, result = classify_slices(run, run.config.cnn.seed)
  if devices.is_first():
    feature_file.save(
      run.workdir / feature_file.NAME,
      run.splits,
      classifier.load,
      dataset=run.dataset,
      method=run.config.name,
      seed=run.config.cnn.seed,
      sources=run.sources,
    )
  return result


def _baseline(run: stages.Run, module: Any, model_class: Any) -> stages.Result:
  """Fits a texture classifier once a seed."""
  name = run.config.pipeline
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
        strata=run.strata.names,
        progress=run.writer.console.print,
      )
      model.save(directory / "model.npz")
      for split in stages.EVALUATED:
        np.save(directory / f"{split}.npy", module.predict_proba(model, run.splits[split].slices))

    spec = {"seed": seed, **run.seen_data(), "backend": numerics()}
    directory = stages.stage(run.cache_dir, run.writer, name, spec, fit)
    run.writer.console.print(
      f"{name}, seed {seed}: {model_class.load(directory / 'model.npz').chosen}"
    )
    probabilities = {
      split: stages.cut_up(run.splits[split], stages.load_rows(directory / f"{split}.npy"))
      for split in stages.EVALUATED
    }
    predictions = stages.predictions_by_stack(
      run.config.name, seed, stages.sees(1), run.splits, probabilities
    )
    result += stages.Result(predictions)
  return result


# A new kind of model is one entry here.
METHODS: dict[str, Method] = {
  "head": Method(head_methods.train_head, work.of_heads, True, work.ON_CNN),
  "views": Method(head_methods.train_views, work.of_views, True, work.ON_CNN),
  "end_to_end": Method(head_methods.train_end_to_end, work.of_end_to_end, True, work.ON_CNN),
  "cnn": Method(_cnn, work.of_cnns, shared=work.ON_CNN),
  "features": Method(_features, work.of_nothing, shared=work.ON_CNN),
  "hames": Method(lambda run: _baseline(run, hames, hames.Hames), work.of_encodings),
  "kaur": Method(lambda run: _baseline(run, kaur, kaur.Kaur), work.of_encodings),
  "depth_prior": Method(depth_prior.classify_by_depth, work.of_nothing),
}
