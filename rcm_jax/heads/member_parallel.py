"""Programs of one member mapped over many: in one program, on threads or on devices."""

from __future__ import annotations

from collections.abc import Callable
from concurrent import futures
import functools
from typing import Any

import jax
from jax.sharding import Mesh, NamedSharding
import numpy as np

from rcm_jax.heads.epoch import Epoch
from rcm_jax.heads.objective import Member
from rcm_jax.heads.train_epochs import Training
from rcm_jax.ops.backend import backend
from rcm_jax.runtime import devices
from tfds_rcm.cores import num_cores


def over_members(function: Callable) -> Callable:
  """Maps a function of (member's arguments) over a leading member axis.

  On a CPU members run one after the other: XLA turns a product batched over members
  into many small ones, which is slower than as many single programs in a row.
  """
  if backend() == "cpu":
    return lambda *args: jax.lax.map(lambda one: function(*one), args)
  return jax.vmap(function)


def over_members_of(function: Callable) -> Callable:
  """Maps like `over_members`, but for the last argument, which all members share."""
  return lambda *args: over_members(lambda *own: function(*own, args[-1]))(*args[:-1])


def first_states(training: Training | Epoch, members: Member, start: Any = None) -> Any:
  """Returns the states that members begin with, on the devices that they are on.

  Args:
    training: of one member.
    members: leading axis M.
    start: parameters, leading axis M; None for those of the members' seeds.
  """
  begin = over_members(training.init if start is None else training.begin)
  run = jax.jit(devices.split_work(begin, devices.local_mesh()))
  return run(members if start is None else start)


def lower_run(training: Training, mesh: Mesh, *args: Any) -> jax.stages.Lowered:
  """Lowers `training.program` over members, which a mesh's devices share among them.

  Args:
    training: what one member does.
    mesh: of the devices, which have nothing to tell each other.
    args: state, member and first epoch, each with a member axis, and the data; arrays, or what
      describes them. On a GPU the state's memory is given to the state after.
  """
  run = devices.split_work(over_members_of(training.program), mesh, (False, False, False, True))
  return jax.jit(run, donate_argnums=0 if backend() == "gpu" else ()).lower(*args)


def compile_run(training: Training, *args: Any) -> Callable[[Any, Any, Any], tuple[Any, Any]]:
  """Compiles `training.run` over members, for arguments like `args`, each with a member axis.

  Members are split over this process' devices, which have nothing to tell each other.

  A step of one member gives a second core of a CPU little to do. There, every member runs by
  itself, as many at a time as there are cores, and the program is compiled for one; if there is
  one member only, each direction of its encoder has a core.
  """
  mesh = devices.local_mesh()
  if backend() != "cpu" or mesh.size > 1:
    data = jax.device_put(training.data, devices.replicated(mesh))
    together = lower_run(training, mesh, *args, data).compile()
    return lambda *args: together(*args, data)
  count = len(jax.tree.leaves(args)[0])
  one = lambda args, i: jax.tree.map(lambda leaf: leaf[i], args)
  first, pair = one(jax.device_get(args), 0), devices.core_pair()
  if count == 1 and training.splits and pair is not None:
    program = compile_split(training, pair, *first)
  else:
    data = jax.device_put(training.data, mesh.devices.flat[0])
    compiled = jax.jit(training.program).lower(*first, data).compile()
    program = lambda *args: compiled(*args, data)

  def run(*args):
    args = jax.device_get(args)
    alone = lambda i: jax.device_get(program(*one(args, i)))
    with futures.ThreadPoolExecutor(num_cores()) as pool:
      found = list(pool.map(alone, range(count)))
    return jax.tree.map(lambda *leaves: np.stack(leaves), *found)

  return run


def compile_split(
  training: Training, pair: Mesh, state: Any, member: Member, first_epoch: Any
) -> Callable[[Any, Member, Any], tuple[Any, Any]]:
  """Compiles `training.run` for one member, with the two directions of its encoder on two devices.

  The compiler splits the program (GSPMD): what is computed from variables whose leading axis is the
  directions lies on one device each, all else on both. With a dense decoder a step needs one
  exchange, of the halves of the logits.

  Returns:
    A function of host arrays.
  """
  half, whole = devices.split_leading(pair), devices.replicated(pair)

  def place(path: Any, leaf: Any) -> NamedSharding:
    of_encoder = "['encoder']" in jax.tree_util.keystr(path)
    return half if of_encoder and np.ndim(leaf) > 2 else whole

  placed = jax.tree_util.tree_map_with_path(place, state)
  run = jax.jit(
    training.program, in_shardings=(placed, whole, whole, whole), out_shardings=(placed, whole)
  )
  on_both = functools.partial(jax.device_put, device=whole)
  data = on_both(training.data)
  program = run.lower(state, member, first_epoch, data).compile()
  return lambda state, member, epoch: program(
    jax.device_put(state, placed), on_both(member), on_both(epoch), data
  )


def spread_members(count: int) -> tuple[Callable[[Any], Any], Callable[[Any], Any]]:
  """Returns how rows of members get onto this process' devices, and back to whole arrays.

  The last member stands in where devices would have nothing to do, and is then left out again.
  """
  more = -count % len(devices.devices())
  split = devices.split_leading(devices.local_mesh())
  own = devices.own_rows(count + more)

  def place(rows):
    filled = np.pad(np.asarray(rows), [(0, more)] + [(0, 0)] * (rows.ndim - 1), mode="edge")
    return jax.device_put(filled[own], split)

  def whole(rows):
    if not more and jax.process_count() == 1:
      return rows
    return devices.gather(np.asarray(rows))[:count]

  return lambda tree: jax.tree.map(place, tree), lambda tree: jax.tree.map(whole, tree)
