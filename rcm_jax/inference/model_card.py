"""What a trained model is, what it has seen, and how far it can be trusted.

`describe` fits an ensemble's calibration on validation stacks and scores it on test
stacks; `Description` travels with the weights as JSON; `markdown` is the model card.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
import dataclasses
import json
import math
from typing import Any

import jax
import numpy as np

from rcm_jax import __version__, arrays
from rcm_jax.evaluation import calibration as calibration_lib
from rcm_jax.evaluation import metrics
from rcm_jax.evaluation import predictions as predictions_lib
from rcm_jax.evaluation import scores as scores_lib
from rcm_jax.evaluation.calibration import Calibration
from rcm_jax.heads.head import HeadSpec
from rcm_jax.textures.encoder import TextureSpec

FORMAT = 1
COVERAGES = (0.9, 0.8, 0.7, 0.6, 0.5)  # the first that the validation patients suffice for
RESEARCH_USE = "Research use; not a medical device."


@dataclasses.dataclass(frozen=True)
class Training:
  """What the model has seen, to tell when a stack is unlike it.

  Attributes:
    dataset: names of the sources.
    stacks: by split.
    patients: by split.
    slices: by split.
    step_um: least, median and greatest distance between neighbouring slices.
    gray_mean: range of the slices' mean gray level (0.5th to 99.5th percentile).
    gray_spread: the same of their standard deviation.
    wide_um: width of each boundary's interval that 19 of 20 validation stacks stay
      below; None where there are no intervals.
  """

  dataset: str
  stacks: dict[str, int]
  patients: dict[str, int]
  slices: dict[str, int]
  step_um: tuple[float, float, float]
  gray_mean: tuple[float, float]
  gray_spread: tuple[float, float]
  wide_um: tuple[float, float] | None


@dataclasses.dataclass(frozen=True)
class Description:
  """All of a bundle but its weights; `bundle.json`.

  Attributes:
    method: name of the method, as in the tables.
    image_shape: height and width of the slices that the CNN sees.
    cnn: the fields of its `CnnSpec`; "context", "width" and "count_include_pad" determine the
      network.
    head: architecture of the sequence heads.
    seeds: of the members.
    half_widths: D of each member.
    calibration: temperature and interval margins, fitted on validation stacks.
    training: what the model has seen.
    figures: scores of the ensemble on the test split, by name; see `figures_of`.
    textures: encoders of what there is to see of a slice besides the CNN's features.
    views: which of these each further ensemble of as many heads reads.
    version: of this package when the bundle was written.
  """

  method: str
  image_shape: tuple[int, int]
  cnn: dict[str, Any]
  head: HeadSpec
  seeds: tuple[int, ...]
  half_widths: tuple[int, ...]
  calibration: Calibration
  training: Training
  figures: dict[str, float | None]
  textures: tuple[TextureSpec, ...] = ()
  views: tuple[tuple[int, ...], ...] = ()
  version: str = __version__

  def to_json(self) -> str:
    """Returns the description as JSON; margins without a bound become null."""
    fields = dataclasses.asdict(self)
    fields["calibration"] = {
      **self.calibration._asdict(),
      "margin_um": [x if math.isfinite(x) else None for x in self.calibration.margin_um],
    }
    fields |= {"format": FORMAT, "strata": arrays.STRATA}
    return json.dumps(fields, indent=1, allow_nan=False)

  @staticmethod
  def from_json(text: str) -> Description:
    """Reads what `to_json` wrote.

    Raises:
      ValueError: it is not JSON, of another format, or of other strata.
      KeyError: a field is missing.
      TypeError: a field is unknown or has another type.
    """
    fields = json.loads(text)
    if fields.pop("format") != FORMAT:
      raise ValueError(f"not of format {FORMAT}; read it with the release that wrote it")
    if tuple(fields.pop("strata")) != arrays.STRATA:
      raise ValueError(f"its strata are not {', '.join(arrays.STRATA)}")
    calibration = fields["calibration"]
    calibration["margin_um"] = tuple(math.inf if x is None else x for x in calibration["margin_um"])
    training = fields["training"]
    for name in ("step_um", "gray_mean", "gray_spread", "wide_um"):
      training[name] = training[name] and tuple(training[name])
    return Description(
      **fields
      | {
        "head": HeadSpec(**fields["head"]),
        "calibration": Calibration(**calibration),
        "training": Training(**training),
        "textures": tuple(TextureSpec(**texture) for texture in fields.get("textures", ())),
        "views": tuple(tuple(view) for view in fields.get("views", ())),
        **{name: tuple(fields[name]) for name in ("image_shape", "seeds", "half_widths")},
      }
    )


def describe(
  predictions: Sequence[predictions_lib.StackPrediction],
  splits: Mapping[str, Any],
  *,
  dataset: str,
  cnn: dict[str, Any],
  head: HeadSpec,
  seeds: tuple[int, ...],
  half_widths: tuple[int, ...],
  textures: tuple[TextureSpec, ...] = (),
  views: tuple[tuple[int, ...], ...] = (),
) -> Description:
  """Calibrates an ensemble on its validation stacks and scores it on its test stacks.

  Args:
    predictions: of all members, on validation and test stacks.
    splits: `data.Slices` by split.
    dataset: names of the sources.
    cnn: the fields of the `CnnSpec`.
    head: architecture of the sequence heads.
    seeds: of the members.
    half_widths: D of each member.
    textures: see `Description`.
    views: see `Description`.
  """
  ensemble = calibration_lib.ensemble(predictions)
  validation, test = ([p for p in ensemble if p.split == split] for split in ("validation", "test"))
  calibration, wide_um = calibration_of(validation)
  return Description(
    method=predictions[0].method,
    image_shape=splits["train"].slices.shape[1:],
    cnn=cnn,
    head=head,
    seeds=seeds,
    half_widths=half_widths,
    calibration=calibration,
    training=training_of(dataset, splits, wide_um),
    figures=figures_of(calibration, test),
    textures=textures,
    views=views,
  )


def training_of(
  dataset: str, splits: Mapping[str, Any], wide_um: tuple[float, float] | None
) -> Training:
  """Measures what a model was trained on.

  Args:
    dataset: names of the sources.
    splits: `data.Slices` by split.
    wide_um: see `Training`.
  """
  train = splits["train"]
  gray = []
  steps = []
  for stack in range(len(train.stack_id)):
    rows = train.rows(stack)
    gray += [gray_levels(image) for image in train.slices[rows]]
    steps.append(np.diff(train.depth_um[rows]))
  steps = np.concatenate(steps)
  low, high = np.percentile(gray, [0.5, 99.5], axis=0)
  return Training(
    dataset=dataset,
    stacks={name: len(split.stack_id) for name, split in splits.items()},
    patients={name: len(set(split.patient_id)) for name, split in splits.items()},
    slices={name: len(split) for name, split in splits.items()},
    step_um=tuple(float(f(steps)) if steps.size else 0.0 for f in (np.min, np.median, np.max)),
    gray_mean=(float(low[0]), float(high[0])),
    gray_spread=(float(low[1]), float(high[1])),
    wide_um=wide_um,
  )


def gray_levels(image: np.ndarray) -> tuple[float, float]:
  """Returns mean and standard deviation of a slice's gray levels, from every fourth pixel."""
  sample = image[::2, ::2]
  return float(sample.mean()), float(sample.std())


def calibration_of(
  validation: Sequence[predictions_lib.StackPrediction],
) -> tuple[Calibration, tuple[float, float] | None]:
  """Fits temperature and intervals on an ensemble's validation stacks.

  The coverage is the first of `COVERAGES` that there are enough patients for.

  Returns:
    The calibration, and the width of each boundary's interval that 19 of 20 validation
    stacks stay below; None where there are too few patients for any interval.
  """
  for coverage in COVERAGES:
    fitted = calibration_lib.calibrate(validation, coverage)
    if all(map(math.isfinite, fitted.margin_um)):
      break
  else:
    return fitted, None
  padded = predictions_lib.pad(validation)
  intervals = _intervals(padded.probabilities, padded.depth_um, padded.mask, fitted)
  widths = np.asarray(intervals[:, :, 2] - intervals[:, :, 0], np.float64)
  return fitted, tuple(np.percentile(widths, 95, axis=0).tolist())


_intervals = jax.jit(jax.vmap(calibration_lib.boundary_intervals_um, in_axes=(0, 0, 0, None)))


def figures_of(
  calibration: Calibration, test: Sequence[predictions_lib.StackPrediction]
) -> dict[str, float | None]:
  """Scores an ensemble on test stacks: fractions, µm, and None where nothing was counted.

  Boundaries are compared where the truth has them. `accuracy` is that of the most probable
  stratum of each slice, `monotone_accuracy` that of the strata that `rcm_jax.predict` shows.
  """
  scored = scores_lib.score(test)
  confusion = scored.confusion.sum(0)
  monotone = scores_lib.LABELLINGS.index("monotone")
  held = calibration_lib.assess(calibration, test)
  error = np.abs(scored.error_um[:, scores_lib.BOUNDARY_RULES.index("posterior_median")]).sum(0)
  counted = scored.counted.sum(0)
  figures = {
    "accuracy": held.accuracy,
    "monotone_accuracy": float(metrics.accuracy(confusion[monotone])),
    "expected_calibration_error": held.error_after,
  }
  for b, name in enumerate(metrics.BOUNDARIES):
    figures |= {
      f"{name}_mae_um": error[b] / counted[b] if counted[b] else math.nan,
      f"{name}_interval_width_um": held.width_um[b],
      f"{name}_interval_coverage": held.covered[b],
    }
  return {name: float(x) if math.isfinite(x) else None for name, x in figures.items()}


def markdown(card: Description) -> str:
  """Returns the model card: data, splits, figures, limits."""
  training, calibration = card.training, card.calibration
  splits = "\n".join(
    f"| {name} | {training.patients[name]} | {training.stacks[name]} | {training.slices[name]} |"
    for name in training.stacks
  )
  figures = "\n".join(
    f"| {name.replace('_', ' ').replace(' um', ' (µm)')} | {'–' if x is None else f'{x:.4g}'} |"
    for name, x in card.figures.items()
  )
  height, width = card.image_shape
  intervals = (
    f"meant to cover the true boundary for {calibration.coverage:.0%} of patients"
    if training.wide_um
    else "without bounds: there were too few validation patients"
  )
  views = ""
  if card.views:
    listed = "".join(
      f"- {', '.join(_textures(card.textures[i]) for i in view)}\n" for view in card.views
    )
    views = f"As many heads read each of these histograms of a slice:\n\n{listed}\n"
  simulated = ""
  if "rcm_phantom" in training.dataset:
    simulated = " (simulated stacks: no figure below says anything about patients)"
  return f"""# {card.method}

**{RESEARCH_USE}**

Tells epidermis, dermal-epidermal junction (DEJ) and dermis apart in a stack of reflectance
confocal microscopy slices, and where one ends and the next begins. An ensemble of
{len(card.seeds)} sequence heads ({card.head.cell}, {card.head.attention} attention) on one
Inception-V3 of width {card.cnn["width"]:g}, after Bozkurt et al. 2021.

{views}Written by rcm_jax {card.version}.

## Input and output

8-bit gray slices, shallow first, {height} x {width} pixels, and their depths in µm. Out come, by
slice, the probabilities of {", ".join(arrays.STRATA)} (temperature {calibration.temperature:.3g})
and the most probable labelling that an intact skin allows; by boundary, the median depth and an
interval {intervals}.

## Data

{training.dataset}{simulated}; split by patient.

| split | patients | stacks | slices |
|---|---|---|---|
{splits}

Distance between slices {training.step_um[0]:g} to {training.step_um[2]:g} µm (median
{training.step_um[1]:g}).

## Figures on the test split

| figure | value |
|---|---|
{figures}

Accuracies and coverages are fractions. Boundaries are scored where the labels have them.

## Limits

- One label a slice: where a slice cuts through two strata the larger one counts.
- Intervals hold for patients like those of the validation split, and for them on average; other
  devices, sites, steps or exposures need their own validation.
- Stacks are read shallow to deep, in equal lateral position. Motion between slices is not seen.
- It does not look for disease, and a plan of depths is a suggestion to be checked by eye.
"""


def _textures(spec: TextureSpec) -> str:
  if spec.patch == 1:
    return "gray levels"
  return f"{spec.words} kinds of patches of {spec.patch * spec.downsampling} px"
