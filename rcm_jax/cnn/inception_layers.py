"""Inception-V3 as a table: every convolution is named once, here.

Four readers interpret it: the trainable module (`inception`), its folded form
(`inception_inference`), files of Keras and torchvision (`inception_weights`), whose branch names
the table uses, and the benchmark's ONNX graph. Source: Szegedy et al. 2016, as Keras builds it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
import dataclasses
import functools

from jax import lax
import jax.numpy as jnp
from jaxtyping import Array, Float


@dataclasses.dataclass(frozen=True)
class Conv:
  """Convolution without bias, batch normalisation without scale, ReLU.

  Attributes:
    name: torchvision's name within the block.
    filters: output channels at width 1.
    kernel: rows and columns.
    stride: step in both directions.
    padding: "SAME" or "VALID".
    average: average 3×3 neighbourhoods first.
    count_include_pad: whether that average counts the zeros around the image, as torchvision's
      does; the one of Keras and TensorFlow is over the pixels inside.
  """

  name: str
  filters: int
  kernel: tuple[int, int] = (1, 1)
  stride: int = 1
  padding: str = "SAME"
  average: bool = False
  count_include_pad: bool = False


@dataclasses.dataclass(frozen=True)
class MaxPool:
  """Largest value of 3×3 pixels, stride 2, no padding."""


@dataclasses.dataclass(frozen=True)
class Parallel:
  """Branches that read the same input and are concatenated along channels."""

  branches: tuple[tuple[Step, ...], ...]


Step = Conv | MaxPool | Parallel


def _block_35(pool: int) -> Parallel:
  return Parallel(
    (
      (Conv("branch1x1", 64),),
      (Conv("branch5x5_1", 48), Conv("branch5x5_2", 64, (5, 5))),
      (
        Conv("branch3x3dbl_1", 64),
        Conv("branch3x3dbl_2", 96, (3, 3)),
        Conv("branch3x3dbl_3", 96, (3, 3)),
      ),
      (Conv("branch_pool", pool, average=True),),
    )
  )


def _block_17(inner: int) -> Parallel:
  return Parallel(
    (
      (Conv("branch1x1", 192),),
      (
        Conv("branch7x7_1", inner),
        Conv("branch7x7_2", inner, (1, 7)),
        Conv("branch7x7_3", 192, (7, 1)),
      ),
      (
        Conv("branch7x7dbl_1", inner),
        Conv("branch7x7dbl_2", inner, (7, 1)),
        Conv("branch7x7dbl_3", inner, (1, 7)),
        Conv("branch7x7dbl_4", inner, (7, 1)),
        Conv("branch7x7dbl_5", 192, (1, 7)),
      ),
      (Conv("branch_pool", 192, average=True),),
    )
  )


def _block_8() -> Parallel:
  return Parallel(
    (
      (Conv("branch1x1", 320),),
      (
        Conv("branch3x3_1", 384),
        Parallel(
          (
            (Conv("branch3x3_2a", 384, (1, 3)),),
            (Conv("branch3x3_2b", 384, (3, 1)),),
          )
        ),
      ),
      (
        Conv("branch3x3dbl_1", 448),
        Conv("branch3x3dbl_2", 384, (3, 3)),
        Parallel(
          (
            (Conv("branch3x3dbl_3a", 384, (1, 3)),),
            (Conv("branch3x3dbl_3b", 384, (3, 1)),),
          )
        ),
      ),
      (Conv("branch_pool", 192, average=True),),
    )
  )


STEM: tuple[Step, ...] = (
  Conv("conv1a", 32, (3, 3), stride=2, padding="VALID"),
  Conv("conv2a", 32, (3, 3), padding="VALID"),
  Conv("conv2b", 64, (3, 3)),
  MaxPool(),
  Conv("conv3b", 80, padding="VALID"),
  Conv("conv4a", 192, (3, 3), padding="VALID"),
  MaxPool(),
)

# Keras' names of the blocks' outputs; sizes are those of a 299-pixel image.
BLOCKS: dict[str, Parallel] = {
  "mixed0": _block_35(pool=32),
  "mixed1": _block_35(pool=64),
  "mixed2": _block_35(pool=64),
  "mixed3": Parallel(
    (  # 35 → 17 pixels
      (Conv("branch3x3", 384, (3, 3), stride=2, padding="VALID"),),
      (
        Conv("branch3x3dbl_1", 64),
        Conv("branch3x3dbl_2", 96, (3, 3)),
        Conv("branch3x3dbl_3", 96, (3, 3), stride=2, padding="VALID"),
      ),
      (MaxPool(),),
    )
  ),
  "mixed4": _block_17(inner=128),
  "mixed5": _block_17(inner=160),
  "mixed6": _block_17(inner=160),
  "mixed7": _block_17(inner=192),
  "mixed8": Parallel(
    (  # 17 → 8 pixels
      (
        Conv("branch3x3_1", 192),
        Conv("branch3x3_2", 320, (3, 3), stride=2, padding="VALID"),
      ),
      (
        Conv("branch7x7x3_1", 192),
        Conv("branch7x7x3_2", 192, (1, 7)),
        Conv("branch7x7x3_3", 192, (7, 1)),
        Conv("branch7x7x3_4", 192, (3, 3), stride=2, padding="VALID"),
      ),
      (MaxPool(),),
    )
  ),
  "mixed9": _block_8(),
  "mixed10": _block_8(),
}


def run(steps: tuple[Step, ...], x: Array, convolve: Callable[[Conv, Array], Array]) -> Array:
  """Interprets a part of the table, applying `convolve` at every convolution."""
  for step in steps:
    if isinstance(step, Conv):
      x = convolve(step, x)
    elif isinstance(step, MaxPool):
      x = max_pool(x)
    else:
      x = jnp.concatenate([run(branch, x, convolve) for branch in step.branches], axis=-1)
  return x


def convolutions(steps: tuple[Step, ...], channels: int) -> Iterator[tuple[Conv, int]]:
  """Yields every convolution of `steps` with its input channels, in the order of the table."""
  for step in steps:
    if isinstance(step, Conv):
      yield step, channels
    elif isinstance(step, Parallel):
      for branch in step.branches:
        yield from convolutions(branch, channels)
    channels = out_channels(step, channels)


def out_channels(step: Step, channels: int) -> int:
  """Channels that a step yields from `channels`."""
  if isinstance(step, Conv):
    return step.filters
  if isinstance(step, MaxPool):
    return channels
  return sum(functools.reduce(lambda c, s: out_channels(s, c), b, channels) for b in step.branches)


def network(width: float = 1.0, *, count_include_pad: bool = False) -> dict[str, tuple[Step, ...]]:
  """Whole table, "stem" and then the blocks, with channel counts times `width`.

  Counts are rounded to multiples of 8, and are at least 8.

  Args:
    width: factor on the channel counts.
    count_include_pad: see `Conv`; of all average pooling.
  """

  def scaled(step: Step) -> Step:
    if isinstance(step, Conv):
      filters = max(8, 8 * round(step.filters * width / 8))
      counts = step.average and count_include_pad
      return dataclasses.replace(step, filters=filters, count_include_pad=counts)
    if isinstance(step, Parallel):
      return Parallel(tuple(tuple(scaled(s) for s in branch) for branch in step.branches))
    return step

  blocks = {"stem": STEM} | {name: (block,) for name, block in BLOCKS.items()}
  return {name: tuple(scaled(step) for step in steps) for name, steps in blocks.items()}


def max_pool(x: Float[Array, "B H W C"]) -> Float[Array, "B h w C"]:
  """Largest of 3×3 pixels, stride 2, no padding."""
  for axis in (1, 2):
    last = x.shape[axis] - 3
    taps = [lax.slice_in_dim(x, k, k + last + 1, 2, axis=axis) for k in range(3)]
    x = functools.reduce(jnp.maximum, taps)
  return x
