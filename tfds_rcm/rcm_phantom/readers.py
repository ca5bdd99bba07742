"""Which slices a stack has, and what two imperfect readers call them.

A reader sees rings and holes, not a surface: a slice is in the junction where papillae are cut, so
each place of the field is judged over the width of a papilla. Numbers without a source are choices.
"""

from __future__ import annotations

import dataclasses

from jaxtyping import Float, Int
import numpy as np

from tfds_rcm.rcm_phantom import anatomy as anatomy_lib
from tfds_rcm.rcm_phantom import relief as relief_lib
from tfds_rcm.rcm_phantom import spec

_TILE_UM = 63.0  # about half the spacing of papillae: what an eye takes in as one place
_TILE_POINTS = 6  # a side
_AXIS_UM = np.arange(0.0, 420.0)  # deeper than any stack

# A place is junction while this share of its area is dermis.
_FIRST_DERMIS, _LAST_EPIDERMIS = 0.06, 0.93

# Standard deviations of a reader's errors of depth in µm, at epidermis–DEJ and at DEJ–dermis: the
# latter is fuzzier and "partially subjective, even for expert readers" (paper, Discussion).
_POOL_SIZE = 6
_READER_BIAS_UM = np.array([2.5, 4.0])
_STACK_ERROR_UM = np.array([8.0, 12.0])
_SLICE_ERROR_UM = 1.2


@dataclasses.dataclass(frozen=True)
class Plan:
  """The slices of one stack.

  Attributes:
    start_um: depth of the first slice below the true first contact: operators set their zero by
      eye, on the first image that shows skin.
    depth_um: below the first slice.
    labels: indices into `tfds_rcm.record.LABELS`.
  """

  start_um: float
  depth_um: Float[np.ndarray, " T"]
  labels: Int[np.ndarray, " T"]

  def __len__(self) -> int:
    return len(self.labels)


@dataclasses.dataclass(frozen=True)
class Profile:
  """Shares of the field's area as functions of depth, every µm from 0 on.

  Attributes:
    corneum: at or above the bottom of the stratum corneum.
    epidermis: places that are epidermis, corneum included.
    dermis: places that are dermis; the rest is junction.
  """

  corneum: Float[np.ndarray, " Z"]
  epidermis: Float[np.ndarray, " Z"]
  dermis: Float[np.ndarray, " Z"]


def stratum_profile(phantom: spec.Phantom, anatomy: anatomy_lib.Anatomy) -> Profile:
  """Measures a stack's geometry, without rendering it."""
  field_um = phantom.size_px * phantom.pixel_um
  tiles = max(1, round(field_um / _TILE_UM))
  count = tiles * _TILE_POINTS
  axis = (np.arange(count) + 0.5) * field_um / count
  relief = relief_lib.make_relief(anatomy, axis, axis)
  places = relief.junction.reshape(tiles, _TILE_POINTS, tiles, _TILE_POINTS)
  places = places.transpose(0, 2, 1, 3).reshape(tiles * tiles, -1)
  # The depths at which a place's share of dermis passes the two thresholds.
  first = np.quantile(places, _FIRST_DERMIS, axis=1)
  last = np.quantile(places, _LAST_EPIDERMIS, axis=1)
  bottom = np.quantile(relief.surface + relief.corneum, np.linspace(0, 1, 33))
  return Profile(
    corneum=_share_below(bottom),
    epidermis=_share_below(first),
    dermis=1 - _share_below(last),
  )


def _share_below(depths: np.ndarray) -> np.ndarray:
  """Returns the share of depths at or below each point of the axis, steps rounded off."""
  return np.mean(1 / (1 + np.exp((_AXIS_UM[:, None] - depths) / 1.5)), axis=1)


def plan_stack(phantom: spec.Phantom, anatomy: anatomy_lib.Anatomy) -> Plan:
  """Decides a stack's depths and labels."""
  profile = stratum_profile(phantom, anatomy)
  start_um, depth_um = _slice_depths(phantom, anatomy, profile)
  return Plan(start_um, depth_um, _consensus(phantom, anatomy, profile, start_um + depth_um))


def _slice_depths(
  phantom: spec.Phantom, anatomy: anatomy_lib.Anatomy, profile: Profile
) -> tuple[float, np.ndarray]:
  """Draws where the stack starts and ends: a while after dermis fills the field, seldom before."""
  rng = anatomy.generator("length")
  start_um = rng.uniform(0, 9)
  dermis_um = float(np.interp(0.5, profile.dermis, _AXIS_UM)) - start_um
  step = phantom.depth_step_um
  if anatomy.overlong:
    last_um = phantom.max_depth_um * 100 / 70
  else:
    last_um = min(dermis_um + rng.gamma(2.5, 14.5) - 8.0, phantom.max_depth_um)
  return start_um, np.arange(max(round(last_um / step), 12) + 1) * np.float64(step)


def _consensus(
  phantom: spec.Phantom, anatomy: anatomy_lib.Anatomy, profile: Profile, depth_um: np.ndarray
) -> np.ndarray:
  """Labels slices by the stratum of the largest area, averaged over two readers.

  A reader judges the areas of a depth that is off by the reader's own bias, by an error for the
  stack and by a small one for the slice; the first two differ by boundary. The last makes labels
  step back now and then near a boundary, as readers who label slice by slice do; nothing else
  is done for or against monotone labels.
  """
  scale = phantom.reader_disagreement
  pool = np.random.default_rng([phantom.seed, *b"readers"])
  biases = pool.normal(0, 1, (_POOL_SIZE, 2)) * _READER_BIAS_UM
  rng = anatomy.generator("labels")
  areas = np.zeros((3, len(depth_um)))
  corneum = np.zeros(len(depth_um))
  for reader in rng.choice(_POOL_SIZE, 2, replace=False):
    offsets = scale * (biases[reader] + rng.normal(0, 1, 2) * _STACK_ERROR_UM)
    seen_um = depth_um + scale * rng.normal(0, _SLICE_ERROR_UM, len(depth_um))
    epidermis = np.interp(seen_um + offsets[0], _AXIS_UM, profile.epidermis)
    dermis = np.interp(seen_um + offsets[1], _AXIS_UM, profile.dermis)
    areas += np.stack([epidermis, 1 - epidermis - dermis, dermis])
    corneum += np.interp(seen_um, _AXIS_UM, profile.corneum) / 2
  strata = np.argmax(areas, axis=0)
  return np.where((strata == 0) & (corneum > 0.5), 0, strata + 1)
