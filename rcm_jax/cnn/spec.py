"""The single-slice classifier: its network and optimiser, and its features."""

from __future__ import annotations

from collections.abc import Callable
import dataclasses
from typing import Any

from flax import nnx
import jax
import jax.numpy as jnp
import optax

from rcm_jax.cnn import inception
from rcm_jax.cnn import pretrained as pretrained_lib
from rcm_jax.cnn.augmentation import Augmentation

Advance = Callable[[int, int], None]  # (done, total)


@dataclasses.dataclass(frozen=True)
class CnnSpec:
  """All that determines a trained CNN but its data.

  Attributes:
    context: slices seen at once; 3 is the paper's IV3-Context.
    width: factor on the channel counts of Inception-V3.
    epochs: passes over the training slices.
    batch_size: slices a step.
    norm_groups: parts of a batch, of equal size, that are normalised by their own statistics; a
      number of devices that divides it gives the same training as one device.
    learning_rate: Adam's peak rate; it rises over the first epoch and falls as a cosine.
    dropout: share of the 256 units dropped before the classifier.
    bn_momentum: share of the running statistics that survives a step.
    pretrained: file of ImageNet weights to start from, or None. Its convolutions keep its
      batch statistics, as is usual in fine-tuning: a new network's head would spoil them at
      first, and torchvision's scales are folded into the kernels with them.
    pretrained_input: what its images were like, see `pretrained.load`.
    frozen_epochs: epochs in which only the layers behind the convolutions learn, if these are not new.
    body_rate: the convolutions' share of the learning rate afterwards, likewise; it rises over one
      epoch.
    augmentation: ranges of the random views.
    seed: of initialisation, order and views.
    num_strata: that are told apart; the paper's are 3.
    init: names the model of ours whose weights training starts from, or None; its schedule is that of
      a file of ImageNet weights.
    count_include_pad: whether average pooling counts the zeros around the image; where weights are
      loaded, as the network does that they come from, see `pretrained.load`.
  """

  context: int
  width: float
  epochs: int
  batch_size: int
  norm_groups: int
  learning_rate: float
  dropout: float
  bn_momentum: float
  pretrained: str | None
  pretrained_input: str
  frozen_epochs: int
  body_rate: float
  augmentation: Augmentation
  seed: int
  count_include_pad: bool = False
  num_strata: int = 3
  init: str | None = None

  @property
  def fine_tunes(self) -> bool:
    """Whether training starts from weights that the convolutions learned before."""
    return bool(self.pretrained or self.init)

  def build(self) -> inception.InceptionV3:
    """Returns the network, freshly initialised."""
    return inception.InceptionV3(**self._options(), dropout=self.dropout, rngs=nnx.Rngs(self.seed))

  def without_values(self) -> inception.InceptionV3:
    """Returns the network that a file's weights are put into; it has no dropout."""
    return inception.without_values(**self._options())

  def _options(self) -> dict[str, Any]:
    return {
      "num_classes": self.num_strata,
      "in_channels": self.context,
      "width": self.width,
      "bn_momentum": self.bn_momentum,
      "count_include_pad": self.count_include_pad,
      "dtype": inception.compute_dtype(),
    }


def start(spec: CnnSpec, state: tuple[Any, Any] | None = None) -> inception.InceptionV3:
  """Returns the network that training begins with.

  Args:
    spec: the network and its training.
    state: parameters and running statistics of a network like it, if `spec.init` names one.

  Raises:
    UserError: the file of weights cannot be read or does not fit.
  """
  model = untrained(spec)
  if state is not None:
    nnx.update(model, *state)
  if spec.pretrained:
    pretrained_lib.load(
      model,
      spec.pretrained,
      rgb_input=spec.pretrained_input,
      count_include_pad=spec.count_include_pad,
    )
  return model


def untrained(spec: CnnSpec) -> inception.InceptionV3:
  """Returns the network of `start`, in the same modes, without the file's weights."""
  model = spec.build()
  if spec.fine_tunes:
    for block in model.named_blocks().values():
      block.eval()
  return model


def make_optimizer(spec: CnnSpec, epoch_steps: int) -> optax.GradientTransformation:
  """Returns Adam with the schedules of `CnnSpec`, for the parameters of `start`."""
  steps = epoch_steps * spec.epochs
  adam = optax.adam(
    optax.warmup_cosine_decay_schedule(0.0, spec.learning_rate, min(epoch_steps, steps // 2), steps)
  )
  if not spec.fine_tunes:
    return adam
  share = optax.linear_schedule(0.0, spec.body_rate, epoch_steps, spec.frozen_epochs * epoch_steps)

  def update(updates, state, params=None):
    del params
    updates = jax.tree_util.tree_map_with_path(
      lambda path, leaf: leaf * share(state.count) if path[0].key == "blocks" else leaf, updates
    )
    return updates, optax.ScaleByScheduleState(state.count + 1)

  slower = optax.GradientTransformation(
    lambda params: optax.ScaleByScheduleState(jnp.zeros((), jnp.int32)), update
  )
  return optax.chain(adam, slower)
