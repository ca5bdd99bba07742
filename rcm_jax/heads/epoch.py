"""One epoch of one member in parts, which both kinds of training are made of: in memory and streamed."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

from flax import nnx
import jax
import jax.numpy as jnp
import optax

from rcm_jax.heads.head import Head, HeadSpec
from rcm_jax.heads.objective import Draws, L1Reduction, Member, draw, loss


class State(NamedTuple):
  """What a member carries from epoch to epoch.

  Attributes:
    params: as the last step left them.
    optimizer: Adam's moments.
    average: of `optax.ema`; nothing where none is taken.
    best_params: the snapshot that is best so far.
    best_score: what it is best by.
  """

  params: Any
  optimizer: Any
  average: Any
  best_params: Any
  best_score: Any


class Recipe(NamedTuple):
  """How members are trained, all of them alike.

  Attributes:
    batch_size: stacks a step; the last step of an epoch may have fewer.
    epochs: in all, which scheduled sampling needs to know.
    input_dropout: share of the features that training hides from a stack's slices, the same ones
      from all of them.
    ema_decay: decay a step of the running average of the weights, which is judged and kept; 0
      takes the weights themselves.
    l1_reduction: see `objective.recurrent_penalty`.
    shortest_crop: share of a training stack's slices that the shortest of its crops in depth has,
      which are drawn anew each epoch; 1 leaves stacks whole.
  """

  batch_size: int
  epochs: int
  input_dropout: float = 0.0
  ema_decay: float = 0.0
  l1_reduction: L1Reduction = "mean"
  shortest_crop: float = 1.0


class Epoch(NamedTuple):
  """The parts of one member's epoch, whose random numbers follow from the member and the epoch alone.

  Attributes:
    init: member → state.
    begin: parameters → state.
    steps: of an epoch.
    order: (member, epoch) → stacks of each step, [steps, batch]; their number stands for none.
    draws: (member, epoch, first step, steps) → what is random in each of these steps.
    step: ((parameters, optimizer, average), member, values, truth, draws of the step) → (the same
      after it, loss).
    kept: state → parameters to be judged.
    choose: (state, parameters, score) → state that keeps the better snapshot.
  """

  init: Callable[[Member], State]
  begin: Callable[[Any], State]
  steps: int
  order: Callable[[Member, Any], Any]
  draws: Callable[[Member, Any, Any, int], Draws]
  step: Callable[..., Any]
  kept: Callable[[State], Any]
  choose: Callable[[State, Any, Any], State]


def make_epoch(spec: HeadSpec, recipe: Recipe, count: int, length: int) -> Epoch:
  """Builds the parts of an epoch.

  Args:
    spec: the architecture.
    recipe: see there.
    count: training stacks.
    length: slices that they are padded to.
  """
  steps = -(-count // recipe.batch_size)
  adam = optax.scale_by_adam()
  averaging = optax.ema(recipe.ema_decay) if recipe.ema_decay else optax.identity()

  def keys(member, number):
    return jax.random.split(jax.random.fold_in(jax.random.key(member.seed), number + 1))

  def init(member: Member) -> State:
    return begin(nnx.state(Head(spec, nnx.Rngs(params=jax.random.key(member.seed))), nnx.Param))

  def begin(params: Any) -> State:
    return State(params, adam.init(params), averaging.init(params), params, jnp.float32(-jnp.inf))

  def order(member, number):
    drawn = jax.random.permutation(keys(member, number)[0], count)
    none = jnp.full(steps * recipe.batch_size - count, count)
    return jnp.concatenate([drawn, none]).reshape(steps, recipe.batch_size)

  def draws(member, number, first, some):
    forcing = 1.0 if spec.feedback == "teacher" else 1 - number / max(recipe.epochs - 1, 1)
    shape = (recipe.batch_size, length)
    one = lambda key: draw(
      spec, member, key, shape, forcing, recipe.input_dropout, recipe.shortest_crop
    )
    all_keys = jax.random.split(keys(member, number)[1], steps)
    return jax.vmap(one)(jax.lax.dynamic_slice_in_dim(all_keys, first, some))

  def loss_fn(params, *args):
    return loss(spec, params, *args, recipe.l1_reduction, recipe.shortest_crop)

  def step(carry, *args):
    member, (params, optimizer, average) = args[0], carry
    (_, of_data), grads = jax.value_and_grad(loss_fn, has_aux=True)(params, *args)
    updates, optimizer = adam.update(grads, optimizer)
    params = jax.tree.map(lambda p, u: p - member.learning_rate * u, params, updates)
    _, average = averaging.update(params, average)
    return (params, optimizer, average), of_data

  def kept(state: State) -> Any:
    if not recipe.ema_decay:
      return state.params
    return optax.tree.bias_correction(state.average.ema, recipe.ema_decay, state.average.count)

  def choose(state: State, params: Any, score: Any) -> State:
    best = jax.tree.map(
      lambda new, old: jnp.where(score > state.best_score, new, old),
      (params, score),
      (state.best_params, state.best_score),
    )
    return State(state.params, state.optimizer, state.average, *best)

  return Epoch(init, begin, steps, order, draws, step, kept, choose)
