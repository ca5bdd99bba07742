"""Reads a stack with an exported model; needs JAX and flatbuffers (`pip install jax flatbuffers`).

python examples/read_stack.py model.stablehlo slices.npy 3

slices.npy holds uint8 [slices, height, width], shallow first, of the size that the model was
exported for; 3 is the distance between slices in µm.
"""

import pathlib
import sys

import jax
import jax.numpy as jnp

STRATA = ("stratum_corneum", "epidermis", "dej", "dermis")  # models of three begin at the second
model = jax.export.deserialize(bytearray(pathlib.Path(sys.argv[1]).read_bytes()))
slices = jnp.load(sys.argv[2])[None]
depth_um = float(sys.argv[3]) * jnp.arange(slices.shape[1], dtype=jnp.float32)[None]
found = jax.jit(model.call)(slices, depth_um, jnp.ones(depth_um.shape, bool))
names = STRATA[-found["probabilities"].shape[2] :]
strata = [int(stratum) for stratum in found["strata"][0]]
if -1 in strata:
  sys.exit(f"error: {len(strata)} slices are more than this model takes; leave slices out")
for t, stratum in enumerate(strata):
  print(f"slice {t:3d} {depth_um[0, t]:7.1f} µm  {names[stratum]}")
for b, probability in enumerate(found["in_stack"][0]):
  name = f"{names[b]}-{names[b + 1]}"
  if strata[0] > b or strata[-1] <= b:  # the strata do not change there
    print(f"{name}: not in this stack (in it with {probability:.0%} probability)")
    continue
  low, high = found["interval_um"][0, b]
  print(f"{name}: {found['boundary_um'][0, b]:.1f} µm ({low:.1f} to {high:.1f})")
