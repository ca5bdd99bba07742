"""Which kind of device programs are traced for: the one question that code may ask of the machine."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
import contextlib
import contextvars
from typing import Literal

import jax

Backend = Literal["cpu", "gpu", "tpu"]

_KERNELS_FROM = (0, 11)  # the version of JAX that our kernels were compiled with
_told: contextvars.ContextVar[tuple[Backend, list[jax.Device]] | None] = contextvars.ContextVar(
  "told", default=None
)


def backend() -> Backend:
  """Returns what programs are traced for: the devices that there are, or what `tracing_for` says."""
  return _told.get()[0] if _told.get() else jax.default_backend()


def numerics() -> str:
  """What results depend on of the machine: the backend, and where it matters, products' precision."""
  name = backend()
  return name if name == "cpu" else f"{name}, {jax.config.jax_default_matmul_precision}"


def has_kernels() -> bool:
  """Whether "auto" takes our kernels for NVIDIA GPUs."""
  return backend() == "gpu" and knows_kernels()


def knows_kernels() -> bool:
  """Whether this version of JAX can compile our kernels, or interpret them on a CPU."""
  return jax.__version_info__[:2] >= _KERNELS_FROM


def check_implementation(layer: str, implementation: str, known: Sequence[str]) -> None:
  """Raises ValueError where a layer has no such implementation."""
  if implementation not in known:
    raise ValueError(f"{layer}: implementation {implementation!r} is none of {', '.join(known)}")


def unroll() -> int:
  """Steps that a turn of a loop over slices holds: a GPU launches kernels for each turn."""
  return 1 if backend() == "cpu" else 8


def told_devices() -> list[jax.Device] | None:
  """Returns the devices that `tracing_for` names; None where programs are for those that there are."""
  return _told.get()[1] if _told.get() else None


@contextlib.contextmanager
def tracing_for(name: Backend, devices: Sequence[jax.Device]) -> Iterator[None]:
  """Has programs traced for devices that are not there, to compile them."""
  token = _told.set((name, list(devices)))
  try:
    yield
  finally:
    _told.reset(token)
