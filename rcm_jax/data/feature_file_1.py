"""Files of features as version 0.1 wrote them: an array a split and kind, and JSON about all."""

from __future__ import annotations

from collections.abc import Mapping
import json
from typing import Any

import numpy as np

from rcm_jax.data import slices as slices_lib
from rcm_jax.data.scale import Scale
from tfds_rcm.study.splits import SPLITS

_KINDS = ("features", "probabilities")
_KNOWN = ("labels", "depth_um", "stack", "stack_id", "patient_id")


def unpack(stored: Mapping[str, np.ndarray]) -> tuple[Any, ...]:
  """Returns the fields of a `feature_file.FeatureFile`.

  Raises:
    ValueError: arrays are missing or do not fit each other.
  """
  about = json.loads(str(stored["about"]))
  splits, values = {}, {}
  for name in SPLITS:
    missing = [k for k in (*_KNOWN, *_KINDS) if f"{name}.{k}" not in stored]
    if missing:
      raise ValueError(f"no array {name}.{missing[0]}")
    labels, depth_um, stack, *ids = (stored[f"{name}.{key}"] for key in _KNOWN)
    images = np.empty((len(labels), 0, 0), np.uint8)
    names = (tuple(x.tolist()) for x in ids)
    splits[name] = slices_lib.Slices(images, labels, depth_um, stack, *names)
    for kind in _KINDS:
      values[name, kind] = stored[f"{name}.{kind}"]
      if len(values[name, kind]) != len(labels):
        raise ValueError(f"{name}: {len(values[name, kind])} {kind}, {len(labels)} labels")
  scale = Scale(int(about.get("image_size", 0)), about.get("field_um"))
  dataset = about["dataset"]
  return dataset, about["method"], int(about["seed"]), splits, values, scale, (dataset,)
