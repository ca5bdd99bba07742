"""A trained model that leaves its run: one folder with all that reading a stack needs.

`save` writes the CNN, the sequence heads of all seeds and a description, sealed with
checksums; `load` gives it back as a `Bundle`, whose probabilities are the mean over the
seeds (a deep ensemble), and over the views of a slice where there is more than the CNN's. The
folder refers to nothing outside itself.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
import dataclasses
import functools
import os
import pathlib
import shutil
from typing import Any
import zipfile

from flax import nnx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, UInt8
import numpy as np

from rcm_jax import arrays
from rcm_jax.cnn import folded_inception, inception
from rcm_jax.heads.head import HeadSpec, outline, stacked_shapes
from rcm_jax.inference.description import Description
from rcm_jax.inference.familiarity import Familiar, familiar_of
from rcm_jax.ops.backend import backend
from rcm_jax.runtime import checkpoints, stage_cache
from rcm_jax.textures import encoder as texture_encoder
from tfds_rcm.errors import UserError

DESCRIPTION = "bundle.json"
WEIGHTS = "weights"
FAMILIAR = "familiar.npz"
CNN_BATCH = 16  # slices that the CNN sees at once
_LENGTHS = 8  # stacks are padded to multiples of this, so that few shapes are compiled


@dataclasses.dataclass(frozen=True)
class Bundle:
  """A trained model, ready to read stacks.

  Attributes:
    description: what it is.
    network: the CNN, in evaluation mode; None where heads read another encoder's features.
    heads: parameters of the sequence heads on the CNN's features, leading axis M.
    encoders: of what else there is to see of a slice, in the order of `description.textures`.
    view_heads: parameters of further heads, in the order of `description.views`.
    familiar: what stacks like those of training look like; None where nobody measured.
  """

  description: Description
  network: inception.InceptionV3 | None
  heads: Any
  encoders: tuple[texture_encoder.Encoder, ...] = ()
  view_heads: tuple[Any, ...] = ()
  familiar: Familiar | None = None

  @property
  def context(self) -> int:
    """Slices that the CNN sees at once."""
    return self.description.cnn["context"]

  @property
  def num_features(self) -> int:
    """F of a slice: the CNN's features, then those of each encoder of textures."""
    return sum(self._sizes())

  def _sizes(self) -> list[int]:
    description = self.description
    return [description.head.num_features, *(spec.components for spec in description.textures)]

  def check_sees_images(self) -> None:
    """Refuses a model without a CNN.

    Raises:
      UserError: it is one.
    """
    if self.network is None:
      raise UserError(
        f"this model has no CNN: it reads features that {self.description.encoder} made, in a file; "
        "python -m rcm_jax.predict takes one by --features"
      )

  @functools.cached_property
  def see(self) -> Callable[[UInt8[Any, "B height width context"]], Float[Array, "B F"]]:
    """Compiled CNN and textures: slices with their neighbours as channels → features."""
    extract = folded_inception.extract_fn(self.network)
    if not self.encoders:
      return lambda images: extract(jnp.asarray(images))[0]
    encode = jax.jit(self.textures)

    def see(images):
      images = jnp.asarray(images)
      return jnp.concatenate([extract(images)[0], encode(images[..., self.context // 2])], axis=1)

    return see

  def textures(self, slices: UInt8[arrays.ArrayLike, "B height width"]) -> Float[Array, "B F"]:
    """Features of the slices' textures, if there are any; traceable."""
    seen = [
      texture_encoder.encode(encoder, slices, spec.downsampling)
      for spec, encoder in zip(self.description.textures, self.encoders, strict=True)
    ]
    return jnp.concatenate(seen, axis=1)

  def features(
    self,
    slices: UInt8[np.ndarray, "T height width"],
    advance: Callable[[int, int], None] = lambda done, total: None,
  ) -> Float[np.ndarray, "T F"]:
    """Runs CNN and textures over a stack, in batches of one size.

    Args:
      slices: of the bundle's image shape, shallow first.
      advance: called with the slices done and the slices in all.

    Raises:
      UserError: slices of another size.
    """
    self.check_sees_images()
    if slices.shape[1:] != self.description.image_shape:
      raise UserError(
        f"slices of {slices.shape[1]} x {slices.shape[2]} pixels; this model sees "
        f"{' x '.join(map(str, self.description.image_shape))}"
      )
    count, found = len(slices), []
    for start in range(0, count, CNN_BATCH):
      rows = np.minimum(np.arange(start, start + CNN_BATCH), count - 1)
      found.append(self.see(neighbours(slices, rows, self.context)))
      if start:  # the device works on one batch while the next is made ready
        found[-2] = np.asarray(found[-2])
      advance(min(start + CNN_BATCH, count), count)
    return np.concatenate([np.asarray(values) for values in found])[:count]

  def class_probabilities(
    self, features: Float[arrays.ArrayLike, "T F"], mask: Bool[arrays.ArrayLike, "T"]
  ) -> Float[Array, "T C"]:
    """Mean of the members' probabilities, as the heads give them; traceable."""
    one = lambda head, x, half_width: jax.nn.softmax(head(x, mask, half_width=half_width))
    return self._over_members(one, features)

  def slice_probabilities(self, features: Float[arrays.ArrayLike, "T F"]) -> Float[Array, "T C"]:
    """What the CNN itself says of each slice, without its neighbours; traceable."""
    of_cnn = jnp.asarray(features)[:, : self.description.head.num_features]
    logits = self.network.classifier(jnp.maximum(of_cnn, 0))
    return jax.nn.softmax(logits.astype(jnp.float32))

  def attention(
    self, features: Float[arrays.ArrayLike, "T F"], mask: Bool[arrays.ArrayLike, "T"]
  ) -> Float[Array, "T T"]:
    """Mean of the members' attention maps: row n weighs what slice n sees; traceable."""
    return self._over_members(
      lambda head, x, half_width: head.attention_weights(x, mask, half_width), features
    )

  def _over_members(self, function, features):
    """Mean of function(head, what it sees of the features, its half-width)."""
    description = self.description
    of_cnn, *of_textures = jnp.split(features, np.cumsum(self._sizes())[:-1], axis=1)
    seen = [(description.head, self.heads, of_cnn)]
    for view, params in zip(description.views, self.view_heads, strict=True):
      columns = jnp.concatenate([of_textures[i] for i in view], axis=1)
      seen.append((head_spec(description, view), params, columns))
    found = []
    for spec, params, columns in seen:
      graph = outline(spec)[0]
      one = lambda member, graph=graph, x=columns: function(
        nnx.merge(graph, member[0]), x, member[1]
      )
      # One after the other: batched over members, the small products would be slower on a CPU.
      over = jax.lax.map if backend() == "cpu" else lambda one, xs: jax.vmap(one)(xs)
      found.append(over(one, (params, jnp.array(self.description.half_widths))).mean(0))
    return sum(found) / len(found)

  def padded_length(self, count: int) -> int:
    """Length that a stack of `count` slices is padded to.

    Raises:
      UserError: the heads cannot see that many slices.
    """
    head = self.description.head
    length = -(-count // _LENGTHS) * _LENGTHS
    if head.limit is None:
      return length
    if count > head.max_slices:
      raise UserError(
        f"{count} slices; this model's attention knows stacks of at most {head.max_slices}: "
        "leave slices out, or train one with another attention"
      )
    return min(length, head.max_slices)

  @functools.cached_property
  def _classify_padded(self):
    return jax.jit(self.class_probabilities)

  def classify(self, slices: UInt8[np.ndarray, "T height width"]) -> Float[np.ndarray, "T C"]:
    """Returns each slice's stratum probabilities, mean over members, before calibration.

    Args:
      slices: of the bundle's image shape, shallow first.

    Raises:
      UserError: slices of another size, or too many for the heads.
    """
    values, mask = self.pad(self.features(slices))
    return np.asarray(self._classify_padded(values, mask))[: len(slices)]

  def pad(
    self, features: Float[np.ndarray, "n F"]
  ) -> tuple[Float[np.ndarray, "T F"], Bool[np.ndarray, "T"]]:
    """Pads features to one of few lengths; returns them with their mask.

    Raises:
      UserError: the heads cannot see that many slices.
    """
    length = self.padded_length(len(features))
    mask = np.arange(length) < len(features)
    return np.pad(features, ((0, length - len(features)), (0, 0))), mask


def neighbours(
  slices: UInt8[np.ndarray, "T height width"], rows: Int[np.ndarray, "B"], context: int
) -> UInt8[np.ndarray, "B height width context"]:
  """Returns slices with their neighbours as channels; the stack's end slices are repeated."""
  offsets = range(-(context // 2), context // 2 + 1)
  return np.stack([slices[np.clip(rows + k, 0, len(slices) - 1)] for k in offsets], axis=-1)


def save(directory: pathlib.Path, bundle: Bundle) -> None:
  """Writes a bundle, all or nothing; replaces one that is there."""
  part = directory.with_name(f".{directory.name}.part")
  shutil.rmtree(part, ignore_errors=True)
  part.mkdir(parents=True)
  checkpoints.save_tree(part / WEIGHTS, weight_tree(_cnn_tree(bundle.network), bundle))
  (part / DESCRIPTION).write_text(bundle.description.to_json(), encoding="utf-8")
  if bundle.familiar is not None:
    np.savez(part / FAMILIAR, **bundle.familiar._asdict())
  stage_cache.seal(part)
  shutil.rmtree(directory, ignore_errors=True)
  part.rename(directory)


def find(directory: pathlib.Path) -> pathlib.Path:
  """Returns the bundle that a path names: itself, or the bundle `model` in a run's work directory.

  Raises:
    UserError: there is none.
  """
  if not (directory / DESCRIPTION).exists():
    if not (directory / "model" / DESCRIPTION).exists():
      if (directory / "results.json").exists():
        raise UserError(
          f"{directory}: this run left no model; only those of sequence heads do (config.pipeline "
          "head, views or end_to_end)"
        )
      raise UserError(
        f"{directory}: no model in it ({DESCRIPTION}); give a run's work directory, or its "
        "folder `model`"
      )
    directory = directory / "model"
  return directory


def load(directory: str | os.PathLike[str]) -> Bundle:
  """Reads what `save` wrote.

  Args:
    directory: the bundle, or a run's work directory with the bundle `model` in it.

  Raises:
    UserError: there is no bundle, or it is damaged or of another format.
  """
  directory = find(pathlib.Path(directory))
  if not stage_cache.is_sealed(directory):
    raise UserError(
      f"{directory}: files of the model are missing or damaged; copy the whole folder again, or "
      "run the training's command again"
    )
  try:
    description = Description.from_json((directory / DESCRIPTION).read_text(encoding="utf-8"))
  except ValueError as error:
    raise UserError(f"{directory / DESCRIPTION}: {error}; run the training again") from error
  # Shapes alone: nothing is made of a size that the weights do not have.
  has_cnn = description.cnn is not None
  network = inception.without_values(**network_options(description)) if has_cnn else None
  shapes = lambda spec: stacked_shapes(spec, len(description.seeds))
  like = _tree(
    _cnn_tree(network),
    shapes(description.head),
    [texture_encoder.shapes(spec) for spec in description.textures],
    [shapes(head_spec(description, view)) for view in description.views],
  )
  try:
    tree = checkpoints.load_tree(directory / WEIGHTS, like)
  except Exception as error:  # Orbax raises many types where shapes or files do not match
    reason = str(error).split("\n")[0][:120]
    raise UserError(
      f"{directory / WEIGHTS}: does not fit {DESCRIPTION} ({reason}); run the training again"
    ) from error
  if network is not None:
    nnx.update(network, tree["cnn"]["params"], tree["cnn"]["stats"])
    network.eval()
  encoders = tuple(
    texture_encoder.Encoder(**tree[name]) for name in _numbered("texture", description.textures)
  )
  view_heads = tuple(tree[name] for name in _numbered("view", description.views))
  return Bundle(
    description, network, tree["heads"], encoders, view_heads, _familiar(directory / FAMILIAR)
  )


def _familiar(path: pathlib.Path) -> Familiar | None:
  if not path.exists():
    return None
  try:
    with np.load(path, allow_pickle=False) as arrays:
      return familiar_of(dict(arrays))
  except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile) as error:
    raise UserError(f"{path}: cannot be read ({error}); run the training again") from error


def head_spec(description: Description, view: tuple[int, ...]) -> HeadSpec:
  """Returns the architecture of the heads that read a view of the textures."""
  size = sum(description.textures[i].components for i in view)
  return dataclasses.replace(description.head, num_features=size)


def _numbered(name: str, things: Sequence[Any]) -> list[str]:
  return [f"{name}{i}" for i in range(len(things))]


def _tree(
  cnn: Any | None,
  heads: Any,
  encoders: Sequence[texture_encoder.Encoder],
  view_heads: Sequence[Any],
) -> dict[str, Any]:
  """What is kept of a bundle besides its description."""
  kept = [encoder._asdict() for encoder in encoders]
  return {
    **({} if cnn is None else {"cnn": cnn}),
    "heads": heads,
    **dict(zip(_numbered("texture", encoders), kept, strict=True)),
    **dict(zip(_numbered("view", view_heads), view_heads, strict=True)),
  }


def _cnn_tree(network: inception.InceptionV3 | None) -> dict[str, Any] | None:
  if network is None:
    return None
  params, stats = nnx.state(network, nnx.Param, nnx.BatchStat)
  return {"params": params, "stats": stats}


def weight_tree(cnn: Any, bundle: Bundle) -> dict[str, Any]:
  """Returns what is kept of a bundle besides its description, with `cnn` for the CNN's part."""
  return _tree(cnn, bundle.heads, bundle.encoders, bundle.view_heads)


def network_options(description: Description) -> dict[str, Any]:
  """Returns what the CNN is made with."""
  return {
    "num_classes": len(description.strata),
    "in_channels": description.cnn["context"],
    "width": description.cnn["width"],
    "count_include_pad": description.cnn.get("count_include_pad", False),  # older ones have none
    "dtype": inception.compute_dtype(),
  }
