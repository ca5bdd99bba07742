"""Inception-V3 in Flax NNX, parameter for parameter as Keras has it (Szegedy et al. 2016).

The network is a table: `STEM` and `BLOCKS` below name every convolution once, and three readers
interpret it: the trainable module here, `inception_inference` (folded form) and
`inception_weights` (files of Keras and torchvision, whose branch names the table uses).

Two departures from Keras leave every parameter and, up to rounding, every output as they were:
the average-pooling branches convolve first and pool afterwards (both are linear, one over
channels, the other over space, so they commute, and there are up to ten times fewer channels to
pool), and the maximum is taken over strided slices, whose gradient XLA compiles into plain
selections instead of a scatter.

The paper (section "Baselines and methods": hybrid networks) adds a fully connected layer of 256
units whose values before the non-linearity are what the sequence models see.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
import dataclasses
import functools
import math

from flax import nnx
import jax
from jax import lax
import jax.numpy as jnp
from jax.typing import DTypeLike
from jaxtyping import Array, Float, UInt8
import numpy as np

MIN_SIZE = 75  # pixels a side: below it the last blocks have no pixel left
NUM_FEATURES = 256
EPSILON = 1e-3  # of every batch normalisation, as in Keras


@dataclasses.dataclass(frozen=True)
class Conv:
  """Convolution without bias, batch normalisation without scale, ReLU.

  Attributes:
    name: torchvision's name within the block.
    filters: output channels at width 1.
    kernel: rows and columns.
    stride: step in both directions.
    padding: "SAME" or "VALID".
    average: average 3×3 neighbourhoods first (Keras' "same" average pooling: pixels outside the
      image do not count).
  """

  name: str
  filters: int
  kernel: tuple[int, int] = (1, 1)
  stride: int = 1
  padding: str = "SAME"
  average: bool = False


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


def scaled(step: Step, width: float) -> Step:
  """Same step with its channel counts times `width`, in multiples of 8."""
  if isinstance(step, Conv):
    return dataclasses.replace(step, filters=max(8, 8 * round(step.filters * width / 8)))
  if isinstance(step, Parallel):
    return Parallel(tuple(tuple(scaled(s, width) for s in b) for b in step.branches))
  return step


def max_pool(x: Float[Array, "B H W C"]) -> Float[Array, "B h w C"]:
  """Largest of 3×3 pixels, stride 2, no padding."""
  for axis in (1, 2):
    last = x.shape[axis] - 3
    taps = [lax.slice_in_dim(x, k, k + last + 1, 2, axis=axis) for k in range(3)]
    x = functools.reduce(jnp.maximum, taps)
  return x


def average_pool(x: Float[Array, "B H W C"]) -> Float[Array, "B H W C"]:
  """Mean of the 3×3 pixels around each pixel that lie inside the image."""
  return nnx.avg_pool(x, (3, 3), (1, 1), "SAME", count_include_pad=False)


def glorot_uniform(key: Array, shape: tuple[int, ...], dtype: DTypeLike = jnp.float32) -> Array:
  """Keras' initialisation, drawn in pieces of one size.

  `jax.nn.initializers.glorot_uniform` compiles one random generator a shape, which for this
  network takes longer than to train it for a minute's worth of steps; this takes a second.
  """
  count = math.prod(shape)
  receptive_field = math.prod(shape[:-2])
  limit = math.sqrt(6 / (receptive_field * (shape[-2] + shape[-1])))
  pieces = [_draw(jax.random.fold_in(key, i)) for i in range(-(-count // _PIECE))]
  # numpy never compiles; tracing (nnx.eval_shape, jax.jit) needs jax.numpy and gives the same.
  xp = jnp if isinstance(pieces[0], jax.core.Tracer) else np
  values = xp.concatenate(pieces)[:count].reshape(shape) * np.float32(limit)
  return jnp.asarray(values, dtype)


_PIECE = 1 << 16


@jax.jit
def _draw(key: Array) -> Array:
  return jax.random.uniform(key, (_PIECE,), minval=-1.0, maxval=1.0)


def from_uint8(x: UInt8[Array, "*dims"], dtype: DTypeLike = jnp.float32) -> Float[Array, "*dims"]:
  """Gray levels 0 to 255 to [−1, 1], as Keras preprocesses for Inception-V3."""
  return x.astype(dtype) * (1 / 127.5) - 1


class ConvBlock(nnx.Module):
  """Convolution without bias → batch normalisation without scale → ReLU."""

  def __init__(
    self, spec: Conv, in_channels: int, *, bn_momentum: float, dtype: DTypeLike, rngs: nnx.Rngs
  ):
    self.spec = spec
    self.conv = nnx.Conv(
      in_channels,
      spec.filters,
      spec.kernel,
      spec.stride,
      padding=spec.padding,
      use_bias=False,
      dtype=dtype,
      kernel_init=glorot_uniform,
      rngs=rngs,
    )
    self.bn = nnx.BatchNorm(
      spec.filters,
      momentum=bn_momentum,
      epsilon=EPSILON,
      use_scale=False,
      dtype=dtype,
      rngs=rngs,
    )

  def __call__(self, x: Float[Array, "B H W C"]) -> Float[Array, "B h w D"]:
    x = self.conv(x)
    return nnx.relu(self.bn(average_pool(x) if self.spec.average else x))


class InceptionV3(nnx.Module):
  """Inception-V3 with the paper's added layer of 256 units and a classifier.

  The module is in training mode when made; `eval()` and `train()` switch batch normalisation and
  dropout. Split it once with `nnx.split` and call `jax.jit` on the parts; the merged module inside
  the jitted function carries the updated running statistics out again.

  Attributes:
    blocks: name of a block ("stem", "mixed0" …) → name of a convolution → `ConvBlock`.
    embed: the added layer, 2048 → 256 at width 1.
    classifier: 256 → num_classes.
  """

  def __init__(
    self,
    num_classes: int,
    in_channels: int = 1,
    width: float = 1.0,
    *,
    dropout: float = 0.0,
    bn_momentum: float = 0.99,
    dtype: DTypeLike = jnp.float32,
    rngs: nnx.Rngs,
  ):
    """Makes the layers, initialised as Keras does (Glorot uniform, biases zero).

    Args:
      num_classes: units of the classifier.
      in_channels: image channels; 1 for a gray slice, 3 for a slice and its two neighbours.
      width: factor on every channel count of the convolutions, rounded to multiples of 8. The
        added layer keeps its 256 units.
      dropout: fraction of the 256 units dropped before the classifier in training.
      bn_momentum: share of the running statistics that survives a step; Keras' value is 0.99,
        which a run of fewer than a few hundred steps should lower.
      dtype: type of the computation; parameters and statistics are float32.
      rngs: streams `params` and, if dropout is used, `dropout`.
    """
    self.table = {
      name: tuple(scaled(step, width) for step in steps)
      for name, steps in {"stem": STEM, **{n: (b,) for n, b in BLOCKS.items()}}.items()
    }
    self.in_channels = in_channels
    blocks = {}
    channels = in_channels
    for name, steps in self.table.items():
      blocks[name] = nnx.Dict(
        {
          spec.name: ConvBlock(spec, fan_in, bn_momentum=bn_momentum, dtype=dtype, rngs=rngs)
          for spec, fan_in in convolutions(steps, channels)
        }
      )
      channels = functools.reduce(lambda c, s: out_channels(s, c), steps, channels)
    self.blocks = nnx.Dict(blocks)
    dense = functools.partial(nnx.Linear, dtype=dtype, kernel_init=glorot_uniform, rngs=rngs)
    self.embed = dense(channels, NUM_FEATURES)
    self.dropout = nnx.Dropout(dropout, rngs=rngs)
    self.classifier = dense(NUM_FEATURES, num_classes)

  def named_blocks(self) -> dict[str, ConvBlock]:
    """Every convolution under "block/name", in the order of the table (Keras' of creation)."""
    return {
      f"{block}/{spec.name}": self.blocks[block][spec.name]
      for block, steps in self.table.items()
      for spec, _ in convolutions(steps, self.in_channels)
    }

  def pooled(self, x: Float[Array, "B H W C"]) -> Float[Array, "B P"]:
    """Global average of the last block, P = 2048 at width 1.

    Args:
      x: images in [−1, 1], 75 pixels or more a side (see `from_uint8`).

    Raises:
      ValueError: images are smaller, or have another number of channels than the network.
    """
    check_images(x.shape, self.in_channels)
    for name, steps in self.table.items():
      block = self.blocks[name]
      x = run(steps, x, lambda spec, y, block=block: block[spec.name](y))
    return x.mean(axis=(1, 2))

  def features(self, x: Float[Array, "B H W C"]) -> Float[Array, "B 256"]:
    """Added layer before its non-linearity: what the sequence models see of a slice."""
    return self.embed(self.pooled(x))

  def __call__(self, x: Float[Array, "B H W C"]) -> Float[Array, "B classes"]:
    """Logits, in the order of `arrays.STRATA` when trained on it."""
    return self.classifier(self.dropout(nnx.relu(self.features(x))))


def check_images(shape: tuple[int, ...], in_channels: int) -> None:
  """Raises ValueError unless `shape` is [B, H, W, in_channels] of a size the network can see."""
  if len(shape) != 4 or shape[3] != in_channels or min(shape[1:3]) < MIN_SIZE:
    raise ValueError(
      f"Inception-V3 expects images [B, H, W, {in_channels}] of at least {MIN_SIZE}×{MIN_SIZE} "
      f"pixels, got shape {list(shape)}"
    )
