"""The CNN by ONNX Runtime, whose convolutions are faster than XLA's on CPUs."""

from __future__ import annotations

from jaxtyping import Float, UInt8
import numpy as np
import onnxruntime

from rcm_jax.arrays import ArrayLike
from rcm_jax.cnn import inception
from rcm_jax.cnn.folded_inception import Extractor
from rcm_jax.exporters.onnx import cnn
from rcm_jax.exporters.onnx.graph import Graph
from tfds_rcm import cores


def extract_fn(network: inception.InceptionV3) -> Extractor:
  """Does what `folded_inception.extract_fn` does, in float32 on the CPU, by the exported graph.

  Args:
    network: trained, in evaluation mode.

  Returns:
    Function of gray levels 0 to 255, [B, H, W] or [B, H, W, C], that returns features and logits.

  Raises (the returned function):
    ValueError: images of less than 75 pixels a side, or of another number of channels.
  """
  graph = Graph()
  features, logits = cnn.classify(network, graph.input("images"))
  classes = network.classifier.kernel.shape[1]
  model = graph.model(
    "inception_v3",
    {"images": (np.uint8, ("slices", "height", "width", network.in_channels))},
    {
      "features": (np.float32, ("slices", inception.NUM_FEATURES), features),
      "logits": (np.float32, ("slices", classes), logits),
    },
  )
  options = onnxruntime.SessionOptions()
  options.intra_op_num_threads = cores.num_cores()
  session = onnxruntime.InferenceSession(
    model.SerializeToString(), options, providers=["CPUExecutionProvider"]
  )

  def extract(
    images: UInt8[ArrayLike, "B H W *C"],
  ) -> tuple[Float[np.ndarray, "B 256"], Float[np.ndarray, "B classes"]]:
    images = np.asarray(images)
    images = images if images.ndim == 4 else images[..., None]
    inception.check_images(images.shape, network.in_channels)
    return tuple(session.run(None, {"images": images}))

  return extract
