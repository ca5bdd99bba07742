"""Reads a stack with an exported model; needs nothing but ONNX Runtime (and NumPy, which it brings).

python examples/read_stack_onnx.py model.onnx slices.npy 3

slices.npy holds uint8 [slices, height, width], shallow first, of the size that the model was
exported for; 3 is the distance between slices in µm.
"""

import json
import sys

import numpy as np
import onnxruntime

model = onnxruntime.InferenceSession(sys.argv[1], providers=onnxruntime.get_available_providers())
described = json.loads(model.get_modelmeta().custom_metadata_map["bundle"])
slices = np.load(sys.argv[2])
depth_um = float(sys.argv[3]) * np.arange(len(slices), dtype=np.float32)
outputs = [output.name for output in model.get_outputs()]
found = dict(zip(outputs, model.run(None, {"slices": slices, "depth_um": depth_um}), strict=True))
names, strata = described["strata"], found["strata"]
for t, stratum in enumerate(strata):
  print(f"slice {t:3d} {depth_um[t]:7.1f} µm  {names[stratum]}")
for b, probability in enumerate(found["in_stack"]):
  name = f"{names[b]}-{names[b + 1]}"
  if strata[0] > b or strata[-1] <= b:  # the strata do not change there
    print(f"{name}: not in this stack (in it with {probability:.0%} probability)")
    continue
  low, high = found["interval_um"][b]
  print(f"{name}: {found['boundary_um'][b]:.1f} µm ({low:.1f} to {high:.1f})")
