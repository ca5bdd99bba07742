"""What all outputs of one stack must agree on."""

from __future__ import annotations

import numpy as np

from rcm_jax import anatomy
from rcm_jax.inference.interpretation import LAYERS, MOSAICS


def assert_holds(found, named, plan, depth, task=anatomy.PAPER):
  """Strata, boundaries, slices and plan follow from the same two depths.

  Args:
    found: an `Interpretation`, on the host.
    named: its boundaries.
    plan: its mosaics.
    depth: of each slice in µm.
    task: which strata there are.
  """
  count = len(depth)
  assert [b.name for b in named] == list(task.boundaries)
  assert set(np.diff(found.strata).tolist()) <= {0, 1}
  inner = [b for b in named if b.shown]
  for number, b in enumerate(named, start=1):
    deeper = found.strata >= number
    assert b.shown == (0 < deeper.sum() < count)
    if not b.shown:
      assert b.probability_shown <= 0.5
      assert (b.depth_um, b.low_um, b.high_um, b.slice) == (None,) * 4
      continue
    np.testing.assert_array_equal(deeper, depth >= b.depth_um)  # strata change at the boundary
    assert b.slice == np.flatnonzero(depth >= b.depth_um)[0]
    if b.low_um is not None:  # few patients give no interval
      assert b.low_um <= b.depth_um <= b.high_um
  depths = [b.depth_um for b in inner]
  assert depths == sorted(set(depths))
  assert [m.name for m in plan] == list(MOSAICS)
  planned = [m.depth_um for m in plan if m.depth_um is not None]
  assert planned == sorted(planned)
  for mosaic, layer in zip(plan, LAYERS, strict=True):
    if mosaic.slice is None:
      assert mosaic.note
      continue
    assert task.names[found.strata[mosaic.slice]] == layer.stratum
    nearest = int(np.abs(depth - mosaic.depth_um).argmin())
    assert mosaic.slice == nearest or "nearest slice of" in mosaic.note
    if mosaic.low_um is not None:
      assert mosaic.low_um <= mosaic.depth_um <= mosaic.high_um
