"""Interprets stacks in memory: whole ones, and ones whose slices come one at a time."""

from __future__ import annotations

from collections.abc import Callable
import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, UInt8
import numpy as np

from rcm_jax.data import scale as scale_lib
from rcm_jax.decoding import intervals, monotone_model
from rcm_jax.inference import appearance, familiarity, given_arrays, interpretation
from rcm_jax.inference import bundle as bundle_lib
from rcm_jax.inference.description import gray_levels
from rcm_jax.inference.stack_warnings import (
  StackWarning,
  scale_warnings,
  stack_warnings,
  unfamiliar,
)
from tfds_rcm import lengths, stack_io
from tfds_rcm.errors import UserError

MOST_TILES = 3  # a side that a larger field is cut into
_LEAST_JUDGED = 8  # slices of a stream before it is judged unlike those of training
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
    thickness: of the strata that the model tells the thickness of.
    plan: depths of the paper's five mosaics.
    warnings: what to mind.
    attention: mean attention map of the members and tiles; None without attention.
    tiles: of the field that were seen, each by itself.
    averaged: probabilities before calibration, mean of members and tiles.
  """

  depth_um: Float[np.ndarray, "T"]
  interpretation: interpretation.Interpretation
  boundaries: list[interpretation.Boundary]
  thickness: list[interpretation.Thickness]
  plan: list[interpretation.Mosaic]
  warnings: list[StackWarning]
  attention: Float[np.ndarray, "T T"] | None
  tiles: int = 1
  averaged: Float[np.ndarray, "T C"] | None = None


class Predictor:
  """Interprets stacks with one trained model.

  Args:
    bundle: the model.
  """

  def __init__(self, bundle: bundle_lib.Bundle):
    self.bundle = bundle
    self._has_attention = bundle.description.head.attention.kind != "none"

    calibration = bundle.description.calibration
    ordered = bundle.description.head.ordered

    @jax.default_matmul_precision("highest")  # as heads are trained; a GPU would take TF32
    def interpret(features, depth_um, mask):
      """Of the stack's tiles, [n, T, F]: the whole, and the depths that each tile says."""
      by_tile = jax.lax.map(lambda tile: bundle.class_probabilities(tile, mask), features)
      whole = _mean_over_tiles(by_tile, ordered)
      found = interpretation.interpret(whole, depth_um, mask, calibration)
      of_tiles = jax.vmap(lambda p: interpretation.interpret(p, depth_um, mask, calibration))(
        by_tile
      )
      thickness = intervals.thickness_intervals_um(whole, depth_um, mask, calibration)
      slices, upright = None, jnp.inf
      if bundle.network is not None:
        slices = bundle.slice_probabilities(features[len(features) // 2])
        upright = monotone_model.order_log_odds(jnp.log(jnp.maximum(slices, 1e-30)) / _ALIKE, mask)
      attention = None
      if self._has_attention:
        attention = jax.lax.map(lambda tile: bundle.attention(tile, mask), features).mean(0)
      return found, whole, of_tiles.boundary_um[..., 1], thickness, upright, slices, attention

    self._interpret = jax.jit(interpret)

  def prepare(
    self, image: UInt8[np.ndarray, "height width"], pixel_um: float | None = None, a_side: int = 1
  ) -> UInt8[np.ndarray, "n h w"]:
    """Brings a slice to the scale that the model sees, as its training data were.

    Args:
      image: a slice.
      pixel_um: side of its pixels; None takes its square as it is.
      a_side: tiles along a side that a larger field is cut into.

    Raises:
      UserError: the model was trained on slices that are not square, and this is another size; or
        the slice shows too small a field.
    """
    height, width = self.bundle.description.image_shape
    if height == width:
      return scale_lib.tiles(image, pixel_um, self.bundle.description.scale, a_side=a_side)
    if image.shape != (height, width):
      raise UserError(
        f"slices of {image.shape[0]} x {image.shape[1]} pixels; this model was trained on "
        f"{height} x {width} and no square could be cut: resample them"
      )
    return image[None]

  def predict(
    self,
    slices: Any,
    depth_um: Any,
    advance: Callable[[int, int], None] = lambda done, total: None,
    value_range: stack_io.Range | None = None,
    pixel_um: float | int | None = None,
  ) -> Prediction:
    """Interprets one stack.

    Of a field larger than the model's, several tiles are seen, and what the heads say of them is
    averaged: probabilities of an ordered head, logarithms of others.

    Args:
      slices: gray levels of any size, uint8 [T, height, width], shallow first; or of another type
        with a `value_range`, or in colour, of which the luma is taken.
      depth_um: depth of each slice in µm, [T].
      advance: called with the slices seen and the slices in all.
      value_range: values that become 0 and 255.
      pixel_um: side of a pixel in µm; None where nobody knows.

    Raises:
      UserError: slices that the model cannot see, or too many of them; depths that are not one
        rising number a slice; a field smaller than half of the model's.
    """
    if pixel_um is not None:
      lengths.check_pixel_um("pixel_um", pixel_um)
    self.bundle.check_sees_images()
    gray = given_arrays.gray_slices(slices, value_range)
    depths = given_arrays.depths_um(depth_um, len(gray))
    length = self.bundle.padded_length(len(gray))  # refuses before the long work
    a_side = self._tiles_a_side(gray.shape[1:], pixel_um)
    views = np.stack([self.prepare(image, pixel_um, a_side) for image in gray], 1)
    tiles = len(views)
    features = np.stack(
      [
        self.bundle.features(
          tile, lambda done, total, n=n: advance(n * total + done, tiles * total)
        )
        for n, tile in enumerate(views)
      ]
    )
    centre = views[tiles // 2]
    levels = np.array([gray_levels(image) for image in centre])
    found = self.conclude(features, depths, levels, length, appearance.describe(centre))
    noted = scale_warnings(gray.shape[1:], pixel_um, self.bundle.description.scale)
    return dataclasses.replace(found, warnings=[*noted, *found.warnings], tiles=tiles)

  def predict_features(self, features: Any, depth_um: Any) -> Prediction:
    """Interprets one stack from what an encoder of its own gave, without images.

    Args:
      features: of each slice, [T, F], shallow first.
      depth_um: depth of each slice in µm, [T].

    Raises:
      UserError: not the features that the heads read, too many slices, or depths that are not one
        rising number a slice.
    """
    wanted = self.bundle.num_features
    values = np.asarray(features, np.float32)
    if values.ndim != 2 or values.shape[1] != wanted or not len(values):
      raise UserError(
        f"features of shape {values.shape}; this model reads [slices, {wanted}], those of "
        f"{self.bundle.description.encoder or 'its own CNN'}"
      )
    bad = np.flatnonzero(~np.isfinite(values).all(1))
    if bad.size:
      raise UserError(f"features of slice {bad[0]} hold NaN or infinity; encode the stack again")
    depths = given_arrays.depths_um(depth_um, len(values))
    unseen = np.full((len(values), 2), np.nan)
    return self.conclude(values[None], depths, unseen, self.bundle.padded_length(len(values)))

  def _tiles_a_side(self, shape: tuple[int, int], pixel_um: float | int | None) -> int:
    wanted = self.bundle.description.field_um
    if pixel_um is None or wanted is None:
      return 1
    return scale_lib.tile_grid(scale_lib.field_of(shape, pixel_um), wanted, MOST_TILES)

  def conclude(
    self,
    features: Float[np.ndarray, "n T F"],
    depth_um: Float[np.ndarray, "T"],
    gray: Float[np.ndarray, "T 2"],
    length: int,
    images: appearance.Images | None = None,
  ) -> Prediction:
    """Interprets a stack from the features of its tiles' slices, padded to `length`.

    Args:
      features: by tile.
      depth_um: of each slice.
      gray: mean and standard deviation of each slice's gray levels.
      length: slices with padding.
      images: one tile's, described, to judge whether the stack is like those of training; None
        leaves that out, but for a model that reads features alone.
    """
    count = features.shape[1]
    more = length - count
    padded = np.pad(features, ((0, 0), (0, more), (0, 0)))
    depths = np.pad(depth_um.astype(np.float32), (0, more))
    found, whole, of_tiles, thickness, upright, slices, attention = jax.device_get(
      self._interpret(padded, depths, np.arange(length) < count)
    )
    found = found._replace(
      probabilities=found.probabilities[:count],
      strata=found.strata[:count],
      most_probable_strata=found.most_probable_strata[:count],
    )
    description, known = self.bundle.description, self.bundle.familiar
    strata = description.strata
    named = interpretation.named_boundaries(found, depth_um, strata)
    spread = np.ptp(of_tiles, axis=0).tolist() if len(of_tiles) > 1 else [None] * len(named)
    named = [
      dataclasses.replace(b, lateral_um=lateral if b.shown else None)
      for b, lateral in zip(named, spread, strict=True)
    ]
    noted = []
    features_alone = self.bundle.network is None
    if known is not None and (images is not None or features_alone):
      of_encoder = features[len(features) // 2][:, : description.head.num_features]
      alone = None if features_alone else slices[:count]
      judged = familiarity.look(known, familiarity.Seen(images, of_encoder, alone))
      noted, upright = unfamiliar(judged), judged.upright
    warnings = [
      *noted,
      *stack_warnings(found, named, depth_um, gray, description, float(upright)),
    ]
    return Prediction(
      depth_um,
      found,
      named,
      interpretation.thicknesses(named, thickness, strata),
      interpretation.depth_plan(named, depth_um, found.strata, strata),
      warnings,
      attention[:count, :count] if self._has_attention else None,
      averaged=whole[:count],
    )


def _mean_over_tiles(probabilities: Float[Array, "n T C"], ordered: bool) -> Float[Array, "T C"]:
  if ordered:  # marginals of a mixture
    return probabilities.mean(0)
  return jax.nn.softmax(jnp.log(jnp.maximum(probabilities, 1e-30)).mean(0))


class StreamingPredictor:
  """Interprets a stack while it is acquired: every slice brings strata and plan up to date.

  All programs are compiled when it is made, so the first answer takes no longer than the others.

  Args:
    predictor: interprets stacks with the model.
    value_range: values that become 0 and 255; needed unless slices are of 8 bit.
    pixel_um: side of a pixel in µm; None where nobody knows. Of a field larger than the model's, the
      centre is seen.
  """

  def __init__(
    self,
    predictor: Predictor,
    value_range: stack_io.Range | None = None,
    pixel_um: float | int | None = None,
  ):
    if pixel_um is not None:
      lengths.check_pixel_um("pixel_um", pixel_um)
    predictor.bundle.check_sees_images()
    self._predictor = predictor
    self._value_range, self._pixel_um = value_range, pixel_um
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
    self._described: list[appearance.Images] = []
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
    found = self._extend(self._predictor.prepare(gray, self._pixel_um)[0], depth)
    self._given_shape = gray.shape
    scale = self._predictor.bundle.description.scale
    noted = scale_warnings(gray.shape, self._pixel_um, scale)
    return dataclasses.replace(found, warnings=[*noted, *found.warnings])

  def _extend(self, prepared: UInt8[np.ndarray, "h w"], depth: float) -> Prediction:
    bundle = self._predictor.bundle
    self._slices.append(prepared)
    self._gray.append(gray_levels(prepared))
    self._depth_um.append(depth)
    count = len(self._slices)
    if count > self._length:
      self._length *= 2
    alike = appearance.alike(np.stack(self._slices[-2:]))
    self._described.append(appearance.describe(prepared[None])._replace(alike=alike))
    near = np.stack(self._slices[-2 * self._revised :])
    rows = np.maximum(np.arange(-self._revised, 0) + len(near), 0)
    seen = np.asarray(bundle.see(bundle_lib.neighbours(near, rows, bundle.context)))
    revised = min(self._revised, count)
    self._features = np.concatenate([self._features[: count - revised], seen[-revised:]])
    return self._predictor.conclude(
      self._features[None],
      np.array(self._depth_um),
      np.array(self._gray),
      self._length,
      appearance.join(self._described) if count >= _LEAST_JUDGED else None,
    )
