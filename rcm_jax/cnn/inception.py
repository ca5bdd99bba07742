"""Inception-V3 in Flax NNX, parameter for parameter as Keras has it (Szegedy et al. 2016).

The layers are those of `inception_layers`. Two departures from Keras leave every parameter and, up
to rounding, every output as they were: the average-pooling branches convolve first and pool
afterwards (both are linear, one over channels, the other over space, so they commute, and there
are up to ten times fewer channels to pool), and the maximum is taken over strided slices, whose
gradient XLA compiles into plain selections instead of a scatter.

The paper (hybrid networks, "Baselines and methods") adds a fully connected layer of 256 units,
whose values before the non-linearity are what the sequence models see.
"""

from __future__ import annotations

import functools
import math
from typing import Any

from flax import nnx
import jax
import jax.numpy as jnp
from jax.typing import DTypeLike
from jaxtyping import Array, Float, Num
import numpy as np

from rcm_jax.cnn import inception_layers
from rcm_jax.cnn.batch_norm import batch_norm_relu
from rcm_jax.ops.backend import backend

MIN_SIZE = 75  # pixels a side: below it the last blocks have no pixel left
NUM_FEATURES = 256
EPSILON = 1e-3  # of every batch normalisation, as in Keras


def average_pool(
  x: Float[Array, "B H W C"], count_include_pad: bool = False
) -> Float[Array, "B H W C"]:
  """Mean of the 3×3 pixels around each pixel; those outside are left out, or count as zeros."""
  return nnx.avg_pool(x, (3, 3), (1, 1), "SAME", count_include_pad=count_include_pad).astype(
    x.dtype
  )


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


def from_uint8(x: Num[Array, "*dims"], dtype: DTypeLike = jnp.float32) -> Float[Array, "*dims"]:
  """Gray levels 0 to 255 to [−1, 1], as Keras preprocesses for Inception-V3.

  Levels between whole numbers, as a resampled image has them, are floating-point.
  """
  return x.astype(dtype) * (1 / 127.5) - 1


class ConvBlock(nnx.Module):
  """Convolution without bias → batch normalisation without scale → ReLU."""

  def __init__(
    self,
    spec: inception_layers.Conv,
    in_channels: int,
    *,
    bn_momentum: float,
    dtype: DTypeLike,
    rngs: nnx.Rngs,
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
    if self.spec.average:
      x = average_pool(x, self.spec.count_include_pad)
    bn = self.bn
    if bn.use_running_average:
      return nnx.relu(bn(x))
    x, mean, var = batch_norm_relu(x, bn.bias[...], EPSILON)
    bn.mean[...] = bn.momentum * bn.mean[...] + (1 - bn.momentum) * mean
    bn.var[...] = bn.momentum * bn.var[...] + (1 - bn.momentum) * var
    return x


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
    count_include_pad: bool = False,
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
      count_include_pad: whether average pooling counts the zeros around the image, see
        `pretrained.load`.
      dtype: type of the convolutions' computation (bfloat16 on accelerators); parameters,
        statistics and the two dense layers are float32.
      rngs: streams `params` and, if dropout is used, `dropout`.
    """
    self.width, self.in_channels = width, in_channels
    self.table = inception_layers.network(width, count_include_pad=count_include_pad)
    blocks = {}
    channels = in_channels
    for name, steps in self.table.items():
      blocks[name] = nnx.Dict(
        {
          spec.name: ConvBlock(spec, fan_in, bn_momentum=bn_momentum, dtype=dtype, rngs=rngs)
          for spec, fan_in in inception_layers.convolutions(steps, channels)
        }
      )
      channels = functools.reduce(
        lambda count, step: inception_layers.out_channels(step, count), steps, channels
      )
    self.blocks = nnx.Dict(blocks)
    dense = functools.partial(nnx.Linear, dtype=jnp.float32, kernel_init=glorot_uniform, rngs=rngs)
    self.embed = dense(channels, NUM_FEATURES)
    self.dropout = nnx.Dropout(dropout, rngs=rngs if dropout else None)
    self.classifier = dense(NUM_FEATURES, num_classes)

  def pool(self, *, count_include_pad: bool) -> None:
    """Sets how average pooling treats the zeros around the image; before `nnx.split`."""
    self.table = inception_layers.network(self.width, count_include_pad=count_include_pad)
    for block, steps in self.table.items():
      for spec, _ in inception_layers.convolutions(steps, self.in_channels):
        self.blocks[block][spec.name].spec = spec

  def named_blocks(self) -> dict[str, ConvBlock]:
    """Every convolution under "block/name", in the order of the table (Keras' of creation)."""
    return {
      f"{block}/{spec.name}": self.blocks[block][spec.name]
      for block, steps in self.table.items()
      for spec, _ in inception_layers.convolutions(steps, self.in_channels)
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
      x = inception_layers.run(steps, x, lambda spec, y, block=block: block[spec.name](y))
    return x.mean(axis=(1, 2), dtype=jnp.float32)

  def features(self, x: Float[Array, "B H W C"]) -> Float[Array, "B 256"]:
    """Added layer before its non-linearity: what the sequence models see of a slice."""
    return self.embed(self.pooled(x))

  def __call__(self, x: Float[Array, "B H W C"]) -> Float[Array, "B classes"]:
    """Logits, in the order of `anatomy.Strata.names` when trained on it."""
    return self.classifier(self.dropout(nnx.relu(self.features(x))))


def without_values(**options: Any) -> InceptionV3:
  """Returns the network with the shapes of its variables instead of values, for those of a file.

  Args:
    **options: of `InceptionV3`, but for `dropout`, whose random numbers no file has.
  """
  return nnx.merge(*_outline(**options), copy=True)


@functools.cache  # to trace 94 convolutions takes most of the time in which a model is loaded
def _outline(**options: Any) -> tuple[nnx.GraphDef, Any]:
  return nnx.split(nnx.eval_shape(lambda: InceptionV3(**options, rngs=nnx.Rngs(0))))


def compute_dtype() -> jnp.dtype:
  """Type of the convolutions' computation: bfloat16 on an accelerator, float32 on a CPU."""
  return jnp.dtype(jnp.float32 if backend() == "cpu" else jnp.bfloat16)


def compiler_options(*, training: bool = False) -> dict[str, str]:
  """Options for `jax.jit` of this network, empty but on a CPU.

  By default XLA hands convolutions and products on a CPU to a library that runs those without
  padding four times slower than XLA's own routines, and large ones on one core. Its reductions
  are the better ones, and in training batch normalisation is made of them.
  """
  if backend() != "cpu":
    return {}
  kinds = "LIBRARY_FUSION_TYPE_REDUCE" if training else ""
  options = {"xla_cpu_experimental_ynn_fusion_type": kinds}
  return options if _is_known(*options.items()) else {}


@functools.cache
def _is_known(option: tuple[str, str]) -> bool:
  """Whether this version of XLA takes the option."""
  try:
    jax.jit(lambda: 0, compiler_options=dict([option])).lower().compile()
  except jax.errors.JaxRuntimeError:
    return False
  return True


def check_images(shape: tuple[int, ...], in_channels: int) -> None:
  """Raises ValueError unless `shape` is [B, H, W, in_channels] of a size the network can see."""
  if len(shape) != 4 or shape[3] != in_channels or min(shape[1:3]) < MIN_SIZE:
    raise ValueError(
      f"Inception-V3 expects images [B, H, W, {in_channels}] of at least {MIN_SIZE}×{MIN_SIZE} "
      f"pixels, got shape {list(shape)}"
    )
