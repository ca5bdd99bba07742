"""One stack of a phantom as a record's fields, rendered or taken from where it waits on disk."""

from __future__ import annotations

from collections.abc import Callable
from concurrent import futures
import dataclasses
import pathlib
from typing import Any

import jax

from tfds_rcm import cores, staging
from tfds_rcm.formats.png import encode_png
from tfds_rcm.rcm_phantom import anatomy as anatomy_lib
from tfds_rcm.rcm_phantom import annotators, render, spec

Progress = Callable[[int, int], None]


def stack_fields(phantom: spec.Phantom, anatomy: anatomy_lib.Anatomy) -> dict[str, Any]:
  """Renders one stack; returns the arguments of `record.stack_record`."""
  plan = annotators.plan_stack(phantom, anatomy)
  with futures.ThreadPoolExecutor(cores.num_cores()) as pool:
    # Encodes slices while the next ones are rendered.
    slices = list(pool.map(encode_png, render.render_stack(phantom, anatomy, plan)))
  return {
    "stack_id": anatomy.stack_id,
    "patient_id": anatomy.patient_id,
    "site": anatomy.site,
    "slices": slices,
    "labels": plan.labels.tolist(),
    "depth_um": plan.depth_um.tolist(),
    "pixel_um": phantom.pixel_um,
  }


def staged_fields(
  folder: pathlib.Path, phantom: spec.Phantom, anatomy: anatomy_lib.Anatomy
) -> dict[str, Any]:
  """Returns a stack's fields from `folder`, rendering and keeping them there if need be."""
  # Another device or release of JAX rounds differently: its stacks are not mixed with ours.
  renderer = (spec.VERSION, jax.__version__, jax.default_backend())
  key = staging.fingerprint(dataclasses.asdict(phantom), anatomy.stack_id, renderer)
  path = folder / f"{key}.zip"
  fields = staging.load(path)
  if fields is None:
    fields = stack_fields(phantom, anatomy)
    staging.save(path, fields)
  return fields
