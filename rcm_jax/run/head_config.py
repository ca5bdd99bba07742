"""Sequence heads of a configuration: architecture, members, and the names of their rows."""

from __future__ import annotations

from collections.abc import Mapping
import itertools
import re
from typing import get_args

import ml_collections

from rcm_jax.cnn.inception import NUM_FEATURES
from rcm_jax.data.slices import Slices
from rcm_jax.heads.attention import AttentionSpec
from rcm_jax.heads.head import HeadSpec
from rcm_jax.heads.objective import L1Reduction, Member
from rcm_jax.textures import dictionary
from rcm_jax.textures.encoder import TextureSpec
from tfds_rcm.errors import UserError, check_one_of


def members(config: ml_collections.ConfigDict) -> list[Member]:
  """Every combination of the tuples under `config.head` and of the seeds, which vary fastest."""
  values = [config.head[f"{name}s"] for name in Member._fields if name != "seed"]
  return [
    Member(seed, *hyperparameters)
    for *hyperparameters, seed in itertools.product(*values, config.seeds)
  ]


def row_name(config: ml_collections.ConfigDict, member: Member, name: str | None = None) -> str:
  """Name of a member's row: `name`, made exact where members differ in more than seed.

  Args:
    config: whose members they are.
    member: one of them.
    name: None for the run's method.
  """
  head = config.head
  name = config.name if name is None else name
  # The name may go on behind the half-width.
  if head.attention == "toeplitz" and (len(head.half_widths) > 1 or head.likelihood == "slices"):
    width = f"_d{member.half_width}"
    name, found = re.subn(r"_d\d+(?=_|$)", width, name, count=1)
    name += "" if found else width
  for field in ("learning_rate", "l1", "dropout", "mae_weight"):
    if len(head[f"{field}s"]) > 1:
      name += f"_{field}={getattr(member, field):g}"
  return name


def spec(
  config: ml_collections.ConfigDict, splits: Mapping[str, Slices], num_features: int = NUM_FEATURES
) -> HeadSpec:
  """Returns the architecture that `config.head` describes for these stacks, by split.

  Args:
    config: of the run.
    splits: its stacks.
    num_features: of a slice.

  Raises:
    UserError: there is no such architecture, or a share is none.
  """
  head = config.head
  longest = max(int(splits[name].lengths.max()) for name in ("train", "validation"))
  if head.pca_components is not None and not 1 <= head.pca_components <= num_features:
    raise UserError(
      f"config.head.pca_components: {head.pca_components} is outside 1 to {num_features}, the number of "
      "a slice's features"
    )
  for name in ("input_dropout", "ema_decay"):
    if not 0 <= head[name] < 1:
      raise UserError(f"config.head.{name}: {head[name]} is outside 0 to 1")
  if not 0 < head.shortest_crop <= 1:
    raise UserError(f"config.head.shortest_crop: {head.shortest_crop} is outside 0 to 1")
  check_one_of("config.head.l1_reduction", head.l1_reduction, get_args(L1Reduction))
  return HeadSpec(
    num_features=head.pca_components or num_features,
    hidden=head.hidden,
    cell=head.cell,
    bidirectional=head.bidirectional,
    window=head.window,
    attention=AttentionSpec(head.attention, max(head.half_widths), head.edge_mode, head.units),
    max_slices=min(head.max_slices, longest),
    decoder=head.decoder,
    feedback=head.feedback,
    likelihood=head.likelihood,
    forget_bias=head.forget_bias,
    num_strata=len(splits["train"].strata),
  )


def textures(
  config: ml_collections.ConfigDict, splits: Mapping[str, Slices]
) -> tuple[list[TextureSpec], list[tuple[int, ...]]]:
  """The encoders of `config.textures`, and which of them each view reads: the gray levels always.

  Raises:
    UserError: views are no tuples of down-samplings, there are more components than words, or
      slices are too small for a down-sampling.
  """
  wanted = config.textures
  side = min(splits["train"].slices.shape[1:])
  whole = lambda view: isinstance(view, tuple) and view and all(isinstance(f, int) for f in view)
  if not (wanted.views and all(map(whole, wanted.views))):
    raise UserError(
      f"config.textures.views: {wanted.views}; give each view at least one down-sampling, as in "
      "((1,), (1, 2))"
    )
  factors = sorted({factor for view in wanted.views for factor in view})
  for factor in factors:
    if not 1 <= factor <= side // dictionary.PATCH:
      raise UserError(
        f"config.textures.views: down-sampling {factor} is outside 1 to {side // dictionary.PATCH}; slices "
        f"of {side} px must keep a patch of {dictionary.PATCH}"
      )
  if not 1 <= wanted.gray_levels <= 256:
    raise UserError(f"config.textures.gray_levels: {wanted.gray_levels} is outside 1 to 256")
  for name, words in (("components", "words"), ("gray_components", "gray_levels")):
    if not 1 <= wanted[name] <= wanted[words]:
      raise UserError(
        f"config.textures.{name}: {wanted[name]} is outside 1 to {wanted[words]} "
        f"(config.textures.{words})"
      )
  encoders = [
    TextureSpec(dictionary.PATCH, wanted.words, factor, wanted.components, wanted.seed)
    for factor in factors
  ]
  gray = TextureSpec(1, wanted.gray_levels, 1, wanted.gray_components, wanted.seed)
  views = [(*(factors.index(factor) for factor in view), len(factors)) for view in wanted.views]
  return [*encoders, gray], views
