"""One file that holds the features of all slices: heads are trained from it, and read stacks by it.

An .npz without pickles, one row a slice in every array, stack after stack, shallow to deep; any tool
can write it (docs/encoders.md). Our own CNN's features are written so by configs/features.py.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
import itertools
import pathlib
from typing import Any, NamedTuple
import zipfile

from jaxtyping import Float
import numpy as np

from rcm_jax import anatomy
from rcm_jax.data import feature_file_1
from rcm_jax.data import slices as slices_lib
from rcm_jax.data.scale import Scale
from tfds_rcm.errors import UserError, nearest
from tfds_rcm.study.splits import SPLITS

NAME = "features.npz"
READING = ("features", "stack", "depth_um")  # what reading stacks needs
TRAINING = (*READING, "label", "patient", "split")  # what training needs
_TEXTS = ("stack", "label", "patient", "split")
_ABOUT = ("encoder", "dataset", "sources", "seed", "image_size", "field_um", "strata")


class FeatureFile(NamedTuple):
  """What a file holds.

  Attributes:
    dataset: name of the data that the features are of.
    method: of the encoder; of a CNN of ours, as results.json calls it.
    seed: of the encoder.
    splits: stacks by split; their images are empty.
    values: (split, "features", and where there are any "probabilities") → one row a slice.
    scale: what the encoder saw of a slice; 0 pixels in files that do not tell.
    sources: the data sets that the stacks come from.
  """

  dataset: str
  method: str
  seed: int
  splits: dict[str, slices_lib.Slices]
  values: dict[tuple[str, str], np.ndarray]
  scale: Scale
  sources: tuple[str, ...]

  @property
  def num_features(self) -> int:
    """F of a slice."""
    return self.values["train", "features"].shape[1]


class EncodedStack(NamedTuple):
  """One stack of a file, to be read.

  Attributes:
    name: of the stack.
    features: of each slice, shallow first.
    depth_um: of each slice.
  """

  name: str
  features: Float[np.ndarray, "T F"]
  depth_um: Float[np.ndarray, "T"]


def save(
  path: pathlib.Path,
  splits: Mapping[str, slices_lib.Slices],
  value_of: Callable[[str, str], np.ndarray],
  *,
  dataset: str,
  method: str,
  seed: int,
  sources: tuple[str, ...],
) -> None:
  """Writes a file that is either whole or absent.

  Args:
    path: of the .npz.
    splits: stacks by split.
    value_of: (split, "features" or "probabilities") → one row a slice.
    dataset: see `FeatureFile`.
    method: see `FeatureFile`.
    seed: see `FeatureFile`.
    sources: see `FeatureFile`.
  """
  parts: dict[str, list[Any]] = {name: [] for name in (*TRAINING, "probabilities")}
  for name, split in splits.items():
    parts["features"].append(value_of(name, "features").astype(np.float16))
    parts["probabilities"].append(value_of(name, "probabilities").astype(np.float16))
    parts["stack"].append(np.array(split.stack_id)[split.stack])
    parts["patient"].append(np.array(split.patient_id)[split.stack])
    parts["depth_um"].append(split.depth_um)
    parts["label"].append(np.array(split.strata.names)[split.labels])
    parts["split"].append(np.full(len(split), name))
  scale = splits["test"].scale
  about = {"encoder": method, "dataset": dataset, "seed": seed, "sources": list(sources)}
  about |= {"image_size": scale.image_size, "strata": list(splits["test"].strata.names)}
  if scale.field_um is not None:
    about["field_um"] = scale.field_um
  part = path.with_name(f".{path.name}.part")
  with part.open("wb") as file:
    np.savez_compressed(file, **{k: np.concatenate(v) for k, v in parts.items()}, **about)
  part.replace(path)


def load(path: str, option: str = "config.features.file") -> FeatureFile:
  """Reads a file that heads are to be trained on.

  Raises:
    UserError: there is no such file, or it is not whole or not of this kind; names the array and
      the row, counted from 0.
  """
  place = f"{option}: {path}"
  found = _read(path, place, TRAINING)
  if "about" in found:
    try:
      return FeatureFile(*feature_file_1.unpack(found))
    except (ValueError, KeyError, TypeError) as error:
      raise UserError(
        f"{place}: not a whole file of features ({error}); make it again with "
        "--config=configs/features.py"
      ) from error
  starts = _starts(found, place)
  for name in ("patient", "split"):
    _check_one_a_stack(found, name, starts, place)
  about = _about(found, place)
  strata = about["strata"]
  labels = _labels(found["label"], strata, place)
  probabilities = _probabilities(found, len(strata), place)
  _check_splits(found, place)
  splits, values = {}, {}
  for name in SPLITS:
    rows = found["split"] == name
    heads = [start for start in starts if rows[start]]
    stack_id = tuple(found["stack"][heads].tolist())
    place_of = {stack: i for i, stack in enumerate(stack_id)}
    splits[name] = slices_lib.Slices(
      slices=np.empty((int(rows.sum()), 0, 0), np.uint8),
      labels=labels[rows],
      depth_um=found["depth_um"][rows].astype(np.float32),
      stack=np.array([place_of[stack] for stack in found["stack"][rows].tolist()]),
      stack_id=stack_id,
      patient_id=tuple(found["patient"][heads].tolist()),
      strata=strata,
    )
    values[name, "features"] = found["features"][rows]
    if probabilities is not None:
      values[name, "probabilities"] = probabilities[rows]
  dataset = str(about.get("dataset", pathlib.Path(path).stem))
  field = about.get("field_um")
  return FeatureFile(
    dataset,
    encoder_of(found),
    int(about.get("seed", 0)),
    splits,
    values,
    Scale(int(about.get("image_size", 0)), None if field is None else float(field)),
    tuple(np.atleast_1d(about.get("sources", dataset)).tolist()),
  )


def load_stacks(path: str, option: str = "--features") -> tuple[str, list[EncodedStack]]:
  """Reads the stacks of a file, to be interpreted; returns the encoder's name and the stacks.

  Raises:
    UserError: see `load`. Labels, patients and splits may be missing, and are not looked at.
  """
  place = f"{option}: {path}"
  found = _read(path, place, READING)
  if "about" in found:
    raise UserError(f"{place}: of version 0.1; make it again with --config=configs/features.py")
  ends = [*_starts(found, place), len(found["stack"])]
  return encoder_of(found), [
    EncodedStack(
      str(found["stack"][a]),
      found["features"][a:b].astype(np.float32),
      found["depth_um"][a:b].astype(np.float32),
    )
    for a, b in itertools.pairwise(ends)
  ]


def encoder_of(found: Mapping[str, np.ndarray]) -> str:
  """Returns the name of what made the features."""
  return str(found.get("encoder", "an encoder without a name"))


def _read(path: str, place: str, needed: tuple[str, ...]) -> dict[str, np.ndarray]:
  """Returns a file's arrays, of the right kinds and as many rows as each other."""
  try:
    with open(path, "rb") as file, np.load(file, allow_pickle=False) as stored:
      found = {name: stored[name] for name in stored.files}
  except FileNotFoundError as error:
    raise UserError(f"{place}: no such file") from error
  except (OSError, ValueError, KeyError, EOFError, AttributeError, zipfile.BadZipFile) as error:
    advice = (
      "write texts as plain arrays of str" if "Object arrays" in str(error) else "make it again"
    )
    raise UserError(f"{place}: not a whole file of features ({error}); {advice}") from error
  if "about" in found:
    return found
  for name in needed:
    if name not in found:
      raise UserError(
        f"{place}: no array '{name}'{nearest(name, set(found) - set(needed))}; needed are "
        f"{', '.join(needed)}, see docs/encoders.md"
      )
  features = found["features"]
  if features.ndim != 2 or features.dtype.kind != "f" or not features.size:
    raise UserError(
      f"{place}: features are {features.dtype} of shape {features.shape}; expected floats, [slices, F]"
    )
  count = len(features)
  for name in (*needed, "probabilities"):
    values = found.get(name)
    if values is None or name == "features":
      continue
    shape = (count, values.shape[-1]) if name == "probabilities" and values.ndim == 2 else (count,)
    if values.shape != shape:
      raise UserError(f"{place}: {name} has shape {values.shape}; expected {shape}, a row a slice")
    if name in _TEXTS:
      found[name] = values.astype(str) if values.dtype.kind != "S" else np.char.decode(values)
    elif values.dtype.kind not in "fiu":
      raise UserError(f"{place}: {name} are {values.dtype}; expected numbers")
  return found


def _starts(found: Mapping[str, np.ndarray], place: str) -> list[int]:
  """First row of each stack, after a look at names, depths and features."""
  stack, depth_um = found["stack"], found["depth_um"].astype(np.float64)
  bad = np.flatnonzero(~np.isfinite(found["features"]).all(1) | ~np.isfinite(depth_um))
  if bad.size:
    raise UserError(
      f"{place}: row {bad[0]} (stack {stack[bad[0]]}): features or depth are no numbers; encode the "
      "stack again"
    )
  new = np.flatnonzero(np.concatenate([[True], stack[1:] != stack[:-1]])).tolist()
  seen: dict[str, int] = {}
  for start in new:
    name = str(stack[start])
    if not name or name in seen:
      what = "has no name" if not name else f"is that of row {seen[name]} again"
      raise UserError(
        f"{place}: stack of row {start} {what}; a stack's slices stand together, under one name"
      )
    seen[name] = start
  flat = np.flatnonzero((np.diff(depth_um.astype(np.float32)) <= 0) & (stack[1:] == stack[:-1]))
  if flat.size:
    row = int(flat[0]) + 1
    raise UserError(
      f"{place}: depth_um of row {row} (stack {stack[row]}) is {depth_um[row]:g}, not below the "
      f"{depth_um[row - 1]:g} before it; order slices shallow to deep"
    )
  return new


def _check_one_a_stack(
  found: Mapping[str, np.ndarray], name: str, starts: list[int], place: str
) -> None:
  values, stack = found[name], found["stack"]
  first = values[np.repeat(starts, np.diff([*starts, len(stack)]))]
  bad = np.flatnonzero((values != first) | (values == ""))
  if bad.size:
    row = bad[0]
    raise UserError(
      f"{place}: {name} of row {row} is '{values[row]}', that of its stack {stack[row]} '{first[row]}'; "
      "expected one for all its slices"
    )


def _check_splits(found: Mapping[str, np.ndarray], place: str) -> None:
  split_of: dict[str, str] = {}
  pairs = zip(found["patient"].tolist(), found["split"].tolist())
  for row, (patient, split) in enumerate(pairs):
    if split not in SPLITS:
      raise UserError(
        f"{place}: split of row {row} is '{split}', none of {', '.join(SPLITS)}{nearest(split, SPLITS)}"
      )
    if split_of.setdefault(patient, split) != split:
      raise UserError(
        f"{place}: patient {patient} is in {split_of[patient]} and, in row {row}, in {split}; all of "
        "a patient belongs into one split"
      )
  for split in SPLITS:
    if split not in split_of.values():
      raise UserError(
        f"{place}: split {split} has no stacks; each of {', '.join(SPLITS)} needs some"
      )


def _labels(label: np.ndarray, strata: anatomy.Strata, place: str) -> np.ndarray:
  # What the task does not tell apart counts as its first stratum.
  by_name = anatomy.WITH_CORNEUM.names
  known = {name: strata.names.index(name) if name in strata.names else 0 for name in by_name}
  known |= {str(i): i for i in range(len(strata))}
  for row, name in enumerate(label.tolist()):
    if name not in known:
      last = len(strata) - 1
      raise UserError(
        f"{place}: label of row {row} is '{name}'; expected {', '.join(by_name)}, or 0 to {last}"
      )
  return np.array([known[name] for name in label.tolist()], np.int8)


def _probabilities(found: Mapping[str, np.ndarray], count: int, place: str) -> np.ndarray | None:
  values = found.get("probabilities")
  if values is None:
    return None
  if values.shape[1] != count:
    raise UserError(
      f"{place}: probabilities have {values.shape[1]} columns; expected {count}, one a stratum"
    )
  sums = values.astype(np.float64).sum(1)
  bad = np.flatnonzero(~((np.abs(sums - 1) < 0.01) & (values >= 0).all(1)))  # float16's rounding
  if bad.size:
    raise UserError(
      f"{place}: probabilities of row {bad[0]} are no distribution; leave the array out"
    )
  return values


def _about(found: Mapping[str, np.ndarray], place: str) -> dict[str, Any]:
  about = {name: found[name] for name in _ABOUT if name in found}
  for name in ("seed", "image_size", "field_um"):
    if name in about and (about[name].ndim or about[name].dtype.kind not in "fiu"):
      raise UserError(f"{place}: {name} is {about[name]}; expected one number")
  names = np.atleast_1d(about.pop("strata", np.array(anatomy.PAPER.names))).tolist()
  try:
    strata = anatomy.of_names(names)
  except ValueError as error:
    raise UserError(f"{place}: strata: {error}") from error
  told = {name: x if name == "sources" else x.item() for name, x in about.items()}
  return {**told, "strata": strata}
