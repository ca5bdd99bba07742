"""Reads stacks in memory: whole ones, and ones whose slices come one at a time."""

from __future__ import annotations

from collections.abc import Callable
import dataclasses

import jax
from jaxtyping import Float, UInt8
import numpy as np

from rcm_jax.data import scale as scale_lib
from rcm_jax.inference import bundle as bundle_lib
from rcm_jax.inference import interpretation as reading_lib
from rcm_jax.inference import model_card
from tfds_rcm.errors import UserError

_STREAM_SLICES = 128  # a stream's first room; it doubles when full


@dataclasses.dataclass(frozen=True)
class Prediction:
  """One stack, read.

  Attributes:
    depth_um: of each slice.
    reading: probabilities, strata, boundaries.
    boundaries: the same boundaries, named.
    plan: depths of the paper's five mosaics.
    warnings: what to mind.
    attention: mean attention map of the members; None without attention.
  """

  depth_um: Float[np.ndarray, "T"]
  reading: reading_lib.Reading
  boundaries: list[reading_lib.Boundary]
  plan: list[reading_lib.Mosaic]
  warnings: list[reading_lib.Caution]
  attention: Float[np.ndarray, "T T"] | None


class Predictor:
  """Reads stacks with one trained model.

  Args:
    bundle: the model.
  """

  def __init__(self, bundle: bundle_lib.Bundle):
    self.bundle = bundle
    self._has_attention = bundle.description.head.attention.kind != "none"

    @jax.default_matmul_precision("highest")  # as heads are trained; a GPU would take TF32
    def read(features, depth_um, mask):
      reading = reading_lib.read(
        bundle.class_probabilities(features, mask), depth_um, mask, bundle.description.calibration
      )
      return reading, bundle.attention(features, mask) if self._has_attention else None

    self._read = jax.jit(read)

  def prepare(self, image: UInt8[np.ndarray, "height width"]) -> UInt8[np.ndarray, "h w"]:
    """Brings a slice to the size that the model sees, as its training data were.

    Raises:
      UserError: the model was trained on slices that are not square, and this is another size.
    """
    height, width = self.bundle.description.image_shape
    if height == width:
      return scale_lib.tiles(image, None, scale_lib.Scale(height, None))[0]
    if image.shape != (height, width):
      raise UserError(
        f"slices of {image.shape[0]} x {image.shape[1]} pixels; this model was trained on "
        f"{height} x {width} and no square could be cut: resample them"
      )
    return image

  def predict(
    self,
    slices: UInt8[np.ndarray, "T height width"],
    depth_um: Float[np.ndarray, "T"],
    advance: Callable[[int, int], None] = lambda done, total: None,
  ) -> Prediction:
    """Reads one stack.

    Args:
      slices: gray levels of any size, shallow first.
      depth_um: depth of each slice in µm.
      advance: called with the slices seen and the slices in all.

    Raises:
      UserError: slices that the model cannot see, or too many of them.
    """
    self.bundle.padded_length(len(slices))  # refuses before the long work
    prepared = np.stack([self.prepare(image) for image in slices])
    gray = np.array([model_card.gray_levels(image) for image in prepared])
    features = self.bundle.features(prepared, advance)
    return self.conclude(features, depth_um, gray, self.bundle.padded_length(len(slices)))

  def conclude(
    self,
    features: Float[np.ndarray, "T F"],
    depth_um: Float[np.ndarray, "T"],
    gray: Float[np.ndarray, "T 2"],
    length: int,
  ) -> Prediction:
    """Reads a stack from its slices' features, padded to `length`."""
    count = len(features)
    more = length - count
    padded = np.pad(features, ((0, more), (0, 0)))
    depths = np.pad(depth_um.astype(np.float32), (0, more))
    reading, attention = jax.device_get(self._read(padded, depths, np.arange(length) < count))
    reading = reading._replace(
      probabilities=reading.probabilities[:count], strata=reading.strata[:count]
    )
    training = self.bundle.description.training
    found = reading_lib.named_boundaries(reading, depth_um)
    return Prediction(
      depth_um,
      reading,
      found,
      reading_lib.depth_plan(found, depth_um),
      reading_lib.cautions(reading, found, depth_um, gray, training),
      attention[:count, :count] if self._has_attention else None,
    )


class StreamingPredictor:
  """Reads a stack while it is acquired: every slice brings all strata and the plan up to date.

  All programs are compiled when it is made, so the first answer takes no longer than the others.

  Args:
    predictor: reads stacks with the model.
  """

  def __init__(self, predictor: Predictor):
    self._predictor = predictor
    bundle = predictor.bundle
    head = bundle.description.head
    self._limit = head.limit
    self._length = self._limit or _STREAM_SLICES
    self._slices: list[np.ndarray] = []
    self._gray: list[tuple[float, float]] = []
    self._depth_um: list[float] = []
    self._features = np.zeros((0, bundle.num_features), np.float32)
    self._revised = bundle.context // 2 + 1  # a new slice is a neighbour of the last ones
    blank = np.zeros(bundle.description.image_shape, np.uint8)
    self.add(blank, 0.0)
    self.clear()

  def clear(self) -> None:
    """Begins a new stack."""
    self._slices, self._gray, self._depth_um = [], [], []
    self._features = self._features[:0]

  def add(self, image: UInt8[np.ndarray, "height width"], depth_um: float) -> Prediction:
    """Takes the next deeper slice; returns the reading of the stack so far.

    Args:
      image: gray levels of any size.
      depth_um: its depth in µm.

    Raises:
      UserError: the slice is not deeper than the one before, or the model cannot see it.
    """
    if self._depth_um and depth_um <= self._depth_um[-1]:
      raise UserError(
        f"slice {len(self._slices)} at {depth_um:g} µm is not below the one before, at "
        f"{self._depth_um[-1]:g} µm; slices come shallow to deep"
      )
    bundle = self._predictor.bundle
    bundle.padded_length(len(self._slices) + 1)
    prepared = self._predictor.prepare(image)
    self._slices.append(prepared)
    self._gray.append(model_card.gray_levels(prepared))
    self._depth_um.append(float(depth_um))
    count = len(self._slices)
    if count > self._length:
      self._length *= 2
    near = np.stack(self._slices[-2 * self._revised :])
    rows = np.maximum(np.arange(-self._revised, 0) + len(near), 0)
    seen = np.asarray(bundle.see(bundle_lib.neighbours(near, rows, bundle.context)))
    revised = min(self._revised, count)
    self._features = np.concatenate([self._features[: count - revised], seen[-revised:]])
    return self._predictor.conclude(
      self._features, np.array(self._depth_um), np.array(self._gray), self._length
    )
