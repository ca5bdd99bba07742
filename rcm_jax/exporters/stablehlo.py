"""All of a trained model as one StableHLO program: CNN, heads, ensemble and decoding."""

from __future__ import annotations

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jaxtyping import Array

from rcm_jax.cnn import folded_inception
from rcm_jax.inference import bundle as bundle_lib
from rcm_jax.inference import interpretation
from rcm_jax.ops.backend import tracing_for

PLATFORMS = ("cpu", "cuda")
MAX_SLICES = 256


def longest(bundle: bundle_lib.Bundle) -> int:
  """Slices of a stack of which an exported model says something at most."""
  head = bundle.description.head
  return head.limit or MAX_SLICES


def serving_fn(bundle: bundle_lib.Bundle) -> Callable[[Array, Array, Array], dict[str, Array]]:
  """Returns all of a model as one pure function of arrays.

  It maps slices uint8 [B, T, height, width], shallow first, depth_um float32 [B, T] and mask bool
  [B, T], real slices first, to a dictionary:

    strata                int32 [B, T], between the boundaries: places in the bundle's strata, of
                          three 0 epidermis, 1 DEJ, 2 dermis; of four 0 is stratum corneum
    probabilities         float32 [B, T, C], calibrated
    boundary_um           float32 [B, S], median depth of each boundary
    interval_um           float32 [B, S, 2], their lower and upper ends
    in_stack              float32 [B, S], probability that the stack shows the boundary
    most_probable_strata  int32 [B, T], the most probable possible labelling

  A stack shows a boundary where `strata` change; elsewhere its depth is that of the first slice, or
  of one step past the last. Of a stack of more than `longest` real slices nothing is said: its
  strata are -1 and its numbers NaN.
  """
  extract = folded_inception.extract_fn(bundle.network)
  half = bundle.context // 2

  def serve(slices, depth_um, mask):
    stacks, count, height, width = slices.shape
    last = jnp.maximum(jnp.sum(mask, axis=1), 1) - 1
    beside = jnp.arange(count)[:, None] + jnp.arange(-half, half + 1)
    rows = jnp.clip(beside[None], 0, last[:, None, None])  # [B, T, context]
    images = jax.vmap(lambda stack, row: stack[row])(slices, rows)
    images = jnp.moveaxis(images, 2, -1).reshape(stacks * count, height, width, bundle.context)
    features = extract(images)[0]
    if bundle.encoders:
      features = jnp.concatenate([features, bundle.textures(images[..., half])], axis=1)
    features = features.reshape(stacks, count, -1)
    room = longest(bundle)  # decoding interpolates, which needs a constant length

    def interpret(one):
      features, depth_um, mask = (
        jnp.concatenate([x, jnp.zeros((room, *x.shape[1:]), x.dtype)])[:room] for x in one
      )
      probabilities = bundle.class_probabilities(features, mask)
      return interpretation.interpret(probabilities, depth_um, mask, bundle.description.calibration)

    found = jax.lax.map(interpret, (features, depth_um, mask))
    too_long = jnp.sum(mask, axis=1) > room

    def answer(values, by_slice=False):
      nothing = jnp.asarray(jnp.nan if values.dtype.kind == "f" else -1, values.dtype)
      if by_slice:
        rest = jnp.full((stacks, count, *values.shape[2:]), nothing)
        values = jnp.concatenate([values, rest], axis=1)[:, :count]
      return jnp.where(too_long.reshape(-1, *[1] * (values.ndim - 1)), nothing, values)

    return {
      "strata": answer(found.strata, by_slice=True),
      "probabilities": answer(found.probabilities, by_slice=True),
      "boundary_um": answer(found.boundary_um[:, :, 1]),
      "interval_um": answer(found.boundary_um[:, :, ::2]),
      "in_stack": answer(found.in_stack),
      "most_probable_strata": answer(found.most_probable_strata, by_slice=True),
    }

  return serve


def serialize(bundle: bundle_lib.Bundle) -> bytes:
  """Returns `serving_fn` as a serialized `jax.export` artefact for `PLATFORMS`."""
  height, width = bundle.description.image_shape
  stacks, slices = jax.export.symbolic_shape("stacks, slices", constraints=["slices >= 1"])
  arguments = (
    jax.ShapeDtypeStruct((stacks, slices, height, width), jnp.uint8),
    jax.ShapeDtypeStruct((stacks, slices), jnp.float32),
    jax.ShapeDtypeStruct((stacks, slices), jnp.bool_),
  )
  # Without this a GPU rounds products to fewer digits than the CPU that the model was tested on.
  # Nor may it write its own kernels into what a CPU is to run.
  with jax.default_matmul_precision("float32"), tracing_for("cpu", jax.devices()):
    exported = jax.export.export(jax.jit(serving_fn(bundle)), platforms=PLATFORMS)(*arguments)
  return bytes(exported.serialize())
