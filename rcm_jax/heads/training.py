"""Trains sequence heads: many members in one program, all data on the device.

A member is one training: its seed and its hyperparameters. `train` maps the programs of
`rcm_jax.heads.train_epochs` over all members, spreads members over devices (on a CPU, over threads), and talks
to the host once every few epochs.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
import dataclasses
import functools
import json
import pathlib
import time
from typing import Any, NamedTuple

from flax import nnx
import jax
import jax.numpy as jnp
from jaxtyping import Float
import numpy as np

from rcm_jax.arrays import Features
from rcm_jax.data.stored import StoredStacks
from rcm_jax.heads.head import HeadSpec, outline, stacked_shapes
from rcm_jax.heads.member_parallel import (
  compile_run,
  first_states,
  over_members,
  spread_members,
)
from rcm_jax.heads.objective import Member
from rcm_jax.heads.train_epochs import make_train
from rcm_jax.ops.toeplitz import toeplitz_weights
from rcm_jax.runtime import checkpoints as checkpoints_lib
from rcm_jax.runtime import resumable
from tfds_rcm.errors import UserError

EPOCHS_PER_CALL = 20  # between two visits of the host: progress, checkpoint, a look for NaN


class Progress(NamedTuple):
  """What is saved.

  Attributes:
    state: the members', [M, …].
    curves: loss and validation accuracy so far, [M, epochs, 2].
    seconds: that training took so far.
  """

  state: Any
  curves: np.ndarray
  seconds: np.ndarray


def report(
  curves: np.ndarray,
  epochs: Iterable[int],
  members: Sequence[Member],
  session: resumable.Session,
  scalars: Callable[[int, Mapping[str, float]], None],
) -> None:
  """Tells the curves of epochs that have ended.

  Raises:
    UserError: a member's loss is no longer finite.
  """
  for epoch in epochs:
    bad = np.flatnonzero(~np.isfinite(curves[:, epoch, 0]))
    if bad.size:
      raise UserError(
        f"training loss of head member {members[bad[0]]} is not finite in epoch "
        f"{epoch}; {session.kept()}; lower config.head.learning_rates"
      )
  for epoch in epochs:
    loss, accuracy = curves[:, epoch].mean(0).tolist()
    scalars(epoch, {"loss": loss, "validation_accuracy": accuracy})


def finish(
  directory: pathlib.Path,
  members: Sequence[Member],
  progress: Progress,
  whole: Callable[[Any], Any],
) -> None:
  """Leaves members' best snapshots and their history in the directory of the stage."""
  resumable.finish(
    directory,
    {"heads": whole(progress.state.best_params)},
    lambda: {
      "members": [dict(zip(Member._fields, map(float, m), strict=True)) for m in members],
      "loss": progress.curves[..., 0].tolist(),
      "validation_accuracy": progress.curves[..., 1].tolist(),
      "seconds": float(progress.seconds) / len(members),
    },
  )


def train(
  spec: HeadSpec,
  members: Sequence[Member],
  train_features: Features,
  validation_features: Features,
  directory: pathlib.Path,
  *,
  advance: Callable[[int, int], None] = lambda done, total: None,
  scalars: Callable[[int, Mapping[str, float]], None] = lambda step, values: None,
  resumed: Callable[[int], None] = lambda step: None,
  about: Mapping[str, Any] | None = None,
  start: Any = None,
  **recipe: Any,
) -> None:
  """Trains all members and keeps each one's best snapshot.

  Args:
    spec: the architecture.
    members: what to train; they share nothing but the data.
    train_features: padded stacks to train on.
    validation_features: padded stacks to choose each member's snapshot on.
    directory: gets `heads`, the best parameters with a leading member axis, and
      `history.json`. An interrupted training goes on after its last finished call.
    advance: called with the epochs done and the epochs in all.
    scalars: called with each epoch's metrics, mean over members.
    resumed: called with the first epoch that will be trained.
    about: what checkpoints carry besides `spec`.
    start: parameters that members start from, leading axis M; None for those of their seeds.
    recipe: fields of `epoch.Recipe`.

  Raises:
    UserError: a member's loss is no longer finite; the state before that call is kept.
    preemption.Preempted: the process was asked to stop, and the state is saved.
  """
  if resumable.finished(directory):
    return
  epochs = recipe["epochs"]
  per_call = next(n for n in range(min(EPOCHS_PER_CALL, epochs), 0, -1) if epochs % n == 0)
  training = make_train(
    spec, train_features, validation_features, epochs_per_call=per_call, **recipe
  )
  spread, whole = spread_members(len(members))
  stacked = spread(jax.tree.map(lambda *x: np.stack(x), *members))
  initial = first_states(training, stacked, None if start is None else spread(start))
  everyone = lambda epoch: spread(np.full(len(members), epoch, np.int32))
  run = compile_run(training, initial, stacked, everyone(0))

  def leg(epoch, progress, session):
    started = time.perf_counter()
    state, now = run(progress.state, stacked, everyone(epoch))
    after = epoch + per_call
    curves = np.array(progress.curves)
    curves[:, epoch:after] = whole(now)
    report(curves, range(epoch, after), members, session, scalars)
    advance(after, epochs)
    seconds = np.asarray(progress.seconds + time.perf_counter() - started, np.float32)
    return after, Progress(state, curves, seconds)

  curves = np.full((len(members), epochs, 2), np.nan, np.float32)
  rows = lambda leaf: np.zeros((len(members), *leaf.shape[1:]), leaf.dtype)
  begin = Progress(initial, curves, np.zeros((), np.float32))
  progress = resumable.run(
    leg,
    directory,
    begin._replace(state=jax.tree.map(rows, initial)),
    lambda: begin,
    name="train_heads",
    unit="epoch",
    total=epochs,
    about={"head": dataclasses.asdict(spec), **(about or {})},
    resumed=resumed,
    to_tree=lambda progress: progress._replace(state=whole(progress.state)),
    from_tree=lambda tree: tree._replace(state=spread(tree.state)),
  )
  finish(directory, members, progress, whole)


@dataclasses.dataclass(frozen=True)
class Trained:
  """Members as `train` left them.

  Attributes:
    spec: the architecture.
    members: their seeds and hyperparameters.
    params: best snapshots, leading axis M.
    history: `history.json`.
    directory: where all this was read.
  """

  spec: HeadSpec
  members: Sequence[Member]
  params: Any
  history: dict[str, Any]
  directory: pathlib.Path

  def probabilities(self, features: Features | StoredStacks) -> Float[np.ndarray, "M N T C"]:
    """Classifies stacks, on padding too, where the values mean nothing."""
    return self._of_members(_probabilities, features)

  def toeplitz_taps(self) -> dict[int, Float[np.ndarray, "seeds K"]]:
    """Learned weights by half-width D, shallow to deep, one row a member of that D."""
    taps: dict[int, list[np.ndarray]] = {}
    for member, logits in zip(self.members, self.params["attention"]["logits"][...], strict=True):
      width = int(member.half_width)
      middle = np.asarray(toeplitz_weights(jnp.asarray(logits), width))
      margin = self.spec.attention.half_width - width
      taps.setdefault(width, []).append(middle[margin : len(middle) - margin])
    return {width: np.stack(rows) for width, rows in taps.items()}

  def attention_weights(self, features: Features) -> Float[np.ndarray, "M N T T"]:
    """Attention map of every stack, by member (Figure 4)."""
    return self._of_members(_attention_weights, features)

  def _of_members(self, compiled: Callable, features: Features | StoredStacks) -> np.ndarray:
    if isinstance(features, StoredStacks):
      parts = [self._of_members(compiled, block) for block in features.blocks()]
      return np.concatenate(parts, axis=1)[:, : len(features)]
    half_widths = jnp.array([m.half_width for m in self.members])
    function = compiled(self.spec)
    return np.asarray(function(self.params, half_widths, features.values, features.mask))


# One program an architecture, for all splits of one shape and all calls.
@functools.cache
def _probabilities(spec: HeadSpec) -> Callable:
  return _over_members_and_stacks(
    spec, lambda model, x, m, width: jax.nn.softmax(model(x, m, half_width=width))
  )


@functools.cache
def _attention_weights(spec: HeadSpec) -> Callable:
  return _over_members_and_stacks(spec, lambda model, *rest: model.attention_weights(*rest))


def _over_members_and_stacks(spec: HeadSpec, function: Callable) -> Callable:
  """Compiles function(head, a stack's features, its mask, half-width) for members and stacks."""
  graph = outline(spec)[0]

  @jax.jit
  def every(params, half_widths, values, mask):
    def one(params, half_width):
      model = nnx.merge(graph, params)
      return jax.vmap(lambda x, m: function(model, x, m, half_width))(values, mask)

    return over_members(one)(params, half_widths)

  return every


def load(spec: HeadSpec, members: Sequence[Member], directory: pathlib.Path) -> Trained:
  """Reads what `train` left in `directory`."""
  like = stacked_shapes(spec, len(members))
  history = json.loads((directory / resumable.HISTORY).read_text())
  return Trained(
    spec, members, checkpoints_lib.load_tree(directory / "heads", like), history, directory
  )
