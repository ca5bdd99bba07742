"""One program for one or many devices, of one or many processes.

Devices lie along one axis, "data". Batches, and the members of a sweep, are split over it; all else
is copied. Whatever a device computes from its share alone needs no communication; a training step of
the CNN needs one all-reduce (`mean_over_devices`). Every process loads only its devices' rows, and
the first process alone writes.
"""

from __future__ import annotations

import collections
from collections.abc import Callable, Iterable, Iterator, Sequence
import contextlib
import os
import pathlib
from typing import Any

import jax
from jax.experimental import multihost_utils
from jax.flatten_util import ravel_pytree
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec, Sharding
import numpy as np

from rcm_jax.ops.backend import backend, told_devices
from tfds_rcm import interrupts
from tfds_rcm.cores import num_cores
from tfds_rcm.errors import UserError

SECONDS_OF_SILENCE = 300  # after which a process that does not answer ends the others
SECONDS_OF_LEAVE = 2.0  # that the first process stays when all are asked to stop

_AXIS = "data"
_UNSET = -1  # JAX's number of CPU devices where nobody chose one
_has_second_core = False
_LONGEST_PATH = 4096  # bytes


def start(
  coordinator: str | None = None,
  processes: int | None = None,
  index: int | None = None,
  gpus: Sequence[int] | None = None,
) -> None:
  """Joins the processes of a run, if there are several; before anything else asks for devices.

  A process by itself makes the second core of a CPU a device, see `core_pair`.

  Args:
    coordinator: HOST:PORT of the first process. Without it, and in a Slurm step of several tasks,
      all three come from Slurm's environment.
    processes: in all.
    index: of this one.
    gpus: numbers of this machine's GPUs that this process takes, of those that it may see. None: of
      several, the one whose number is the process', counted over and over; processes are then
      numbered machine by machine. (In a Slurm step it is the task's number on its machine.)

  Raises:
    UserError: some, but not all, of the three are given, or a GPU that this process cannot see.
  """
  if visible := visible_gpus():
    repeat_results()
  given = (coordinator, processes, index)
  if any(value is not None for value in given):
    if any(value is None for value in given):
      raise UserError("--coordinator, --processes and --process belong together; give all or none")
    _initialize(coordinator, processes, index, local_device_ids=_own_gpus(visible, index, gpus))
  elif int(os.environ.get("SLURM_STEP_NUM_TASKS", "1")) > 1:
    # JAX by itself takes the GPU of the task's number, which is not there where Slurm shows each
    # task one GPU only (--gpus-per-task).
    task = int(os.environ.get("SLURM_LOCALID", "0"))
    _initialize(local_device_ids=_own_gpus(visible, task, gpus))
  else:
    _use_second_core()


def visible_gpus() -> list[str]:
  """Returns the NVIDIA GPUs that this process may use, as CUDA_VISIBLE_DEVICES names them."""
  visible = os.environ.get("CUDA_VISIBLE_DEVICES")
  if visible is not None:
    return [gpu for gpu in visible.split(",") if gpu]
  return sorted(
    (path.name.removeprefix("nvidia") for path in pathlib.Path("/dev").glob("nvidia[0-9]*")),
    key=int,
  )


def _own_gpus(visible: Sequence[str], index: int, chosen: Sequence[int] | None) -> list[int] | None:
  if chosen:
    absent = [number for number in chosen if not 0 <= number < len(visible)]
    if absent:
      raise UserError(
        f"--gpus: there is no GPU {absent[0]} among the {len(visible)} that this process may use; "
        "they are counted from 0, see nvidia-smi -L and CUDA_VISIBLE_DEVICES"
      )
    return list(chosen)
  return [index % len(visible)] if visible else None


def repeat_results() -> None:
  """Has XLA choose GPU kernels that give the same bits every time; before JAX looks for devices.

  Which of several such kernels is fastest XLA still tries out, when it compiles; the compilation
  cache keeps what it found.
  """
  flags = os.environ.get("XLA_FLAGS", "")
  if "nondeterministic_ops" not in flags and "xla_gpu_deterministic_ops" not in flags:
    os.environ["XLA_FLAGS"] = f"{flags} --xla_gpu_exclude_nondeterministic_ops=true".strip()


def _use_second_core() -> None:
  """Has JAX see a second device in a CPU of several cores, for `core_pair`; `devices` leaves it out."""
  global _has_second_core
  simulated = "xla_force_host_platform_device_count" in os.environ.get("XLA_FLAGS", "")
  if num_cores() < 2 or simulated or jax.config.jax_num_cpu_devices != _UNSET:
    return
  with contextlib.suppress(RuntimeError):  # JAX has looked for devices before, as in our tests
    jax.config.update("jax_num_cpu_devices", 2)
    _has_second_core = True


def devices() -> list[jax.Device]:
  """Returns all processes' devices that work is split over."""
  if (told := told_devices()) is not None:
    return told
  return jax.devices()[:1] if _has_second_core and backend() == "cpu" else jax.devices()


def core_pair() -> Mesh | None:
  """Returns two cores of the CPU along one axis; None where computing is done elsewhere, or there is one core."""
  if not _has_second_core or backend() != "cpu":
    return None
  return jax.make_mesh((2,), (_AXIS,), axis_types=(AxisType.Auto,), devices=jax.devices())


def _initialize(*args: Any, local_device_ids: Sequence[int] | None = None) -> None:
  jax.config.update("jax_enable_preemption_service", False)  # it would take SIGTERM from us
  jax.distributed.initialize(
    *args, local_device_ids=local_device_ids, heartbeat_timeout_seconds=SECONDS_OF_SILENCE
  )
  if is_first():  # it serves the others, which abort when it is gone
    interrupts.end_after_others(SECONDS_OF_LEAVE)
  # On CPUs, devices that first talk to each other must do so within 30 s; later they wait. Now all
  # have just started; at their first step one may still compile when the others have done so.
  wait_for_all("start")
  mesh = device_mesh()
  rows = put_rows(np.zeros(jax.local_device_count(), np.float32), mesh)
  jax.block_until_ready(jax.jit(mean_over_devices(lambda x: x, mesh, [False]))(rows))


def most_that_divide(available: int, number: int) -> int:
  """Returns the largest count, at most those available, that divides a number; 0 is divided by all."""
  return max(count for count in range(1, available + 1) if number % count == 0)


def device_mesh(divides: int = 0) -> Mesh:
  """Returns the devices along one axis.

  Args:
    divides: if given, the number of devices must divide it; a process uses as many of its devices
      as do.

  Raises:
    UserError: devices of several processes do not divide it.
  """
  available = devices()
  count = most_that_divide(len(available), divides)
  if count < len(available) and jax.process_count() > 1:
    raise UserError(
      f"config.cnn.norm_groups = {divides} cannot be divided over {len(available)} devices; make it "
      "a multiple of their number, and config.cnn.batch_size a multiple of that"
    )
  return jax.make_mesh((count,), (_AXIS,), axis_types=(AxisType.Auto,), devices=available[:count])


def local_mesh() -> Mesh:
  """Returns this process' own devices along one axis."""
  own = [device for device in devices() if device.process_index == jax.process_index()]
  return jax.make_mesh((len(own),), (_AXIS,), axis_types=(AxisType.Auto,), devices=own)


def split_leading(mesh: Mesh) -> NamedSharding:
  """Returns the sharding that splits an array's first axis over the devices."""
  return NamedSharding(mesh, PartitionSpec(_AXIS))


def replicated(mesh: Mesh) -> NamedSharding:
  """Returns the sharding that copies an array to every device."""
  return NamedSharding(mesh, PartitionSpec())


def put(tree: Any, sharding: Sharding) -> Any:
  """Puts arrays, which every process has whole, onto the devices."""
  if jax.process_count() == 1:
    return jax.device_put(tree, sharding)

  def place(leaf: Any) -> jax.Array:
    leaf = np.asarray(leaf)
    return jax.make_array_from_callback(leaf.shape, sharding, lambda index: leaf[index])

  return jax.tree.map(place, tree)


def own_rows(count: int) -> slice:
  """Returns which of `count` rows, split over all processes, this one is to load."""
  share = count // jax.process_count()
  return slice(jax.process_index() * share, (jax.process_index() + 1) * share)


def put_rows(tree: Any, mesh: Mesh) -> Any:
  """Puts rows onto the devices, each process having loaded its `own_rows`."""
  if jax.process_count() == 1:
    return jax.device_put(tree, split_leading(mesh))
  place = lambda leaf: jax.make_array_from_process_local_data(split_leading(mesh), leaf)
  return jax.tree.map(place, tree)


def local(tree: Any) -> Any:
  """Returns this process' copies of what was `put` on all devices, as they lie on one device."""
  if jax.process_count() == 1:
    return tree
  here = lambda leaf: leaf.addressable_data(0) if isinstance(leaf, jax.Array) else leaf
  return jax.tree.map(here, tree)


def gather(rows: np.ndarray) -> np.ndarray:
  """Returns the rows of all processes, those of the first process first."""
  if jax.process_count() == 1:
    return rows
  return np.asarray(multihost_utils.process_allgather(rows, tiled=True))


def mean_over_devices(
  function: Callable[..., Any], mesh: Mesh, copied: Sequence[bool]
) -> Callable[..., Any]:
  """Maps a function over shares of its arguments; returns the means of its results.

  All results, whatever their shapes, travel in one vector, so in one all-reduce.

  Args:
    function: arrays → pytree of float32 arrays.
    mesh: of the devices. On a single one, the function itself is returned.
    copied: for each argument, whether every device gets it whole, or its share of the rows.
  """
  if mesh.size == 1:
    return function

  def share(*args: Any) -> Any:
    flat, unravel = ravel_pytree(function(*args))
    return unravel(jax.lax.pmean(flat, _AXIS))

  specs = tuple(PartitionSpec() if whole else PartitionSpec(_AXIS) for whole in copied)
  return jax.shard_map(share, mesh=mesh, in_specs=specs, out_specs=PartitionSpec(), check_vma=False)


def split_work(
  function: Callable[..., Any], mesh: Mesh, copied: Sequence[bool] | None = None
) -> Callable[..., Any]:
  """Maps a function over shares of its arguments' first axes, without any communication.

  Args:
    function: of arrays.
    mesh: of the devices. On a single one, the function itself is returned.
    copied: for each argument, whether every device gets it whole; None if none is.
  """
  if mesh.size == 1:
    return function
  spec = PartitionSpec(_AXIS)
  specs = spec if copied is None else tuple(PartitionSpec() if c else spec for c in copied)
  return jax.shard_map(function, mesh=mesh, in_specs=specs, out_specs=spec, check_vma=False)


def ahead(results: Iterable[Any], depth: int = 2) -> Iterator[Any]:
  """Yields results in order, each after the `depth` after it have been asked for.

  Devices compute what was asked for while the host reads what they have done.
  """
  waiting = collections.deque()
  for result in results:
    waiting.append(result)
    if len(waiting) > depth:
      yield waiting.popleft()
  yield from waiting


def is_first() -> bool:
  """Whether this process is the one that writes."""
  return jax.process_index() == 0


def any_process(flag: bool) -> bool:
  """Whether the flag is set in any process; all must ask at the same point."""
  if jax.process_count() == 1:
    return flag
  return bool(np.any(multihost_utils.process_allgather(np.asarray(flag))))


def told_by_first(tree: Any) -> Any:
  """Returns the first process' arrays to all; all must ask at the same point."""
  if jax.process_count() == 1:
    return tree
  return multihost_utils.broadcast_one_to_all(jax.tree.map(np.asarray, tree))


def path_of_first(path: pathlib.Path) -> pathlib.Path:
  """Returns the first process' path to all; all must ask at the same point."""
  if jax.process_count() == 1:
    return path
  letters = np.frombuffer(os.fsencode(path).ljust(_LONGEST_PATH, b"\0"), np.uint8)
  return pathlib.Path(os.fsdecode(told_by_first(letters).tobytes().rstrip(b"\0")))


def wait_for_all(where: str) -> None:
  """Waits until every process has come here."""
  if jax.process_count() > 1:
    multihost_utils.sync_global_devices(where)
