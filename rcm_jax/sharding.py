"""One mesh for one or many devices: batches and members are split, all else is copied."""

from __future__ import annotations

import jax
from jax.sharding import AxisType, NamedSharding, PartitionSpec


def device_mesh() -> jax.sharding.Mesh:
  """Returns all devices along one axis, "data"."""
  return jax.make_mesh((jax.device_count(),), ("data",), axis_types=(AxisType.Auto,))


def split_leading(mesh: jax.sharding.Mesh) -> NamedSharding:
  """Returns the sharding that splits an array's first axis over the devices."""
  return NamedSharding(mesh, PartitionSpec("data"))


def replicated(mesh: jax.sharding.Mesh) -> NamedSharding:
  """Returns the sharding that copies an array to every device."""
  return NamedSharding(mesh, PartitionSpec())
