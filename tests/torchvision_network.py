"""torchvision's Inception-V3 up to the pooled 2048, in plain numpy and any precision.

Written from the definition of `torchvision.models.inception_v3` (BasicConv2d, InceptionA to
InceptionE), and sharing nothing with the package: the network that its files of weights are for.
`random_state` draws such a file.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

_EPSILON = 0.001
State = dict[str, np.ndarray]

# Input channels, and width of the pooling branch or of the factorised convolutions.
_A = {"Mixed_5b": (192, 32), "Mixed_5c": (256, 64), "Mixed_5d": (288, 64)}
_C = {"Mixed_6b": 128, "Mixed_6c": 160, "Mixed_6d": 160, "Mixed_6e": 192}
_E = {"Mixed_7b": 1280, "Mixed_7c": 2048}


def _convolutions() -> Iterator[tuple[str, int, int, tuple[int, int]]]:
  """Name, channels in, channels out and kernel of each BasicConv2d."""
  yield "Conv2d_1a_3x3", 3, 32, (3, 3)
  yield "Conv2d_2a_3x3", 32, 32, (3, 3)
  yield "Conv2d_2b_3x3", 32, 64, (3, 3)
  yield "Conv2d_3b_1x1", 64, 80, (1, 1)
  yield "Conv2d_4a_3x3", 80, 192, (3, 3)
  for block, (size, pool) in _A.items():
    yield f"{block}.branch1x1", size, 64, (1, 1)
    yield f"{block}.branch5x5_1", size, 48, (1, 1)
    yield f"{block}.branch5x5_2", 48, 64, (5, 5)
    yield f"{block}.branch3x3dbl_1", size, 64, (1, 1)
    yield f"{block}.branch3x3dbl_2", 64, 96, (3, 3)
    yield f"{block}.branch3x3dbl_3", 96, 96, (3, 3)
    yield f"{block}.branch_pool", size, pool, (1, 1)
  yield "Mixed_6a.branch3x3", 288, 384, (3, 3)
  yield "Mixed_6a.branch3x3dbl_1", 288, 64, (1, 1)
  yield "Mixed_6a.branch3x3dbl_2", 64, 96, (3, 3)
  yield "Mixed_6a.branch3x3dbl_3", 96, 96, (3, 3)
  for block, width in _C.items():
    yield f"{block}.branch1x1", 768, 192, (1, 1)
    yield f"{block}.branch7x7_1", 768, width, (1, 1)
    yield f"{block}.branch7x7_2", width, width, (1, 7)
    yield f"{block}.branch7x7_3", width, 192, (7, 1)
    yield f"{block}.branch7x7dbl_1", 768, width, (1, 1)
    yield f"{block}.branch7x7dbl_2", width, width, (7, 1)
    yield f"{block}.branch7x7dbl_3", width, width, (1, 7)
    yield f"{block}.branch7x7dbl_4", width, width, (7, 1)
    yield f"{block}.branch7x7dbl_5", width, 192, (1, 7)
    yield f"{block}.branch_pool", 768, 192, (1, 1)
  yield "Mixed_7a.branch3x3_1", 768, 192, (1, 1)
  yield "Mixed_7a.branch3x3_2", 192, 320, (3, 3)
  yield "Mixed_7a.branch7x7x3_1", 768, 192, (1, 1)
  yield "Mixed_7a.branch7x7x3_2", 192, 192, (1, 7)
  yield "Mixed_7a.branch7x7x3_3", 192, 192, (7, 1)
  yield "Mixed_7a.branch7x7x3_4", 192, 192, (3, 3)
  for block, size in _E.items():
    yield f"{block}.branch1x1", size, 320, (1, 1)
    yield f"{block}.branch3x3_1", size, 384, (1, 1)
    yield f"{block}.branch3x3_2a", 384, 384, (1, 3)
    yield f"{block}.branch3x3_2b", 384, 384, (3, 1)
    yield f"{block}.branch3x3dbl_1", size, 448, (1, 1)
    yield f"{block}.branch3x3dbl_2", 448, 384, (3, 3)
    yield f"{block}.branch3x3dbl_3a", 384, 384, (1, 3)
    yield f"{block}.branch3x3dbl_3b", 384, 384, (3, 1)
    yield f"{block}.branch_pool", size, 192, (1, 1)


def random_state(seed: int) -> State:
  """A file of weights that keeps activations of order one through all layers."""
  rng = np.random.default_rng(seed)
  state = {}
  for name, size, filters, kernel in _convolutions():
    scale = np.sqrt(2 / (size * kernel[0] * kernel[1]))
    state[f"{name}.conv.weight"] = scale * rng.standard_normal((filters, size, *kernel))
    state[f"{name}.bn.weight"] = rng.uniform(0.5, 1.5, filters)
    state[f"{name}.bn.bias"] = 0.2 * rng.standard_normal(filters)
    state[f"{name}.bn.running_mean"] = 0.2 * rng.standard_normal(filters)
    state[f"{name}.bn.running_var"] = rng.uniform(0.5, 1.5, filters)
  return {name: value.astype(np.float32) for name, value in state.items()}


def pooled(state: State, x: np.ndarray, dtype: type = np.float64) -> np.ndarray:
  """Averages of the last block.

  Args:
    state: torchvision's names and axes.
    x: what enters the first convolution, [3, height, width].
    dtype: of the computation.

  Returns:
    [2048].
  """
  state = {name: value.astype(dtype) for name, value in state.items()}
  conv = lambda x, name, stride=1, padding=(0, 0): _basic_conv2d(state, name, x, stride, padding)
  x = conv(x.astype(dtype), "Conv2d_1a_3x3", 2)
  x = conv(x, "Conv2d_2a_3x3")
  x = conv(x, "Conv2d_2b_3x3", 1, (1, 1))
  x = _max_pool2d(x)
  x = conv(x, "Conv2d_3b_1x1")
  x = conv(x, "Conv2d_4a_3x3")
  x = _max_pool2d(x)
  for block in _A:
    at = lambda name, x, padding=(0, 0), block=block: conv(x, f"{block}.{name}", 1, padding)
    five = at("branch5x5_2", at("branch5x5_1", x), (2, 2))
    double = at("branch3x3dbl_2", at("branch3x3dbl_1", x), (1, 1))
    double = at("branch3x3dbl_3", double, (1, 1))
    x = np.concatenate([at("branch1x1", x), five, double, at("branch_pool", _avg_pool2d(x))])
  double = conv(conv(x, "Mixed_6a.branch3x3dbl_1"), "Mixed_6a.branch3x3dbl_2", 1, (1, 1))
  x = np.concatenate(
    [
      conv(x, "Mixed_6a.branch3x3", 2),
      conv(double, "Mixed_6a.branch3x3dbl_3", 2),
      _max_pool2d(x),
    ]
  )
  wide, tall = (0, 3), (3, 0)
  for block in _C:
    at = lambda name, x, padding=(0, 0), block=block: conv(x, f"{block}.{name}", 1, padding)
    seven = at("branch7x7_3", at("branch7x7_2", at("branch7x7_1", x), wide), tall)
    double = at("branch7x7dbl_1", x)
    for number, padding in ((2, tall), (3, wide), (4, tall), (5, wide)):
      double = at(f"branch7x7dbl_{number}", double, padding)
    x = np.concatenate([at("branch1x1", x), seven, double, at("branch_pool", _avg_pool2d(x))])
  three = conv(conv(x, "Mixed_7a.branch3x3_1"), "Mixed_7a.branch3x3_2", 2)
  seven = conv(conv(x, "Mixed_7a.branch7x7x3_1"), "Mixed_7a.branch7x7x3_2", 1, wide)
  seven = conv(conv(seven, "Mixed_7a.branch7x7x3_3", 1, tall), "Mixed_7a.branch7x7x3_4", 2)
  x = np.concatenate([three, seven, _max_pool2d(x)])
  for block in _E:
    at = lambda name, x, padding=(0, 0), block=block: conv(x, f"{block}.{name}", 1, padding)
    three = at("branch3x3_1", x)
    double = at("branch3x3dbl_2", at("branch3x3dbl_1", x), (1, 1))
    x = np.concatenate(
      [
        at("branch1x1", x),
        at("branch3x3_2a", three, (0, 1)),
        at("branch3x3_2b", three, (1, 0)),
        at("branch3x3dbl_3a", double, (0, 1)),
        at("branch3x3dbl_3b", double, (1, 0)),
        at("branch_pool", _avg_pool2d(x)),
      ]
    )
  return x.mean(axis=(1, 2))


def _windows(x: np.ndarray, kernel: tuple[int, int], stride: int) -> np.ndarray:
  return np.lib.stride_tricks.sliding_window_view(x, kernel, axis=(1, 2))[:, ::stride, ::stride]


def _basic_conv2d(
  state: State, name: str, x: np.ndarray, stride: int, padding: tuple[int, int]
) -> np.ndarray:
  """Convolution, batch normalisation by running statistics, ReLU; [C, H, W]."""
  weight = state[f"{name}.conv.weight"]
  x = np.pad(x, [(0, 0), (padding[0],) * 2, (padding[1],) * 2])
  y = np.tensordot(weight, _windows(x, weight.shape[2:], stride), ((1, 2, 3), (0, 3, 4)))
  scale, bias, mean, var = (
    state[f"{name}.bn.{part}"][:, None, None]
    for part in ("weight", "bias", "running_mean", "running_var")
  )
  return np.maximum((y - mean) / np.sqrt(var + x.dtype.type(_EPSILON)) * scale + bias, 0)


def _max_pool2d(x: np.ndarray) -> np.ndarray:
  """kernel_size=3, stride=2."""
  return _windows(x, (3, 3), 2).max(axis=(3, 4))


def _avg_pool2d(x: np.ndarray) -> np.ndarray:
  """kernel_size=3, stride=1, padding=1, of which the zeros count (count_include_pad's default)."""
  return _windows(np.pad(x, [(0, 0), (1, 1), (1, 1)]), (3, 3), 1).sum(axis=(3, 4)) / 9
