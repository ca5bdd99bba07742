"""The CNN's programs of a GPU run, at the sizes of the `paper` preset."""

from __future__ import annotations

import functools
from typing import Any

from flax import nnx
import jax
import jax.numpy as jnp
import numpy as np

from benchmarks import pipeline
from benchmarks.gpu.program import Program, lower, on
from rcm_jax.anatomy import PAPER
from rcm_jax.cnn import folded_inception, inception, train_step
from rcm_jax.cnn.augmentation import views
from rcm_jax.cnn.spec import CnnSpec
from rcm_jax.configs import base
from rcm_jax.runtime import devices

SIDE = 299  # px
CNN_BATCHES = (32, 64, 128, 256)


def cnn_spec(batch: int, *, groups: int = 8, width: float = 1.0) -> CnnSpec:
  """Returns the paper preset's CNN with another batch."""
  config = base.get_config("paper")
  return pipeline.spec_of(config, batch_size=batch, norm_groups=groups, width=width)


def programs() -> list[Program]:
  """Returns a training step, validation, extraction and augmentation."""
  out = [
    Program(
      f"CNN step, {SIDE} px, batch {batch}",
      "cnn",
      1,
      functools.partial(_lower_step, batch, 1 if batch > 32 else 8),
    )
    for batch in CNN_BATCHES
  ]
  out += [
    Program(
      f"CNN step, {SIDE} px, batch {batch}", "cnn", 8, functools.partial(_lower_step, batch, 8)
    )
    for batch in (32, 256)
  ]
  out += [
    Program(f"CNN validation, {SIDE} px, batch 32", "cnn", 1, _lower_hits),
    Program(f"extraction, {SIDE} px, batch 64", "cnn", 1, functools.partial(_lower_extract, 64)),
    Program(f"extraction, {SIDE} px, batch 256", "cnn", 1, functools.partial(_lower_extract, 256)),
    Program(f"extraction, {SIDE} px, batch 256", "cnn", 8, functools.partial(_lower_extract, 256)),
    Program(f"augmentation, {SIDE} px, batch 32", "cnn", 1, _lower_views),
  ]
  return out


def _lower_step(batch: int, groups: int, place: Any) -> jax.stages.Lowered:
  del place
  spec = cnn_spec(batch, groups=groups)
  mesh = devices.device_mesh(spec.norm_groups)
  programs = train_step.build(spec, 100, mesh)
  split, whole = devices.split_leading(mesh), devices.replicated(mesh)
  images = np.broadcast_to(np.uint8(0), (batch, SIDE, SIDE, 1))
  rows = np.zeros(batch, np.int32)
  number = np.zeros((), np.int32)
  return programs.train.lower(
    on(programs.start, whole),
    on(number.astype(np.uint32), whole),
    on(number, whole),
    *on((rows, images, rows), split),
  )


def _lower_hits(place: Any) -> jax.stages.Lowered:
  programs = train_step.build(cnn_spec(32), 100, devices.device_mesh(1))
  images = np.broadcast_to(np.uint8(0), (32, SIDE, SIDE, 1))
  return programs.hits.lower(*on((programs.start, images, np.zeros(32, np.int32)), place))


def _lower_extract(batch: int, place: Any) -> jax.stages.Lowered:
  del place
  mesh = devices.local_mesh()
  network = inception.InceptionV3(len(PAPER), dtype=jnp.bfloat16, rngs=nnx.Rngs(0))
  params = folded_inception.fold(network, jnp.bfloat16)
  images = np.broadcast_to(np.uint8(0), (batch, SIDE, SIDE, 1))
  return jax.jit(folded_inception.compute_fn(network)).lower(
    on(params, devices.replicated(mesh)), on(images, devices.split_leading(mesh))
  )


def _lower_views(place: Any) -> jax.stages.Lowered:
  augmentation = cnn_spec(32).augmentation
  images = np.broadcast_to(np.uint8(0), (32, SIDE, SIDE, 1))
  make = lambda seed, x: views(jax.random.split(jax.random.key(seed), 32), x, augmentation)
  return lower(make, place, np.zeros((), np.uint32), images)
