"""Random views of training slices, drawn on the device (Methods, "Experiments")."""

from __future__ import annotations

from collections.abc import Mapping
import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
from jax.scipy.ndimage import map_coordinates
from jaxtyping import Array, Float, Key, UInt8

from rcm_jax.cnn.photometry import Photometry, disturb


@dataclasses.dataclass(frozen=True)
class Augmentation:
  """How far a view may go; the paper names the operations, the ranges are our choice.

  Attributes:
    rotate_degrees: rotation to either side.
    shear: horizontal displacement per unit of height, to either side.
    zoom: largest magnification; 1 is none.
    stretch: largest ratio of the two axes' magnifications; 1 is none.
    flip: whether to mirror horizontally and vertically, each half of the time.
    resampled: share of views that are rotated, sheared, zoomed or stretched at all.
      Interpolation smooths the speckle, so a network that saw resampled slices alone
      would meet another texture in the slices themselves.
    photometry: what happens to gray levels.
  """

  rotate_degrees: float = 180.0
  shear: float = 0.15
  zoom: float = 1.3
  stretch: float = 1.15
  flip: bool = True
  resampled: float = 0.5
  photometry: Photometry = dataclasses.field(default_factory=Photometry)


def augmentation_of(fields: Mapping[str, Any]) -> Augmentation:
  """Returns the ranges that `config.augmentation`, or `dataclasses.asdict`, has as fields."""
  photometry = fields.get("photometry", {})
  return Augmentation(**{**fields, "photometry": Photometry(**photometry)})


def view_matrix(key: Key[Array, ""], ranges: Augmentation) -> Float[Array, "2 2"]:
  """Draws the matrix that maps a view's (row, column), from the centre, into the image's."""
  rotate, shear, zoom, stretch, flip, chance = jax.random.split(key, 6)
  angle = jnp.deg2rad(ranges.rotate_degrees) * jax.random.uniform(rotate, minval=-1.0)
  cosine, sine = jnp.cos(angle), jnp.sin(angle)
  rotation = jnp.array([[cosine, -sine], [sine, cosine]])
  slant = jnp.array([[1.0, 0.0], [ranges.shear, 0.0]]) * jax.random.uniform(shear, minval=-1.0)
  sheared = jnp.eye(2) + slant.at[0, 0].set(0.0)
  magnified = ranges.zoom ** jax.random.uniform(zoom)
  ratio = ranges.stretch ** (0.5 * jax.random.uniform(stretch, minval=-1.0))
  scale = jnp.diag(jnp.array([ratio, 1.0 / ratio]) / magnified)
  signs = jnp.where(jax.random.bernoulli(flip, shape=(2,)) & ranges.flip, -1.0, 1.0)
  resampled = jax.random.bernoulli(chance, ranges.resampled)
  return jnp.where(resampled, rotation @ sheared @ scale, jnp.eye(2)) * signs


def augment(
  key: Key[Array, ""], slices: UInt8[Array, "B height width C"], ranges: Augmentation
) -> Float[Array, "B height width C"]:
  """Returns one random view of each slice in gray levels, mirrored beyond the borders.

  Args:
    key: random key of the batch.
    slices: gray levels; channels are views of the same place and move together.
    ranges: how far a view may go.
  """
  return views(jax.random.split(key, slices.shape[0]), slices, ranges)


def views(
  keys: Key[Array, "B"], slices: UInt8[Array, "B height width C"], ranges: Augmentation
) -> Float[Array, "B height width C"]:
  """The same with a key for each slice, so that a share of a batch is viewed as in the whole."""
  _, height, width, _ = slices.shape
  rows = jnp.arange(height) - (height - 1) / 2
  columns = jnp.arange(width) - (width - 1) / 2
  grid = jnp.stack(jnp.meshgrid(rows, columns, indexing="ij"))
  centre = jnp.array([(height - 1) / 2, (width - 1) / 2])[:, None, None]

  def view(key, image):
    where = jnp.tensordot(view_matrix(key, ranges), grid, 1) + centre
    channel = lambda plane: map_coordinates(plane, list(where), order=1, mode="mirror")
    seen = jax.vmap(channel, in_axes=-1, out_axes=-1)(image.astype(jnp.float32))
    if not ranges.photometry.share:
      return seen
    return disturb(jax.random.fold_in(key, 1), seen, ranges.photometry)

  return jax.vmap(view)(keys, slices)
