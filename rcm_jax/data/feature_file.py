"""One file that holds the features of all slices, so that heads are trained without images.

An .npz without pickles: for each split the features and probabilities that a CNN gave (float16),
and what is known of the stacks; and once the dataset and the CNN that they come from.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
import dataclasses
import json
import pathlib
from typing import NamedTuple
import zipfile

import numpy as np

from rcm_jax import anatomy
from rcm_jax.data import slices as slices_lib
from rcm_jax.data.scale import Scale
from tfds_rcm.errors import UserError
from tfds_rcm.study.splits import SPLITS

NAME = "features.npz"
_KINDS = ("features", "probabilities")
_KNOWN = ("labels", "depth_um", "stack", "stack_id", "patient_id")


class FeatureFile(NamedTuple):
  """What a file holds.

  Attributes:
    dataset: name of the data that the features are of.
    method: of the CNN, as results.json calls it.
    seed: of the CNN.
    splits: stacks by split; their images are empty.
    values: (split, "features" or "probabilities") → one row a slice, float16.
    scale: what the CNN saw of a slice; 0 pixels in files of version 0.1, which do not tell.
  """

  dataset: str
  method: str
  seed: int
  splits: dict[str, slices_lib.Slices]
  values: dict[tuple[str, str], np.ndarray]
  scale: Scale


def save(
  path: pathlib.Path,
  splits: Mapping[str, slices_lib.Slices],
  value_of: Callable[[str, str], np.ndarray],
  *,
  dataset: str,
  method: str,
  seed: int,
) -> None:
  """Writes a file that is either whole or absent.

  Args:
    path: of the .npz.
    splits: stacks by split.
    value_of: (split, kind) → one row a slice.
    dataset: see `FeatureFile`.
    method: see `FeatureFile`.
    seed: see `FeatureFile`.
  """
  about = {"dataset": dataset, "method": method, "seed": seed}
  about["strata"] = splits["test"].strata.names
  arrays = {"about": np.array(json.dumps(about | dataclasses.asdict(splits["test"].scale)))}
  for name, split in splits.items():
    for key in _KNOWN:
      arrays[f"{name}.{key}"] = np.asarray(getattr(split, key))
    for kind in _KINDS:
      arrays[f"{name}.{kind}"] = value_of(name, kind).astype(np.float16)
  part = path.with_name(f".{path.name}.part")
  with part.open("wb") as file:
    np.savez_compressed(file, **arrays)
  part.replace(path)


def load(path: str) -> FeatureFile:
  """Reads what `save` wrote.

  Raises:
    UserError: there is no such file, or it is not whole or not of this kind.
  """
  try:
    with open(path, "rb") as file, np.load(file, allow_pickle=False) as arrays:
      about = json.loads(str(arrays["about"]))
      strata = anatomy.of_names(about.get("strata", anatomy.PAPER.names))
      splits, values = {}, {}
      for name in SPLITS:
        labels, depth_um, stack, *ids = (arrays[f"{name}.{key}"] for key in _KNOWN)
        images = np.empty((len(labels), 0, 0), np.uint8)
        names = (tuple(x.tolist()) for x in ids)
        splits[name] = slices_lib.Slices(images, labels, depth_um, stack, *names, strata=strata)
        for kind in _KINDS:
          values[name, kind] = arrays[f"{name}.{kind}"]
          if len(values[name, kind]) != len(labels):
            raise ValueError(f"{name}: {len(values[name, kind])} {kind}, {len(labels)} labels")
      scale = Scale(int(about.get("image_size", 0)), about.get("field_um"))
      return FeatureFile(
        about["dataset"], about["method"], int(about["seed"]), splits, values, scale
      )
  except FileNotFoundError as error:
    raise UserError(f"config.features.file: {path}: no such file") from error
  except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile) as error:
    raise UserError(
      f"config.features.file: {path}: not a whole file of features ({error}); make it again with "
      "--config=features"
    ) from error
