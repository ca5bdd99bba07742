"""Renders a stack, a few slices at a time, on whatever device there is."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
import functools

import jax
from jaxtyping import UInt8
import numpy as np

from tfds_rcm.rcm_phantom import anatomy as anatomy_lib
from tfds_rcm.rcm_phantom import annotators, scene, spec
from tfds_rcm.rcm_phantom import optics as optics_lib

# Slices in one call: one static shape for stacks of any length, so the program compiles once and
# a stack's last call wastes little.
_CHUNK = 6


@functools.partial(jax.jit, static_argnames=("size_px", "pixel_um", "together"))
def _render_chunk(
  tissue: scene.Tissue,
  optics: scene.Optics,
  exposures: scene.Exposures,
  *,
  size_px: int,
  pixel_um: float,
  together: int,
) -> jax.Array:
  expose = functools.partial(optics_lib.expose, tissue, optics, size_px=size_px, pixel_um=pixel_um)
  return jax.lax.map(expose, exposures, batch_size=together)


def render_stack(
  phantom: spec.Phantom,
  anatomy: anatomy_lib.Anatomy,
  plan: annotators.Plan,
  wanted: Sequence[int] | None = None,
) -> Iterator[UInt8[np.ndarray, "height width"]]:
  """Yields a stack's slices, all or those wanted, shallow first.

  A slice has the same bits whatever is rendered with it.
  """
  tissue = jax.device_put(scene.make_tissue(phantom, anatomy))
  optics = jax.device_put(scene.make_optics(phantom, anatomy))
  exposures = scene.make_exposures(phantom, anatomy, plan)
  # A processor's caches hold one slice; an accelerator is fed all of them at once.
  together = 1 if jax.default_backend() == "cpu" else _CHUNK
  rows = np.arange(len(plan)) if wanted is None else np.asarray(wanted)
  for start in range(0, len(rows), _CHUNK):
    count = min(_CHUNK, len(rows) - start)
    which = rows[np.minimum(np.arange(start, start + _CHUNK), start + count - 1)]
    chunk = _render_chunk(
      tissue,
      optics,
      jax.tree.map(lambda field: field[which], exposures),
      size_px=phantom.size_px,
      pixel_um=phantom.pixel_um,
      together=together,
    )
    yield from np.asarray(chunk)[:count]
