"""Interprets stacks in memory: whole ones, and ones whose slices come one at a time."""

from __future__ import annotations

from collections.abc import Callable
import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Float, UInt8
import numpy as np

from rcm_jax.data import scale as scale_lib
from rcm_jax.decoding import monotone_model
from rcm_jax.inference import bundle as bundle_lib
from rcm_jax.inference import given_arrays, interpretation
from rcm_jax.inference.description import gray_levels
from rcm_jax.inference.stack_warnings import StackWarning, stack_warnings
from tfds_rcm import stack_io
from tfds_rcm.errors import UserError

_STREAM_SLICES = 128  # a stream's first room; it doubles when full
# So many neighbouring slices count as one: the CNN errs alike on them (phantom, demo preset).
_ALIKE = 7.0


@dataclasses.dataclass(frozen=True)
class Prediction:
  """What is said of one stack.

  Attributes:
    depth_um: of each slice.
    interpretation: probabilities, strata, boundaries.
    boundaries: the same boundaries, named.
    plan: depths of the paper's five mosaics.
    warnings: what to mind.
    attention: mean attention map of the members; None without attention.
  """

  depth_um: Float[np.ndarray, "T"]
  interpretation: interpretation.Interpretation
  boundaries: list[interpretation.Boundary]
  plan: list[interpretation.Mosaic]
  warnings: list[StackWarning]
  attention: Float[np.ndarray, "T T"] | None


class Predictor:
  """Interprets stacks with one trained model.

  Args:
    bundle: the model.
  """

  def __init__(self, bundle: bundle_lib.Bundle):
    self.bundle = bundle
    self._has_attention = bundle.description.head.attention.kind != "none"

    @jax.default_matmul_precision("highest")  # as heads are trained; a GPU would take TF32
    def interpret(features, depth_um, mask):
      found = interpretation.interpret(
        bundle.class_probabilities(features, mask), depth_um, mask, bundle.description.calibration
      )
      slices = jnp.log(jnp.maximum(bundle.slice_probabilities(features), 1e-30)) / _ALIKE
      upright = monotone_model.order_log_odds(slices, mask)
      return found, upright, bundle.attention(features, mask) if self._has_attention else None

    self._interpret = jax.jit(interpret)

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
    slices: Any,
    depth_um: Any,
    advance: Callable[[int, int], None] = lambda done, total: None,
    value_range: stack_io.Range | None = None,
  ) -> Prediction:
    """Interprets one stack.

    Args:
      slices: gray levels of any size, uint8 [T, height, width], shallow first; or of another type
        with a `value_range`, or in colour, of which the luma is taken.
      depth_um: depth of each slice in µm, [T].
      advance: called with the slices seen and the slices in all.
      value_range: values that become 0 and 255.

    Raises:
      UserError: slices that the model cannot see, or too many of them; depths that are not one
        rising number a slice.
    """
    gray = given_arrays.gray_slices(slices, value_range)
    depths = given_arrays.depths_um(depth_um, len(gray))
    length = self.bundle.padded_length(len(gray))  # refuses before the long work
    prepared = np.stack([self.prepare(image) for image in gray])
    levels = np.array([gray_levels(image) for image in prepared])
    return self.conclude(self.bundle.features(prepared, advance), depths, levels, length)

  def conclude(
    self,
    features: Float[np.ndarray, "T F"],
    depth_um: Float[np.ndarray, "T"],
    gray: Float[np.ndarray, "T 2"],
    length: int,
  ) -> Prediction:
    """Interprets a stack from its slices' features, padded to `length`."""
    count = len(features)
    more = length - count
    padded = np.pad(features, ((0, more), (0, 0)))
    depths = np.pad(depth_um.astype(np.float32), (0, more))
    found, upright, attention = jax.device_get(
      self._interpret(padded, depths, np.arange(length) < count)
    )
    found = found._replace(
      probabilities=found.probabilities[:count],
      strata=found.strata[:count],
      most_probable_strata=found.most_probable_strata[:count],
    )
    named = interpretation.named_boundaries(found, depth_um)
    description = self.bundle.description
    return Prediction(
      depth_um,
      found,
      named,
      interpretation.depth_plan(named, depth_um, found.strata),
      stack_warnings(found, named, depth_um, gray, description, float(upright)),
      attention[:count, :count] if self._has_attention else None,
    )


class StreamingPredictor:
  """Interprets a stack while it is acquired: every slice brings strata and plan up to date.

  All programs are compiled when it is made, so the first answer takes no longer than the others.

  Args:
    predictor: interprets stacks with the model.
    value_range: values that become 0 and 255; needed unless slices are of 8 bit.
  """

  def __init__(self, predictor: Predictor, value_range: stack_io.Range | None = None):
    self._predictor = predictor
    self._value_range = value_range
    bundle = predictor.bundle
    head = bundle.description.head
    self._limit = head.limit
    self._length = self._limit or _STREAM_SLICES
    self._revised = bundle.context // 2 + 1  # a new slice is a neighbour of the last ones
    self._features = np.zeros((0, bundle.num_features), np.float32)
    self.clear()
    self._extend(np.zeros(bundle.description.image_shape, np.uint8), 0.0)
    self.clear()

  def clear(self) -> None:
    """Begins a new stack."""
    self._slices: list[np.ndarray] = []
    self._gray: list[tuple[float, float]] = []
    self._depth_um: list[float] = []
    self._given_shape: tuple[int, ...] | None = None
    self._features = self._features[:0]

  def add(self, image: Any, depth_um: Any) -> Prediction:
    """Takes the next deeper slice; returns what is said of the stack so far.

    Args:
      image: gray levels of any size, uint8 [height, width]; as for `Predictor.predict`.
      depth_um: its depth in µm.

    Raises:
      UserError: the slice is not deeper than the one before, is of another size, or the model
        cannot see it.
    """
    number = len(self._slices)
    depth = given_arrays.depth_um(depth_um, number)
    if number and depth <= self._depth_um[-1]:
      raise UserError(
        f"slice {number} at {depth:g} µm is not below the one before, at "
        f"{self._depth_um[-1]:g} µm; slices come shallow to deep"
      )
    given_arrays.depths_um([*self._depth_um, depth], number + 1)
    [gray] = given_arrays.gray_slices([image], self._value_range, number)
    if self._given_shape not in (None, gray.shape):
      raise UserError(
        f"slice {number}: {' x '.join(map(str, gray.shape))} pixels, expected "
        f"{' x '.join(map(str, self._given_shape))} as the first slice"
      )
    self._predictor.bundle.padded_length(number + 1)
    found = self._extend(self._predictor.prepare(gray), depth)
    self._given_shape = gray.shape
    return found

  def _extend(self, prepared: UInt8[np.ndarray, "h w"], depth: float) -> Prediction:
    bundle = self._predictor.bundle
    self._slices.append(prepared)
    self._gray.append(gray_levels(prepared))
    self._depth_um.append(depth)
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
