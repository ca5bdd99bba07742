"""Encodes a prepared data set's slices with any ONNX image model, on a CPU.

python examples/encode_stacks.py encoder.onnx DATA/rcm_clinical/2.0.0 features.npz

Needs onnxruntime, Pillow and tensorflow-datasets. The model takes [1, channels, height, width] in [−1, 1];
its first output becomes the features. docs/encoders.md says what the file must hold.
"""

import pathlib
import sys

import numpy as np
import onnxruntime
from PIL import Image
import tensorflow_datasets as tfds

model = onnxruntime.InferenceSession(sys.argv[1], providers=["CPUExecutionProvider"])
[image], builder = model.get_inputs(), tfds.builder_from_directory(sys.argv[2])
_, channels, height, width = image.shape
names, rows = builder.info.features["labels"].feature.names, []
for split in builder.info.splits:
  for stack in builder.as_data_source(split):
    ids = (stack["stack_id"].decode(), stack["patient_id"].decode(), split)
    for pixels, depth_um, label in zip(stack["slices"], stack["depth_um"], stack["labels"]):
      gray = np.asarray(Image.fromarray(pixels[..., 0]).resize((width, height)), np.float32)
      seen = np.broadcast_to(gray / 127.5 - 1, (1, channels, height, width))
      features = model.run(None, {image.name: seen})[0].ravel()
      rows.append((features, depth_um, names[label], *ids))
columns = zip(("features", "depth_um", "label", "stack", "patient", "split"), zip(*rows))
arrays = {name: np.array(values) for name, values in columns}
about = {"encoder": pathlib.Path(sys.argv[1]).stem, "dataset": builder.info.full_name}
np.savez_compressed(sys.argv[3], **arrays, **about)
