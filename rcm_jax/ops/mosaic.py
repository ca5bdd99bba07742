"""What our kernels for NVIDIA GPUs have in common: Pallas for Mosaic GPU, the backend that JAX keeps.

Where programs are not traced for a GPU, kernels run in JAX's interpreter, one operation after the
other, on the host: for tests of their numbers.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import jax
from jax.experimental.pallas import mosaic_gpu as plgpu
from jaxtyping import Array

from rcm_jax.ops.backend import backend

# What `jax_default_matmul_precision` may be for a float32 product to take TF32 on a GPU.
_TF32 = (None, "default", "fastest", "tensorfloat32", "bfloat16")


def is_precise() -> bool:
  """Whether JAX is asked for more than TF32 in float32's products."""
  return jax.config.jax_default_matmul_precision not in _TF32


def call(
  kernel: Callable[..., None],
  args: Sequence[Any],
  out: Sequence[jax.ShapeDtypeStruct],
  *,
  programs: int,
  scratch: Sequence[Any] = (),
) -> tuple[Array, ...]:
  """Runs a kernel once a program, each by one warpgroup, 128 threads.

  Args:
    kernel: of references to args, out and scratch; `axis_index("program")` tells programs apart.
    args: arrays in device memory, or lists of them.
    out: shapes and types of the results.
    programs: how many.
    scratch: shared memory and barriers of a program.
  """
  run = plgpu.kernel(
    kernel,
    out_type=tuple(out),
    scratch_types=tuple(scratch),
    grid=(programs,),
    grid_names=("program",),
    compiler_params=plgpu.CompilerParams(lowering_semantics=plgpu.LoweringSemantics.Warpgroup),
    interpret=None if backend() == "gpu" else plgpu.InterpretGPUParams(),
  )
  return run(*args)


def read(ref: Any, *index: Any, layout: plgpu.Layout | None = None) -> Array:
  """Reads device memory into registers."""
  # "optimized" is about the banks of shared memory.
  return plgpu.load(ref.at[index], layout=layout, optimized=False)
