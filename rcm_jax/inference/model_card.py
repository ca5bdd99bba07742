"""The model card: what a trained model is, what it has seen, and how far it can be trusted."""

from __future__ import annotations

from rcm_jax.inference.description import RESEARCH_USE, Description
from rcm_jax.textures.encoder import TextureSpec


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

Tells {_listed(card)} apart in a stack of reflectance
confocal microscopy slices, and where one ends and the next begins. An ensemble of
{len(card.seeds)} sequence heads ({card.head.cell}, {card.head.attention.kind} attention) on
{_encoder(card)}, after Bozkurt et al. 2021.
{_history(card)}
{views}Written by rcm_jax {card.version}.

## Input and output

{_input(card)},
and their depths in µm. Out come, by
slice, the probabilities of {", ".join(card.strata.names)} (temperature {calibration.temperature:.3g})
and the stratum; by boundary, the depth of the first slice below it and an interval
{_intervals(card)}.

A boundary lies at the slice that is the median of its distribution over all labellings that an
intact skin allows, and the strata lie between the boundaries.

## Data

{training.dataset}{simulated}; split by patient.

| split | patients | stacks | slices |
|---|---|---|---|
{splits}

Distance between slices {training.step_um[0]:g} to {training.step_um[2]:g} µm (median
{training.step_um[1]:g}).

## Figures on the test split

{_figures(card, figures)}

Accuracies and coverages are fractions. `accuracy` and the boundaries' errors are those of what
`rcm_jax.predict` shows. Boundaries are scored where the labels have them.

## Limits

- One label a slice: where a slice cuts through two strata the larger one counts.
- Intervals hold for patients like those of the validation split, and for them on average; other
  devices, sites, steps or exposures need their own validation.
- Stacks are read shallow to deep, in equal lateral position. Motion between slices is not seen.
{_blind(card)}- It does not look for disease, and a plan of depths is a suggestion to be checked by eye.
"""


def _listed(card: Description) -> str:
  titles = card.strata.titles | {"dej": "dermal-epidermal junction (DEJ)"}
  *first, last = (titles[name] for name in card.strata.names)
  return f"{', '.join(first)} and {last}"


def _encoder(card: Description) -> str:
  if card.cnn is None:
    return f"features that {card.encoder} made, {card.head.num_features} a slice"
  return f"one Inception-V3 of width {card.cnn['width']:g}"


def _input(card: Description) -> str:
  if card.image_shape is None:
    return f"{card.head.num_features} features a slice, shallow first, made by {card.encoder}"
  height, width = card.image_shape
  return f"8-bit gray slices, shallow first, {height} x {width} pixels {_field(card)}"


def _blind(card: Description) -> str:
  if card.cnn is not None:
    return ""
  return (
    "- It sees features and no images: whether a stack is like those of training is judged by them\n"
    "  alone, and exposure, magnification and noise are not.\n"
  )


def _history(card: Description) -> str:
  lines = ""
  if card.initial:
    lines += f"\nTraining started from {card.initial}.\n"
  if fitted := card.recalibrated:
    lines += (
      f"\nTemperature and intervals were fitted anew on {fitted.stacks} stacks of {fitted.patients} "
      f"patients of {fitted.dataset}.\n"
    )
  return lines


def _figures(card: Description, figures: str) -> str:
  if not card.figures:
    return (
      "None since temperature and intervals were fitted anew; `python -m rcm_jax.validate` measures\n"
      "them on other stacks."
    )
  return f"| figure | value |\n|---|---|\n{figures}"


def _field(card: Description) -> str:
  if card.field_um is None:
    return "of a size that nobody told"
  return f"on a field of {card.field_um:.4g} µm ({card.scale.pixel_um:.4g} µm a pixel)"


def _intervals(card: Description) -> str:
  if not card.training.wide_um:
    return "without bounds: there were too few validation patients"
  promised = (
    "meant to cover the true boundary, in a random stack of a random\npatient, with a probability of"
    f" {card.calibration.coverage:.0%}"
  )
  if all(covered is None for covered in card.measured_coverage):
    return f"{promised}\n(not measured on other stacks yet)"
  measured = ", ".join(
    f"{title} {'–' if covered is None else f'{covered:.0%}'}"
    for title, covered in zip(
      card.strata.boundary_titles.values(), card.measured_coverage, strict=True
    )
  )
  return (
    f"{promised}\n(measured on {card.training.patients.get('test', 0)} test patients: {measured})"
  )


def _textures(spec: TextureSpec) -> str:
  if spec.patch == 1:
    return "gray levels"
  return f"{spec.words} kinds of patches of {spec.patch * spec.downsampling} px"
