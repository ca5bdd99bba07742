"""NVIDIA GPUs that are described to XLA and need not be there: programs are compiled for them, not run.

What compiling tells: whether a program compiles, its memory, the kernels that it launches, their
types and layouts, what devices exchange. What it does not tell: any time, and what XLA would choose
by trying (autotuning): products and convolutions take its default algorithms.
"""

from __future__ import annotations

from collections.abc import Iterator
import contextlib
from importlib import metadata

import jax
from jax.experimental import topologies
from jax.sharding import SingleDeviceSharding

from rcm_jax.ops.backend import tracing_for

# From public specifications: memory in bytes, bytes a second, and the memory's clock in kHz.
CARDS = {
  "h100": ("NVIDIA H100 80GB HBM3", 84_942_979_072, 3_352_320_000_000, 2_619_000),
  "h200": ("NVIDIA H200", 151_397_597_184, 4_800_000_000_000, 3_201_000),
}
_CORES = 132
_CUDNN = (9, 28, 1)
# XLA's number of a type → (clock in GHz, units a core, operations a unit and clock).
_VECTOR_RATES = {
  **dict.fromkeys((4, 8), (1.98, 64, 1)),  # 32-bit integers
  **dict.fromkeys((10, 16), (1.98, 128, 2)),  # float16, bfloat16
  11: (1.98, 128, 1),  # float32
  12: (1.98, 64, 1),  # float64
}
_MATRIX_RATES = {
  **dict.fromkeys((2, 6, 19, 20, 23, 24, 25, 28, 29, 33, 35, 36), (1.83, 4, 1024)),  # 8 bits
  **dict.fromkeys((10, 16), (1.83, 4, 512)),
  11: (1.83, 4, 256),  # float32, as TF32
  12: (1.98, 4, 32),
}


def missing() -> str | None:
  """Says what is not installed that compiling needs; None if nothing."""
  try:
    plugin = metadata.version("jax-cuda13-plugin")
  except metadata.PackageNotFoundError:
    return "JAX's CUDA plugin is not installed; run: make gpu-compile"
  if plugin.split(".")[:2] < ["0", "11"]:
    return f"JAX's CUDA plugin is {plugin}; our kernels need 0.11 or later: make gpu-compile"
  return None


def devices(card: str = "h100", count: int = 1) -> list[jax.Device]:
  """Returns described GPUs of one machine, for meshes and shardings."""
  described = topologies.get_topology_desc(
    "", "cuda", target_config=_target(card), topology=f"1x1x{count}"
  )
  return list(described.devices)


@contextlib.contextmanager
def compiling_for(found: list[jax.Device]) -> Iterator[SingleDeviceSharding]:
  """Has our code trace for these devices; gives the sharding of arrays on the first one."""
  with tracing_for("gpu", found):
    yield SingleDeviceSharding(found[0])


def _rates(table: dict[int, tuple[float, int, int]]) -> str:
  row = (
    "rate_infos {{ key: {} value {{ clock_rate_ghz: {} units_per_core: {} ops_per_clock: {} }} }}"
  )
  return " ".join(row.format(key, *value) for key, value in table.items())


def _target(card: str) -> str:
  """XLA's description of a card, `GpuTargetConfigProto` as text."""
  name, memory, bandwidth, memory_clock = CARDS[card]
  major, minor, patch = _CUDNN
  model = (
    f"sm_9.0a with {memory}B RAM, {_CORES} cores, 1980000KHz clock, "
    f"{memory_clock}KHz mem clock, 52428800B L2$"
  )
  return f"""
gpu_device_info {{
  threads_per_block_limit: 1024 threads_per_warp: 32
  shared_memory_per_block: 49152 shared_memory_per_core: 233472
  shared_memory_per_block_optin: 232448
  threads_per_core_limit: 2048 core_count: {_CORES} fpus_per_core: 128
  block_dim_limit_x: 2147483647 block_dim_limit_y: 65535 block_dim_limit_z: 65535
  thread_dim_limit_x: 1024 thread_dim_limit_y: 1024 thread_dim_limit_z: 64
  memory_bandwidth: {bandwidth} l2_cache_size: 52428800 clock_rate_ghz: 1.98
  device_memory_size: {memory}
  cuda_compute_capability {{ major: 9 feature_extension: ACCELERATED_FEATURES }}
  registers_per_core_limit: 65536 registers_per_block_limit: 65536
  scalar_unit_description {{ {_rates(_VECTOR_RATES)} }}
  matrix_unit_description {{ {_rates(_MATRIX_RATES)} }}
  device_vendor: "NVIDIA Corporation" platform_version: "Compute Capability 9.0a"
  model_str: "{model}"
  device_address_bits: 64 pcie_bandwidth: 34359738368 ecc_enabled: true name: "{name}"
  driver_version: "13.0.0" runtime_version: "13.0.0" compile_time_toolkit_version: "13.0.0"
  dnn_version: "{major}.{minor}.{patch}"
  device_interconnect_info {{ active_links: 18 }}
}}
platform_name: "CUDA"
dnn_version_info {{ major: {major} minor: {minor} patch: {patch} }}
device_description_str: "{name}"
"""
