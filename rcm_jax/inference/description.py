"""What a trained model is and what it has seen; travels with the weights as JSON."""

from __future__ import annotations

import dataclasses
import json
import math
from typing import Any

import numpy as np

from rcm_jax import __version__, anatomy
from rcm_jax.cnn import inception
from rcm_jax.data.scale import Scale
from rcm_jax.decoding.intervals import Calibration
from rcm_jax.heads.attention import AttentionSpec
from rcm_jax.heads.head import HeadSpec, current_fields
from rcm_jax.inference import json_fields
from rcm_jax.inference.json_fields import flag, listed, mapped, number, optional, text, whole
from rcm_jax.inference.seen_patients import PatientHashes
from rcm_jax.textures.encoder import TextureSpec

FORMAT = 1
RESEARCH_USE = "Research use; not a medical device."
# Greatest sizes that are read. Whether the weights have these sizes is checked before any is made.
_MOST_PIXELS = 1 << 14  # a side
_MOST_UNITS = 1 << 16
_MOST_MEMBERS = 1 << 10
_MOST_UM = 1e6
_MOST_STRATA = 16
_MOST_PATIENTS = 1 << 20


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
    first_um: range of the first slices' depths; models that do not say it began at the surface.
  """

  dataset: str
  stacks: dict[str, int]
  patients: dict[str, int]
  slices: dict[str, int]
  step_um: tuple[float, float, float]
  gray_mean: tuple[float, float]
  gray_spread: tuple[float, float]
  wide_um: tuple[float, ...] | None
  first_um: tuple[float, float] = (0.0, 0.0)


@dataclasses.dataclass(frozen=True)
class Recalibrated:
  """What temperature and intervals were fitted on after training.

  Attributes:
    dataset: name of the source, and its splits.
    stacks: how many.
    patients: how many.
    slices: how many.
  """

  dataset: str
  stacks: int
  patients: int
  slices: int


def gray_levels(image: np.ndarray) -> tuple[float, float]:
  """Returns mean and standard deviation of a slice's gray levels, from every fourth pixel."""
  sample = image[::2, ::2]
  return float(sample.mean()), float(sample.std())


@dataclasses.dataclass(frozen=True)
class Description:
  """All of a bundle but its weights; `bundle.json`.

  Attributes:
    method: name of the method, as in the tables.
    image_shape: height and width of the slices that the CNN sees; None without a CNN.
    cnn: the fields of its `CnnSpec`; "context" and "width" determine the network. None for heads
      that read the features of another encoder.
    head: architecture of the sequence heads.
    seeds: of the members.
    half_widths: D of each member.
    calibration: temperature and interval margins, fitted on validation stacks.
    training: what the model has seen.
    figures: scores of the ensemble on the test split, by name; see `describe.figures_of`.
    textures: encoders of what there is to see of a slice besides the CNN's features.
    views: which of these each further ensemble of as many heads reads.
    field_um: side in µm of the square that a slice shows; None where training did not know.
    strata: that it tells apart.
    version: of this package when the bundle was written.
    encoder: what made the features that heads without a CNN read.
    initial: what training started from, in words; empty if from nothing of ours.
    recalibrated: what was fitted after training; None where all is of the training's own splits.
    patients: that were learned from, in this training and in those that it goes back to; models of
      version 0.1.0 do not say.
  """

  method: str
  image_shape: tuple[int, int] | None
  cnn: dict[str, Any] | None
  head: HeadSpec
  seeds: tuple[int, ...]
  half_widths: tuple[int, ...]
  calibration: Calibration
  training: Training
  figures: dict[str, float | None]
  textures: tuple[TextureSpec, ...] = ()
  views: tuple[tuple[int, ...], ...] = ()
  field_um: float | int | None = None
  strata: anatomy.Strata = anatomy.PAPER
  version: str = __version__
  encoder: str | None = None
  initial: str = ""
  recalibrated: Recalibrated | None = None
  patients: tuple[PatientHashes, ...] = ()

  @property
  def scale(self) -> Scale:
    """What the model sees of a slice; 0 pixels without a CNN."""
    return Scale(min(self.image_shape) if self.image_shape else 0, self.field_um)

  @property
  def measured_coverage(self) -> tuple[float | None, ...]:
    """By boundary, the share of test patients whose boundary lay in its interval."""
    return tuple(
      self.figures.get(f"{name}_interval_coverage") if self.training.wide_um else None
      for name in self.strata.boundaries
    )

  def to_json(self) -> str:
    """Returns the description as JSON; margins without a bound become null."""
    fields = dataclasses.asdict(self)
    bounded = lambda margins: [x if math.isfinite(x) else None for x in margins]
    fields["calibration"] = {
      **self.calibration._asdict(),
      "margin_um": bounded(self.calibration.margin_um),
      "thickness_margin_um": bounded(self.calibration.thickness_margin_um),
    }
    fields |= {"format": FORMAT, "strata": self.strata.names}
    return json.dumps(fields, indent=1, allow_nan=False)

  @staticmethod
  def from_json(content: str) -> Description:
    """Reads what `to_json` wrote.

    Raises:
      ValueError: it is not JSON, of another format, of other strata, or a field is missing, unknown
        or out of its range; says which.
    """
    given = json_fields.parse(content)
    if isinstance(given, dict) and given.get("format", FORMAT) != FORMAT:
      raise ValueError(f"not of format {FORMAT}; read it with the release that wrote it")
    fields = _DESCRIPTION("", given)
    del fields["format"]
    fields["strata"] = anatomy.of_names(fields["strata"])
    description = Description(**fields)
    _check_parts(description)
    return description


def _check_parts(description: Description) -> None:
  """Checks what one field says against another."""
  head, textures = description.head, len(description.textures)
  if (description.cnn is None) != (description.image_shape is None):
    raise ValueError("cnn and image_shape: only a model without a CNN has neither")
  if description.cnn is None and description.textures:
    raise ValueError("textures: only a model with a CNN has some")
  if description.cnn is not None and head.num_features != inception.NUM_FEATURES:
    raise ValueError(f"head.num_features: the CNN gives {inception.NUM_FEATURES}")
  if len(description.half_widths) != len(description.seeds):
    raise ValueError("half_widths and seeds are not as many as each other")
  _check_strata(description)
  if max(description.half_widths) > head.attention.half_width:
    raise ValueError(
      f"half_widths: {max(description.half_widths)} is above head.attention.half_width"
    )
  if (description.calibration.boundary_temperature is None) != head.ordered:
    raise ValueError("calibration.boundary_temperature: only an ordered head has none")
  if any(place >= textures for view in description.views for place in view):
    raise ValueError(f"views: names another texture than the {textures} that there are")
  if description.training.wide_um and not all(
    map(math.isfinite, description.calibration.margin_um)
  ):
    raise ValueError("calibration.margin_um: intervals need a margin for each boundary")


def _check_strata(description: Description) -> None:
  """Checks that all are of as many strata."""
  strata, calibration = description.strata, description.calibration
  wide_um = description.training.wide_um
  for name, found, expected in (
    ("head.num_strata", description.head.num_strata, len(strata)),
    ("calibration.margin_um", len(calibration.margin_um), len(strata.boundaries)),
    (
      "calibration.thickness_margin_um",
      len(calibration.thickness_margin_um),
      max(len(strata.layers) - 1, 0),
    ),
    ("training.wide_um", len(wide_um or strata.boundaries), len(strata.boundaries)),
  ):
    if found != expected:
      raise ValueError(f"{name}: {found} where its {len(strata)} strata need {expected}")


def _record(kind: type, checks: dict[str, json_fields.Check], **may_miss: Any) -> json_fields.Check:
  """An object that becomes a dataclass or named tuple."""
  check = json_fields.fields(checks, frozenset(may_miss))
  return lambda place, value: kind(**check(place, value))


_size = whole(1, _MOST_UNITS)
# What is no size or share, the specifications themselves check.
_ATTENTION = _record(
  AttentionSpec,
  {"kind": text, "half_width": whole(0, _MOST_UNITS), "edge_mode": text, "units": _size},
)
_HEAD = _record(
  HeadSpec,
  {
    "num_features": _size,
    "hidden": _size,
    "cell": text,
    "bidirectional": flag,
    "window": optional(_size),
    "attention": _ATTENTION,
    "max_slices": _size,
    "decoder": text,
    "feedback": text,
    "likelihood": text,
    "forget_bias": number(-_MOST_UNITS, _MOST_UNITS),
    "num_strata": whole(2, _MOST_STRATA),
  },
  likelihood=True,
  forget_bias=True,
  num_strata=True,
)


def _head(place: str, value: Any) -> HeadSpec:
  return _HEAD(place, current_fields(value) if isinstance(value, dict) else value)


def _cnn(place: str, value: Any) -> dict[str, Any]:
  fields = mapped(lambda _, x: x)(place, value)
  required = {name: fields[name] for name in ("context", "width") if name in fields}
  json_fields.fields({"context": whole(1, 99), "width": number(1e-3, 8)})(place, required)
  if fields["context"] % 2 == 0:
    raise ValueError(f"{place}.context: {fields['context']} slices have no middle")
  return fields


_positive = number(1e-6, 1e6)
_um = number(-_MOST_UM, _MOST_UM)
_count = whole(0, 1 << 40)
_counts = mapped(_count)


def _hex(place: str, value: Any) -> str:
  digits = text(place, value)
  if len(digits) % 2 or not set(digits) <= set("0123456789abcdef"):
    raise ValueError(f"{place}: '{digits[:40]}' is not pairs of hexadecimal digits")
  return digits


_CALIBRATION = _record(
  Calibration,
  {
    "temperature": _positive,
    "margin_um": listed(optional(_um, math.inf), 1, _MOST_STRATA),
    "coverage": number(1e-3, 1 - 1e-3),
    "boundary_temperature": optional(_positive),
    "thickness_margin_um": listed(optional(_um, math.inf), 0, _MOST_STRATA),
  },
  thickness_margin_um=True,
)
_TRAINING = _record(
  Training,
  {
    "dataset": text,
    "stacks": _counts,
    "patients": _counts,
    "slices": _counts,
    "step_um": listed(number(0, _MOST_UM), 3, 3),
    "gray_mean": listed(number(0, 255), 2, 2),
    "gray_spread": listed(number(0, 255), 2, 2),
    "wide_um": optional(listed(number(0, _MOST_UM), 1, _MOST_STRATA)),
    "first_um": listed(_um, 2, 2),
  },
  first_um=True,
)
_TEXTURE = _record(
  TextureSpec,
  {
    "patch": whole(1, 1 << 10),
    "words": whole(1, _MOST_UNITS),
    "downsampling": whole(1, 1 << 10),
    "components": whole(1, _MOST_UNITS),
    "seed": whole(0, 1 << 62),
  },
)
_RECALIBRATED = _record(
  Recalibrated,
  {"dataset": text, "stacks": _count, "patients": _count, "slices": _count},
)
_PATIENTS = _record(PatientHashes, {"salt": _hex, "hashes": listed(_hex, 0, _MOST_PATIENTS)})
_DESCRIPTION = json_fields.fields(
  {
    "format": whole(FORMAT, FORMAT),
    "strata": listed(text, 1, _MOST_STRATA),
    "method": text,
    "image_shape": optional(listed(whole(inception.MIN_SIZE, _MOST_PIXELS), 2, 2)),
    "cnn": optional(_cnn),
    "head": _head,
    "seeds": listed(whole(-(1 << 62), 1 << 62), 1, _MOST_MEMBERS),
    "half_widths": listed(whole(0, _MOST_UNITS), 1, _MOST_MEMBERS),
    "calibration": _CALIBRATION,
    "training": _TRAINING,
    "figures": mapped(optional(number(-_MOST_UM, _MOST_UM))),
    "textures": listed(_TEXTURE, 0, 64),
    "views": listed(listed(whole(0, 63), 1, 64), 0, 64),
    "field_um": optional(number(1, 1e5)),
    "version": text,
    "encoder": optional(text),
    "initial": text,
    "recalibrated": optional(_RECALIBRATED),
    "patients": listed(_PATIENTS, 0, 1 << 10),
  },
  frozenset({"textures", "views", "version", "field_um", "encoder", "initial"})
  | {"recalibrated", "patients"},
)
