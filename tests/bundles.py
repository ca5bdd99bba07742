"""A model small enough to be made, saved and compiled in a test."""

from __future__ import annotations

import dataclasses
import functools

from flax import nnx
import jax
import jax.numpy as jnp
import numpy as np

from rcm_jax import anatomy
from rcm_jax.cnn import inception
from rcm_jax.decoding import intervals
from rcm_jax.heads.attention import AttentionSpec
from rcm_jax.heads.head import Head, HeadSpec, outline
from rcm_jax.inference import bundle, description, predictor
from rcm_jax.textures import encoder as texture_encoder
from rcm_jax.textures import learning as texture_learning

SIZE = 80  # pixels

TRAINING = description.Training(
  dataset="rcm_phantom/demo",
  stacks={"train": 3, "validation": 2, "test": 2},
  patients={"train": 3, "validation": 2, "test": 2},
  slices={"train": 30, "validation": 20, "test": 20},
  step_um=(3.0, 3.0, 5.0),
  gray_mean=(0.0, 255.0),
  gray_spread=(0.0, 255.0),
  wide_um=(1e3, 1e3),
)

HEAD = HeadSpec(
  num_features=256,
  hidden=4,
  cell="gru",
  bidirectional=True,
  window=None,
  attention=AttentionSpec("toeplitz", 1, units=4),
  max_slices=71,
  decoder="dense",
  feedback="own",
)

DESCRIPTION = description.Description(
  method="toeplitz_d1",
  image_shape=(SIZE, SIZE),
  cnn={"context": 1, "width": 0.01},
  head=HEAD,
  seeds=(0, 1),
  half_widths=(0, 1),
  calibration=intervals.Calibration(1.5, (4.0, 6.0), 0.9),
  training=TRAINING,
  figures={"accuracy": 0.875, "dej_dermis_mae_um": None},
)


def heads_of(spec: HeadSpec, seeds: tuple[int, ...]):
  """Random heads, one a seed."""
  made = [nnx.state(Head(spec, nnx.Rngs(seed)), nnx.Param) for seed in seeds]
  return jax.tree.map(lambda *leaves: jnp.stack([3 * leaf for leaf in leaves]), *made)


def head_of(spec: HeadSpec, params) -> Head:
  """The module with one member's parameters."""
  return nnx.merge(outline(spec)[0], params)


TEXTURES = (  # patch, words, down-sampling, components, seed
  texture_encoder.TextureSpec(7, 11, 1, 5, 0),
  texture_encoder.TextureSpec(7, 6, 3, 2, 0),
  texture_encoder.TextureSpec(1, 16, 1, 3, 0),
)
VIEWS = ((0, 2), (0, 1, 2))


def of_strata(
  described: description.Description, strata: anatomy.Strata
) -> description.Description:
  """The same of other strata."""
  inner, layers = len(strata) - 1, max(len(strata.layers) - 1, 0)
  margins = {"margin_um": (4.0, 6.0, 5.0)[:inner], "thickness_margin_um": (3.0,) * layers}
  return dataclasses.replace(
    described,
    head=dataclasses.replace(described.head, num_strata=len(strata)),
    calibration=described.calibration._replace(**margins),
    training=dataclasses.replace(described.training, wide_um=(1e3,) * inner),
    strata=strata,
  )


def network_of(described: description.Description) -> inception.InceptionV3:
  """A CNN with random weights."""
  network = inception.InceptionV3(**bundle.network_options(described), rngs=nnx.Rngs(0))
  network.eval()
  return network


@functools.cache
def made(
  context: int = 1, on_textures: bool = False, strata: anatomy.Strata = anatomy.PAPER
) -> bundle.Bundle:
  """A model with random weights, made once a process and compiled once.

  Args:
    context: slices that its CNN sees at once.
    on_textures: whether it has ordered heads, on `TEXTURES` too.
    strata: that it tells apart.
  """
  described = dataclasses.replace(DESCRIPTION, cnn={"context": context, "width": 0.01})
  if on_textures:
    ordered = dataclasses.replace(HEAD, likelihood="boundaries", feedback="none")
    calibration = described.calibration._replace(boundary_temperature=None)
    described = dataclasses.replace(
      described, head=ordered, calibration=calibration, textures=TEXTURES, views=VIEWS
    )
  described = of_strata(described, strata)
  network = network_of(described)
  encoders = tuple(map(encoder_of, described.textures))
  view_heads = tuple(
    heads_of(bundle.head_spec(described, view), described.seeds) for view in described.views
  )
  heads = heads_of(described.head, described.seeds)
  return bundle.Bundle(described, network, heads, encoders, view_heads)


def encoder_of(spec: texture_encoder.TextureSpec) -> texture_encoder.Encoder:
  """A random one, of whole numbers as those that are learned."""
  rng = np.random.default_rng(spec.seed)
  if spec.patch == 1:
    filters = texture_learning.learn_filters(spec, np.zeros((0, 1, 1), np.uint8))
  else:
    basis = rng.normal(size=(4, spec.patch, spec.patch))
    basis -= basis.mean((1, 2), keepdims=True)
    words = rng.normal(size=(spec.words, 4))
    filters = texture_learning.whole_filters(basis, words, spec.downsampling)
  mean, components = rng.uniform(size=spec.words), rng.normal(size=(spec.words, spec.components))
  return texture_encoder.Encoder(filters, mean.astype(np.float32), components.astype(np.float32))


@functools.cache
def reader(
  context: int = 1, on_textures: bool = False, strata: anatomy.Strata = anatomy.PAPER
) -> predictor.Predictor:
  """What reads stacks with `made`."""
  return predictor.Predictor(made(context, on_textures, strata))


def slices(count: int, size: int = SIZE, seed: int = 0) -> np.ndarray:
  """A stack that darkens with depth."""
  rng = np.random.default_rng(seed)
  grain = rng.integers(0, 256, (count, size, size))
  fade = np.linspace(1.0, 0.2, count)[:, None, None]
  return (grain * fade).astype(np.uint8)
