"""Our Inception-V3 with its values as a Keras model, an ONNX graph and a PyTorch module."""

from __future__ import annotations

from collections.abc import Callable
import os

import jax
import numpy as np

from rcm_jax.cnn import inception, pretrained
from rcm_jax.cnn import inception_layers as table

Call = Callable[[], object]


def keras_call(network: inception.InceptionV3, images: jax.Array) -> Call:
  """`keras.applications.InceptionV3` on the JAX backend, compiled whole."""
  os.environ.setdefault("KERAS_BACKEND", "jax")
  import keras

  base = keras.applications.InceptionV3(
    weights=None, include_top=False, input_shape=(None, None, 1), pooling="avg"
  )
  model = keras.Model(base.input, keras.layers.Dense(inception.NUM_FEATURES)(base.output))
  kinds = (keras.layers.Conv2D, keras.layers.BatchNormalization)
  convolutions, normalizations = ([l for l in model.layers if isinstance(l, k)] for k in kinds)
  blocks = network.named_blocks()
  for name, conv, bn in zip(
    pretrained.keras_order(network), convolutions, normalizations, strict=True
  ):
    layer = blocks[name]
    conv.set_weights([layer.conv.kernel[...]])
    bn.set_weights([layer.bn.bias[...], layer.bn.mean[...], layer.bn.var[...]])
  model.layers[-1].set_weights([network.embed.kernel[...], network.embed.bias[...]])
  trainable = [v.value for v in model.trainable_variables]
  fixed = [v.value for v in model.non_trainable_variables]

  @jax.jit
  def features(trainable, fixed, images):
    return model.stateless_call(trainable, fixed, inception.from_uint8(images))[0]

  return lambda: features(trainable, fixed, images)


def onnxruntime_call(network: inception.InceptionV3, images: np.ndarray) -> Call:
  """The table as an ONNX graph with convolution, normalisation and ReLU as exporters write them."""
  import onnx
  from onnx import helper, numpy_helper
  import onnxruntime

  nodes, values = [], []

  def constant(value) -> str:
    values.append(numpy_helper.from_array(np.ascontiguousarray(value), f"constant{len(values)}"))
    return values[-1].name

  def add(kind: str, *inputs: str, **attributes) -> str:
    nodes.append(helper.make_node(kind, inputs, [f"value{len(nodes)}"], **attributes))
    return nodes[-1].output[0]

  def build(block: str, steps: tuple[table.Step, ...], x: str) -> str:
    for step in steps:
      if isinstance(step, table.Conv):
        layer = network.blocks[block][step.name]
        if step.average:
          x = add("AveragePool", x, kernel_shape=[3, 3], pads=[1, 1, 1, 1], count_include_pad=0)
        pads = [k // 2 if step.padding == "SAME" else 0 for k in step.kernel]
        kernel = constant(np.asarray(layer.conv.kernel[...]).transpose(3, 2, 0, 1))
        x = add("Conv", x, kernel, strides=[step.stride] * 2, pads=pads * 2)
        statistics = (layer.bn.bias[...], layer.bn.mean[...], layer.bn.var[...])
        bn = [constant(np.asarray(value)) for value in (np.ones_like(statistics[0]), *statistics)]
        x = add("Relu", add("BatchNormalization", x, *bn, epsilon=inception.EPSILON))
      elif isinstance(step, table.MaxPool):
        x = add("MaxPool", x, kernel_shape=[3, 3], strides=[2, 2])
      else:
        x = add("Concat", *(build(block, branch, x) for branch in step.branches), axis=1)
    return x

  x = add("Cast", "images", to=onnx.TensorProto.FLOAT)
  x = add("Sub", add("Div", x, constant(np.float32(127.5))), constant(np.float32(1)))
  x = add("Transpose", x, perm=[0, 3, 1, 2])
  for block, steps in network.table.items():
    x = build(block, steps, x)
  x = add("Flatten", add("GlobalAveragePool", x))
  dense = [constant(np.asarray(v[...])) for v in (network.embed.kernel, network.embed.bias)]
  x = add("Gemm", x, *dense)
  graph = helper.make_graph(
    nodes,
    "inception_v3",
    [helper.make_tensor_value_info("images", onnx.TensorProto.UINT8, images.shape)],
    [
      helper.make_tensor_value_info(
        x, onnx.TensorProto.FLOAT, [len(images), inception.NUM_FEATURES]
      )
    ],
    values,
  )
  model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)
  session = onnxruntime.InferenceSession(
    model.SerializeToString(), providers=["CPUExecutionProvider"]
  )
  return lambda: session.run(None, {"images": images})[0]


def torch_call(network: inception.InceptionV3, images: np.ndarray) -> Call:
  """Conv2d, BatchNorm2d and ReLU, channels last, `torch.compile`d; bfloat16 on a GPU."""
  import torch
  from torch import nn

  class Average(nn.AvgPool2d):
    def __init__(self):
      super().__init__(3, stride=1, padding=1, count_include_pad=False)

  class Branches(nn.Module):
    def __init__(self, branches):
      super().__init__()
      self.branches = nn.ModuleList(branches)

    def forward(self, x):
      return torch.cat([branch(x) for branch in self.branches], 1)

  def tensor(value) -> torch.Tensor:
    return torch.from_numpy(np.array(value[...]))

  def convolution(layer: inception.ConvBlock) -> list[nn.Module]:
    kernel = tensor(layer.conv.kernel).permute(3, 2, 0, 1)
    padding = [k // 2 if layer.spec.padding == "SAME" else 0 for k in layer.spec.kernel]
    conv = nn.Conv2d(
      *kernel.shape[1::-1], layer.spec.kernel, layer.spec.stride, padding, bias=False
    )
    bn = nn.BatchNorm2d(kernel.shape[0], eps=inception.EPSILON)
    conv.weight.data = kernel
    bn.bias.data, bn.running_mean, bn.running_var = map(
      tensor, (layer.bn.bias, layer.bn.mean, layer.bn.var)
    )
    return [Average()] * layer.spec.average + [conv, bn, nn.ReLU()]

  def build(block: str, steps: tuple[table.Step, ...]) -> nn.Sequential:
    modules = []
    for step in steps:
      if isinstance(step, table.Conv):
        modules += convolution(network.blocks[block][step.name])
      elif isinstance(step, table.MaxPool):
        modules.append(nn.MaxPool2d(3, 2))
      else:
        modules.append(Branches([build(block, branch) for branch in step.branches]))
    return nn.Sequential(*modules)

  embed = nn.Linear(*network.embed.kernel.shape)
  embed.weight.data, embed.bias.data = tensor(network.embed.kernel).T, tensor(network.embed.bias)
  parts = [build(block, steps) for block, steps in network.table.items()]
  model = nn.Sequential(*parts, nn.AdaptiveAvgPool2d(1), nn.Flatten(), embed)
  gpu = torch.cuda.is_available()
  device, dtype = ("cuda", torch.bfloat16) if gpu else ("cpu", torch.float32)
  model = model.eval().to(device, dtype, memory_format=torch.channels_last)

  def forward(x):
    x = (x.to(dtype) / 127.5 - 1).permute(0, 3, 1, 2)  # a view: NHWC memory is channels last
    return model(x).float()

  compiled = torch.compile(forward)
  x = torch.from_numpy(images).to(device)

  def call():
    with torch.inference_mode():
      out = compiled(x)
      if gpu:
        torch.cuda.synchronize()
      return out.cpu() if gpu else out

  return call
