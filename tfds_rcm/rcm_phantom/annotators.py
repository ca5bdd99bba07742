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

_TILE_UM = 96.0  # a papilla and its ring: what an eye takes in as one place
_TILE_POINTS = 9  # a side
_AXIS_UM = np.arange(0.0, 420.0)  # deeper than any stack

# A place is junction while this share of its area is dermis.
_FIRST_DERMIS, _LAST_EPIDERMIS = 0.06, 0.93

# Standard deviations of a reader's errors of depth in µm, at epidermis–DEJ and at DEJ–dermis. No
# study of agreement on the strata of stacks was found. What is known: agreement falls with depth
# (Pellacani 2009, 10.1001/archdermatol.2009.228), the lower boundary is "partially subjective, even
# for expert readers" (paper, Discussion), and the best methods come within 5.8 and 8.9 µm and 88 %
# of experts' labels (paper, Tables 1 and 3). So errors of two readers' consensus stay below that
# ceiling, at some 4.5 µm on average; how they divide is a choice.
_POOL_SIZE = 6
_READER_BIAS_UM = np.array([2.0, 3.0])  # one reader's habit
_STACK_ERROR_UM = np.array([6.0, 9.5])  # in one stack
_SHARED = 0.5  # of the variance of an error in a stack: what misleads one misleads the other
# Along a stack errors wander, so that a boundary is not drawn where each slice alone would have it.
_DRIFT_UM = 2.0
_DRIFT_LENGTH_UM = 15.0
_SLICE_ERROR_UM = 0.8
_LESION = {"none": 1.0, "nevus": 1.25, "melanoma": 1.6}  # lesions lack what readers go by

# Where stacks start and end. Operators set zero by eye, near the first image that shows skin, and
# end where they like: 42 slices of 3 µm on average and at most 71 in the paper.
_START_UM = (3.0, 16.0)
_LAST_UM = (128.0, 34.0)


@dataclasses.dataclass(frozen=True)
class Plan:
  """The slices of one stack.

  Attributes:
    start_um: depth of the first slice below the window; negative in the gel before it: operators set their zero by
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
  start_um, depth_um = _slice_depths(phantom, anatomy)
  return Plan(start_um, depth_um, _consensus(phantom, anatomy, profile, start_um + depth_um))


def _slice_depths(phantom: spec.Phantom, anatomy: anatomy_lib.Anatomy) -> tuple[float, np.ndarray]:
  """Draws where the stack starts and ends: neither knows where the boundaries are.

  Otherwise a method that sees whole stacks, and counts slices from the end, need not look at them.
  """
  rng = anatomy.generator("length")
  start_um = float(np.clip(rng.normal(*_START_UM), -20.0, 40.0))
  step = phantom.depth_step_um
  last_um = float(np.clip(rng.normal(*_LAST_UM), 45.0, phantom.max_depth_um))
  if anatomy.overlong:
    last_um = phantom.max_depth_um * 100 / 70
  return start_um, np.arange(round(last_um / step) + 1) * np.float64(step)


def _consensus(
  phantom: spec.Phantom, anatomy: anatomy_lib.Anatomy, profile: Profile, depth_um: np.ndarray
) -> np.ndarray:
  """Labels slices by the stratum of the largest area, averaged over two readers."""
  return _largest(np.mean(_readings(phantom, anatomy, profile, depth_um), axis=0))


def reader_labels(
  phantom: spec.Phantom, anatomy: anatomy_lib.Anatomy, plan: Plan
) -> Int[np.ndarray, "2 T"]:
  """Returns what each of a stack's two readers alone would call its slices."""
  profile = stratum_profile(phantom, anatomy)
  readings = _readings(phantom, anatomy, profile, plan.start_um + plan.depth_um)
  return np.stack([_largest(areas) for areas in readings])


def _largest(areas: Float[np.ndarray, "4 T"]) -> np.ndarray:
  """Names slices by their areas of epidermis, junction and dermis, and by that of corneum."""
  strata = np.argmax(areas[:3], axis=0)
  return np.where((strata == 0) & (areas[3] > 0.5), 0, strata + 1)


def _readings(
  phantom: spec.Phantom, anatomy: anatomy_lib.Anatomy, profile: Profile, depth_um: np.ndarray
) -> Float[np.ndarray, "2 4 T"]:
  """Returns the areas of epidermis, junction, dermis and corneum that two readers see.

  A reader judges the areas of a depth that is off by the reader's own bias, by an error for the
  stack of which a part is both readers', by one that wanders along the stack and by a small one
  for the slice. The last makes labels step back now and then near a boundary, as readers who label
  slice by slice do; nothing else is done for or against monotone labels.
  """
  scale = phantom.reader_disagreement
  pool = np.random.default_rng([phantom.seed, *b"readers"])
  biases = pool.normal(0, 1, (_POOL_SIZE, 2)) * _READER_BIAS_UM
  rng = anatomy.generator("labels")
  step_um = np.diff(depth_um, prepend=depth_um[0])
  both = rng.normal(0, 1, 2)
  readings = []
  for reader in rng.choice(_POOL_SIZE, 2, replace=False):
    own = np.sqrt(_SHARED) * both + np.sqrt(1 - _SHARED) * rng.normal(0, 1, 2)
    offsets = biases[reader] + own * _STACK_ERROR_UM * _LESION[anatomy.lesion]
    drift = rng.normal(0, _SLICE_ERROR_UM, len(depth_um)) + _wandering(rng, step_um)
    seen_um = depth_um + scale * drift
    epidermis = np.interp(seen_um + scale * offsets[0], _AXIS_UM, profile.epidermis)
    dermis = np.interp(seen_um + scale * offsets[1], _AXIS_UM, profile.dermis)
    corneum = np.interp(seen_um, _AXIS_UM, profile.corneum)
    # Shifted apart, the two areas could overlap: junction is what is left.
    junction = np.maximum(1 - epidermis - dermis, 0.0)
    readings.append([epidermis, junction, dermis, corneum])
  return np.array(readings)


def _wandering(rng: np.random.Generator, step_um: np.ndarray) -> np.ndarray:
  """Draws an error whose correlation falls to 1/e over `_DRIFT_LENGTH_UM` of depth."""
  kept = np.exp(-step_um / _DRIFT_LENGTH_UM)
  fresh = rng.normal(0, _DRIFT_UM, len(step_um))
  error = fresh.copy()
  for index in range(1, len(error)):
    error[index] = kept[index] * error[index - 1] + np.sqrt(1 - kept[index] ** 2) * fresh[index]
  return error
