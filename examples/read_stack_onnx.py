"""Reads a stack with an exported model; needs nothing but ONNX Runtime (and NumPy, which it brings).

python examples/read_stack_onnx.py model.onnx slices.npy 3

slices.npy holds uint8 [slices, height, width], shallow first, of the size that the model was
exported for; 3 is the distance between slices in µm.
"""

import sys

import numpy as np
import onnxruntime

model = onnxruntime.InferenceSession(sys.argv[1], providers=onnxruntime.get_available_providers())
slices = np.load(sys.argv[2])
depth_um = float(sys.argv[3]) * np.arange(len(slices), dtype=np.float32)
strata, _, boundary_um, interval_um, _ = model.run(None, {"slices": slices, "depth_um": depth_um})
for depth, stratum in zip(depth_um, strata):
  print(f"{depth:7.1f} µm  {('epidermis', 'dej', 'dermis')[stratum]}")
for name, depth, ends in zip(("epidermis-dej", "dej-dermis"), boundary_um, interval_um):
  print(f"{name}: {depth:.1f} µm ({ends[0]:.1f} to {ends[1]:.1f})")
