"""Two rows beside every table: strata by depth alone, and by depth and the stack's end."""

from __future__ import annotations

import pathlib

import numpy as np

from rcm_jax.baselines import depth_prior
from rcm_jax.run import stages
from rcm_jax.runtime import metric_writer as writer_lib


def classify_by_depth(run: stages.Run) -> stages.Result:
  """Fits both priors once a seed; no image is looked at."""
  result = stages.Result()
  for seed in run.config.seeds:
    for method, end in depth_prior.INPUTS.items():
      seen = {
        name: depth_prior.features(split.depth_um, split.stack, end=end)
        for name, split in run.splits.items()
      }

      def fit(
        directory: pathlib.Path,
        advance: writer_lib.Advance,
        seen: dict[str, np.ndarray] = seen,
        seed: int = seed,
      ) -> None:
        del advance  # over in a moment
        labels, count = run.splits["train"].labels, len(run.strata)
        model = depth_prior.fit(seen["train"], labels, seed=seed, num_strata=count)
        for name in stages.EVALUATED:
          np.save(directory / f"{name}.npy", model.predict_proba(seen[name]))

      spec = {"seed": seed, "end": end, **run.seen_data()}
      directory = stages.stage(run.cache_dir, run.writer, "depth_prior", spec, fit)
      probabilities = {
        name: stages.cut_up(run.splits[name], stages.load_rows(directory / f"{name}.npy"))
        for name in stages.EVALUATED
      }
      # Whoever knows where a stack ends has seen all of it.
      sees = stages.sees(None if end else 1)
      result += stages.Result(
        stages.predictions_by_stack(method, seed, sees, run.splits, probabilities)
      )
  return result
