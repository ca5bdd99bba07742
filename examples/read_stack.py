"""Reads a stack with an exported model; needs nothing but JAX.

python examples/read_stack.py model.stablehlo slices.npy 3

slices.npy holds uint8 [slices, height, width], shallow first, of the size that the model was
exported for; 3 is the distance between slices in µm.
"""

import pathlib
import sys

import jax
import jax.numpy as jnp

model = jax.export.deserialize(bytearray(pathlib.Path(sys.argv[1]).read_bytes()))
slices = jnp.load(sys.argv[2])[None]
depth_um = float(sys.argv[3]) * jnp.arange(slices.shape[1], dtype=jnp.float32)[None]
found = jax.jit(model.call)(slices, depth_um, jnp.ones(depth_um.shape, bool))
for depth, stratum in zip(depth_um[0], found["strata"][0]):
  print(f"{depth:7.1f} µm  {('epidermis', 'dej', 'dermis')[int(stratum)]}")
for name, depth, ends in zip(
  ("epidermis-dej", "dej-dermis"), found["boundary_um"][0], found["interval_um"][0]
):
  print(f"{name}: {depth:.1f} µm ({ends[0]:.1f} to {ends[1]:.1f})")
