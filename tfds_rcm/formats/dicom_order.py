"""The order and depth of DICOM slices, from whatever their headers tell of them."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
import dataclasses
import itertools
import os

import numpy as np
import pydicom

from tfds_rcm.errors import UserError

_UM_PER_MM = 1000.0
_SAME_NORMAL = 1e-3  # of a unit vector: writers round to three to six digits


@dataclasses.dataclass(frozen=True)
class Slice:
  """A frame and where its attributes are found.

  Attributes:
    place: for messages.
    header: the file's dataset.
    groups: the frame's own functional groups, then those that all frames share.
  """

  place: str | os.PathLike[str]
  header: pydicom.Dataset
  groups: tuple[pydicom.Dataset, ...] = ()

  def get(self, keyword: str):
    """The attribute's first value in the frame's groups, those that are shared, the header."""
    found = (nested(group, keyword) for group in self.groups)
    return next((v for v in found if v is not None), nested(self.header, keyword, deep=False))


@dataclasses.dataclass(frozen=True)
class _Source:
  """One attribute of all slices.

  Attributes:
    name: of the attribute.
    values: of each slice, in µm or as a number; NaN where a slice does not tell.
    is_length: True for µm.
    from_surface: True for µm below the tissue's surface; other lengths may run either way.
  """

  name: str
  values: np.ndarray
  is_length: bool = False
  from_surface: bool = False

  @property
  def tells(self) -> bool:
    """True if it has a value of each slice, and not the same of all."""
    return bool(np.isfinite(self.values).all() and np.ptp(self.values) > 0)


@dataclasses.dataclass(frozen=True)
class Arrangement:
  """Slices from shallow to deep.

  Attributes:
    order: numbers of the slices as they came; None if no attribute tells.
    depth_um: depth of each slice in this order, if told.
    no_depth: why it is not, the end of a message.
  """

  order: list[int] | None
  depth_um: np.ndarray | None
  no_depth: str = "the files do not tell their depth"


def slices_of(path: str | os.PathLike[str], header: pydicom.Dataset, count: int) -> list[Slice]:
  """The frames of one file, in stored order."""
  shared = tuple(header.get("SharedFunctionalGroupsSequence") or ())[:1]
  frames = list(header.get("PerFrameFunctionalGroupsSequence") or ())
  if len(frames) != count:
    frames = [pydicom.Dataset()] * count
  place = (lambda i: path) if count == 1 else (lambda i: f"{path} frame {i + 1}")
  return [Slice(place(i), header, (frame, *shared)) for i, frame in enumerate(frames)]


def arrange(slices: Sequence[Slice], fallback: Sequence[int] | None = None) -> Arrangement:
  """Finds the order of slices, and their depth.

  The first attribute counts that all slices have and that is not the same in all of them:
  Image Acquisition Depth (0048,0117), Image Position (Patient) along the normal, Slice
  Location, Z Offset in Slide Coordinate System, then In-Stack Position Number and Instance
  Number. The others must not contradict it. Image Acquisition Depth runs from the surface;
  the other lengths are taken to grow downwards, and the shallowest slice lies at 0.

  Args:
    slices: in any order.
    fallback: the order if no attribute tells, None to have none.

  Raises:
    UserError: if two slices share a place, or two attributes disagree.
  """
  sources = [source for source in _sources(slices) if np.isfinite(source.values).any()]
  telling = [source for source in sources if source.tells]
  if telling:
    order = np.argsort(telling[0].values, kind="stable").tolist()
    _check_doubles(slices, telling[0], order)
    if not telling[0].is_length:
      _check_gaps(slices, telling[0], order)
  elif fallback is None:
    return Arrangement(None, None)
  else:
    order = list(fallback)
  main = telling[0] if telling else _Source("the order of names or frames", np.empty(0))
  for other in sources:
    if other is not main:
      _check_agreement(slices, order, main, other)
  return _with_depth(slices, order, sources, telling)


def _with_depth(
  slices: Sequence[Slice], order: list[int], sources: list[_Source], telling: list[_Source]
) -> Arrangement:
  told = [source for source in telling if source.is_length]
  surface = next(
    (s.values for s in sources if s.from_surface and np.isfinite(s.values).all()), None
  )
  if len(slices) == 1:
    return Arrangement(order, surface)
  depths = {source.name: source.values[order] for source in told}
  spacing = _common([s.get("SpacingBetweenSlices") for s in slices])
  if spacing:
    # Its sign, where an object has one, tells the direction of the normal.
    depths["Spacing Between Slices"] = abs(spacing) * _UM_PER_MM * np.arange(len(slices))
  if not depths:
    return Arrangement(order, None)
  (name, first), *others = depths.items()
  steps = np.abs(np.diff(first))
  for other, values in others:
    apart = np.abs(np.abs(np.diff(values)) - steps)
    if apart.max() > np.median(steps) / 2:
      at = int(apart.argmax())
      return Arrangement(
        order,
        None,
        f"after {slices[order[at]].place} {name} tells a step of {steps[at]:.6g} µm, {other} one "
        f"of {abs(np.diff(values)[at]):.6g} µm; mend one of the two",
      )
  if not (told and told[0].from_surface):
    start = float(surface.min()) if surface is not None else 0.0
    first = first - first[0] + start
  return Arrangement(order, first)


def _sources(slices: Sequence[Slice]) -> Iterable[_Source]:
  def values(keyword: str, scale: float = 1.0) -> np.ndarray:
    return np.array([_number(s, keyword, s.get(keyword)) * scale for s in slices])

  yield _Source("Image Acquisition Depth", values("ImageAcquisitionDepth", _UM_PER_MM), True, True)
  yield _Source("Image Position (Patient)", _along_normal(slices) * _UM_PER_MM, True)
  location = values("SliceLocation", _UM_PER_MM)
  vector = slices[0].header.get("SliceLocationVector")
  if vector is not None and np.size(vector) == len(slices):
    location = np.asarray(vector, np.float64) * _UM_PER_MM
  yield _Source("Slice Location", location, True)
  # In µm already, unlike the two other offsets.
  yield _Source(
    "Z Offset in Slide Coordinate System", values("ZOffsetInSlideCoordinateSystem"), True
  )
  yield _Source("In-Stack Position Number", values("InStackPositionNumber"))
  yield _Source("Instance Number", values("InstanceNumber"))


def _along_normal(slices: Sequence[Slice]) -> np.ndarray:
  """Image Position (Patient) along the images' common normal, in mm."""
  positions = [s.get("ImagePositionPatient") for s in slices]
  planes = [s.get("ImageOrientationPatient") for s in slices]
  normals, along = [], []
  for s, position, plane in zip(slices, positions, planes):
    if position is None or plane is None:
      along.append(np.nan)
      continue
    position, plane = np.asarray(position, np.float64), np.asarray(plane, np.float64)
    if position.shape != (3,) or plane.shape != (6,):
      raise UserError(f"{s.place}: Image Position or Orientation (Patient) is not 3 or 6 numbers")
    normal = np.cross(plane[:3], plane[3:])
    length = np.linalg.norm(normal)
    if not length > 0.5:
      raise UserError(f"{s.place}: Image Orientation (Patient) spans no plane; export it again")
    normals.append(normal / length)
    if np.abs(normals[-1] - normals[0]).max() > _SAME_NORMAL:
      raise UserError(
        f"{s.place}: lies in another plane than the first slice (Image Orientation (Patient)); "
        "keep the slices of one stack"
      )
    along.append(position @ normals[0])
  if not normals and all(p is not None for p in positions):
    return _along_line(np.array([np.asarray(p, np.float64) for p in positions]))
  return np.array(along)


def _along_line(positions: np.ndarray) -> np.ndarray:
  """Positions along the one axis in which they differ; NaN if there are several."""
  moving = np.flatnonzero(np.ptp(positions, axis=0) > 0) if positions.shape[1:] == (3,) else ()
  return positions[:, moving[0]] if len(moving) == 1 else np.full(len(positions), np.nan)


def _number(s: Slice, keyword: str, value) -> float:
  if value is None:
    return np.nan
  if not np.isfinite(number := float(value)):
    raise UserError(f"{s.place}: {keyword} is {value}, expected a number; mend it")
  return number


def _check_doubles(slices: Sequence[Slice], source: _Source, order: list[int]) -> None:
  for before, after in itertools.pairwise(order):
    if source.values[before] == source.values[after]:
      raise UserError(
        f"{slices[after].place}: same {source.name} as {_short(slices[before])}; remove one"
      )


def _check_gaps(slices: Sequence[Slice], source: _Source, order: list[int]) -> None:
  steps = np.diff(source.values[order])
  for at in np.flatnonzero(steps != np.median(steps)):
    raise UserError(
      f"{slices[order[at + 1]].place}: gap in {source.name} after {_short(slices[order[at]])}; "
      "restore the slice"
    )


def _check_agreement(
  slices: Sequence[Slice], order: list[int], main: _Source, other: _Source
) -> None:
  known = [i for i in order if np.isfinite(other.values[i])]
  steps = np.diff(other.values[known])
  # A stack may be taken from below, and a normal point out of the tissue: only depth below
  # the surface tells its own direction.
  if (steps >= 0).all() or (main.from_surface and (steps <= 0).all()):
    return
  wrong = int(np.argmax(steps < 0))
  before, after = known[wrong], known[wrong + 1]
  raise UserError(
    f"{slices[after].place}: comes after {_short(slices[before])} by {main.name}, before it by "
    f"{other.name}; mend or remove one of the two tags"
  )


def _short(s: Slice) -> str:
  return os.path.basename(os.fspath(s.place))


def _common(values: Sequence) -> float | None:
  """The one number that all slices tell."""
  found = {None if v is None else float(v) for v in values}
  return found.pop() if len(found) == 1 else None


def nested(dataset: pydicom.Dataset, keyword: str, *, deep: bool = True):
  """The first value of an attribute in a dataset or, if deep, the sequences inside it."""
  value = dataset.get(keyword)
  if value not in (None, ""):
    return value
  for element in dataset if deep else ():
    if element.VR == "SQ" and element.keyword != "PerFrameFunctionalGroupsSequence":
      for item in element.value:
        value = nested(item, keyword)
        if value is not None:
          return value
  return None
