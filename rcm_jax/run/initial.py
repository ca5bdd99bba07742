"""What `config.init` starts a training from: a model of ours, checked against the run's configuration."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
import pathlib
from typing import Any, NamedTuple

from flax import nnx
import jax
import ml_collections
import numpy as np

from rcm_jax.data import scale as scale_lib
from rcm_jax.data import slices as slices_lib
from rcm_jax.heads.head import HeadSpec
from rcm_jax.heads.objective import Member
from rcm_jax.inference import bundle as bundle_lib
from rcm_jax.inference.description import Description
from rcm_jax.runtime import files
from tfds_rcm.errors import UserError

PIPELINES = ("head", "end_to_end", "cnn", "features")  # that know how to


class Start(NamedTuple):
  """A model to start from.

  Attributes:
    model: all of it.
    key: names its content, for the hashes of what follows from it.
    told: what it is, in words.
  """

  model: bundle_lib.Bundle
  key: str
  told: str

  def network_state(self) -> tuple[Any, Any]:
    """Parameters and running statistics of the CNN."""
    return nnx.state(self.model.network, nnx.Param, nnx.BatchStat)

  def head_params(self, members: Sequence[Member]) -> Any:
    """Parameters that the members' heads start from, leading axis M.

    Each seed starts from the model's member of its place; seeds beyond the last begin with the
    first again, and differ by their order and dropout alone.
    """
    places = {seed: i for i, seed in enumerate(dict.fromkeys(int(m.seed) for m in members))}
    rows = np.array([places[int(m.seed)] for m in members]) % len(self.model.description.seeds)
    return jax.tree.map(lambda leaf: np.asarray(leaf)[rows], self.model.heads)


def load(config: ml_collections.ConfigDict) -> Start | None:
  """Returns what `config.init` names; None where it names nothing.

  Raises:
    UserError: there is no such model, or this kind of run starts from none.
  """
  if not config.init:
    return None
  place = f"config.init: {config.init}"
  if config.pipeline not in PIPELINES:
    raise UserError(
      f"{place}: config.pipeline = {config.pipeline} starts from no model; leave config.init empty "
      f"(or train one of {', '.join(PIPELINES)})"
    )
  if config.cnn.pretrained:
    raise UserError(f"{place}: config.cnn.pretrained is another start; leave one of both empty")
  directory = bundle_lib.find(pathlib.Path(config.init))
  model = bundle_lib.load(directory)
  return Start(model, files.folder_digest(directory), _told(model.description))


def check(
  start: Start,
  config: ml_collections.ConfigDict,
  splits: Mapping[str, slices_lib.Slices],
  encoder: str | None = None,
  say: Callable[[str], None] = lambda line: None,
) -> None:
  """Refuses a run on other slices or features than the model's, or with another CNN.

  Args:
    start: the model.
    config: of the run.
    splits: of the run's stacks.
    encoder: what made the features, of a run on a file of them.
    say: is told what is odd but allowed.

  Raises:
    UserError: something differs; says what to set.
  """
  place, model = f"config.init: {config.init}", start.model
  has, wanted = model.description.strata, splits["train"].strata
  if has != wanted:
    raise UserError(
      f"{place}: tells {len(has)} strata apart, this run {len(wanted)}; set "
      f"--config.data.strata={len(has)}"
    )
  if encoder is None:
    _check_cnn(place, config, model.description, splits["train"].scale, say)
  elif model.network is None and model.description.encoder != encoder:
    raise UserError(
      f"{place}: reads the features of {model.description.encoder}, config.features.file holds those "
      f"of {encoder}; encode your stacks by the former"
    )
  seeds, members = len(set(config.seeds)), len(model.description.seeds)
  if seeds > members and config.pipeline in ("head", "end_to_end"):
    say(
      f"{place}: {seeds} seeds start from {members} members; those beyond begin with the first again"
    )


def _told(description: Description) -> str:
  before = f", which started from {description.initial}" if description.initial else ""
  return f"{description.method} trained on {description.training.dataset}{before}"


def _check_cnn(
  place: str,
  config: ml_collections.ConfigDict,
  description: Description,
  scale: scale_lib.Scale,
  say: Callable[[str], None],
) -> None:
  if description.cnn is None:
    raise UserError(
      f"{place}: has no CNN, it reads the features of {description.encoder}; give them by "
      "config.features.file"
    )
  padding = config.cnn.count_include_pad
  has = {**description.cnn}
  has.setdefault("count_include_pad", False)
  for name, wanted in (
    ("context", config.cnn.context),
    ("width", config.cnn.width),
    ("count_include_pad", has["count_include_pad"] if padding is None else padding),
  ):
    if wanted != has[name]:
      raise UserError(
        f"{place}: its CNN has {name} = {has[name]}, this run {wanted}; set "
        f"--config.cnn.{name}={has[name]}"
      )
  known = description.scale
  if scale.image_size != known.image_size:
    raise UserError(
      f"{place}: sees slices of {known.image_size} px, this run's have {scale.image_size}; set "
      f"--config.data.image_size={known.image_size}"
    )
  if known.field_um is None or scale.field_um is None:
    if known.field_um is not None:
      raise UserError(
        f"{place}: sees a field of {known.field_um:.4g} µm, this run's stacks do not tell their pixel "
        "size; give pixel_um when preparing the dataset"
      )
    say(f"{place}: nobody told its scale; whether this run's stacks fit it cannot be checked")
  elif not scale_lib.same_field(known.field_um, scale.field_um):
    raise UserError(
      f"{place}: sees a field of {known.field_um:.4g} µm, this run's stacks show "
      f"{scale.field_um:.4g}; set --config.data.field_um={known.field_um:.4g} and "
      f"--config.data.image_size={known.image_size}"
    )


def check_heads(start: Start, config: ml_collections.ConfigDict, spec: HeadSpec) -> None:
  """Refuses heads of another architecture than the model's.

  Raises:
    UserError: they differ; names the field and what to set.
  """
  has = start.model.description.head
  place = f"config.init: {config.init}"
  if spec.num_features != has.num_features:
    advice = "encode your stacks by the same encoder"
    if config.head.pca_components is not None:
      advice = "leave config.head.pca_components empty"
    raise UserError(
      f"{place}: its heads read {has.num_features} features, this run's {spec.num_features}; {advice}"
    )
  by_name = lambda s: {
    "cell": s.cell,
    "hidden": s.hidden,
    "bidirectional": s.bidirectional,
    "attention": s.attention.kind,
    "half_widths": (s.attention.half_width,) if s.attention.kind == "toeplitz" else (),
    "units": s.attention.units if s.attention.kind in ("additive", "location") else 0,
    "max_slices": s.max_slices if s.attention.kind == "location" else 0,
    "decoder": s.decoder,
    "likelihood": s.likelihood,
    "feedback": "none" if s.feedback == "none" else has.feedback,  # the others have its weights
  }
  mine = by_name(spec)
  for name, value in by_name(has).items():
    if mine[name] != value:
      raise UserError(
        f"{place}: its heads have {name} = {value}, this run's {mine[name]}; set "
        f"--config.head.{name}={str(value).replace(' ', '')}"
      )
