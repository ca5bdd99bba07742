"""What a run leaves for `predict` and `export`: all seeds of its method as one bundle."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
import dataclasses
from typing import NamedTuple

import jax
from jaxtyping import Int
import numpy as np

from rcm_jax.cnn import extraction
from rcm_jax.data import pca
from rcm_jax.data.slices import Slices
from rcm_jax.evaluation.predictions import StackPrediction
from rcm_jax.heads import fold_pca
from rcm_jax.heads import training as head_training
from rcm_jax.inference import (
  altered,
  appearance,
  bundle,
  describe,
  familiarity,
  seen_patients,
)
from rcm_jax.run import head_config, stages
from rcm_jax.run.cnn_stages import Classifier
from rcm_jax.textures import encoder as texture_encoder

MOST_ALTERED = 80  # training stacks that show what other scales and more noise look like
MOST_SEEN = 4000  # of a split, that show what stacks look like


class OnTextures(NamedTuple):
  """Encoders of textures, and the heads of each view, which reads some of them."""

  specs: Sequence[texture_encoder.TextureSpec] = ()
  encoders: Sequence[texture_encoder.Encoder] = ()
  views: Sequence[tuple[int, ...]] = ()
  heads: Sequence[head_training.Trained] = ()


def keep_model(
  run: stages.Run,
  classifier: Classifier,
  trained: head_training.Trained,
  predictions: Sequence[StackPrediction],
  of_features: pca.Components | None = None,
  on_textures: OnTextures = OnTextures(),  # noqa: B008
) -> None:
  """Writes what `predict` and `export` need: all seeds of the run's method as one ensemble.

  Where members differ in more than their seed and none has the method's own name, it is the
  kind of member that is best on validation.
  """
  names = [head_config.row_name(run.config, member) for member in trained.members]
  best = np.max(trained.history["validation_accuracy"], axis=1)
  mean = {name: np.mean([b for b, n in zip(best, names) if n == name]) for name in names}
  method = run.config.name if run.config.name in mean else max(mean, key=mean.get)
  rows = [i for i, name in enumerate(names) if name == method]
  chosen = lambda trained: jax.tree.map(lambda leaf: leaf[np.array(rows)], trained.params)
  head, params = trained.spec, chosen(trained)
  if of_features is not None:
    head, params = fold_pca.unfold(head, params, of_features)
  description = describe.describe(
    [p for p in predictions if p.method == method],
    run.splits,
    dataset=run.dataset,
    cnn=None if classifier.spec is None else dataclasses.asdict(classifier.spec),
    head=head,
    half_widths=tuple(int(trained.members[i].half_width) for i in rows),
    seeds=tuple(int(trained.members[i].seed) for i in rows),
    textures=tuple(on_textures.specs),
    views=tuple(on_textures.views),
    encoder=classifier.encoder,
    initial=run.start.told if run.start else "",
    patients=_patients(run),
  )
  network = None
  if classifier.spec is not None:
    network = extraction.load(classifier.spec, classifier.model_dir)
  on_views = tuple(map(chosen, on_textures.heads))
  model = bundle.Bundle(
    description,
    network,
    params,
    tuple(on_textures.encoders),
    on_views,
    _familiar(run, classifier),
  )
  bundle.save(run.workdir / "model", model)


def _patients(run: stages.Run) -> tuple[seen_patients.PatientHashes, ...]:
  """Whose stacks were learned from, in this run and in those that it goes back to."""
  known = [*run.splits["train"].patient_id, *run.splits["validation"].patient_id]
  ours = seen_patients.hashes_of(seen_patients.people(run.sources, known))
  return (ours, *(run.start.model.description.patients if run.start else ()))


def _familiar(run: stages.Run, classifier: Classifier) -> familiarity.Familiar | None:
  """Learns what stacks of the run look like, of features alone without images; None of too few."""
  few = min(len(run.splits[name].stack_id) for name in ("train", "validation")) < 2
  if few:
    return None
  train, changed = run.splits["train"], {}
  if classifier.spec is not None:
    changed = {
      kind: [
        appearance.texture(altered.alter(_images(train, stack), kind, number))
        for number, stack in enumerate(_some(train, MOST_ALTERED))
      ]
      for kind in altered.KINDS
    }
  validation = (seen for seen, _ in _seen(run, classifier, "validation"))
  return familiarity.learn(_seen(run, classifier, "train"), validation, changed)


def _some(split: Slices, most: int) -> list[int]:
  """Returns stacks from all over a split, at most so many."""
  return np.unique(np.linspace(0, len(split.stack_id) - 1, most).astype(int)).tolist()


def _images(split: Slices, stack: int) -> np.ndarray:
  return np.asarray(split.slices[split.rows(stack)])


def _seen(
  run: stages.Run, classifier: Classifier, name: str
) -> Iterator[tuple[familiarity.Seen, Int[np.ndarray, "T"]]]:
  """Yields a split's stacks as the CNN saw them, or an encoder its features alone, and their labels."""
  split, features = run.splits[name], classifier.load(name, "features")
  alone = classifier.spec is None
  probabilities = None if alone else classifier.load(name, "probabilities")
  for stack in _some(split, MOST_SEEN):
    rows = split.rows(stack)
    seen = familiarity.Seen(
      None if alone else appearance.describe(_images(split, stack)),
      features[rows].astype(np.float32),
      None if alone else probabilities[rows],
    )
    yield seen, split.labels[rows]
