"""Skin strata in confocal microscopy stacks: attention over depth, in JAX.

The names below are the library; docs/api.md shows them on one page. They stay, or change by way of
a warning. Everything else, in whatever module, is internal and may change at any time.

A name brings its module, and what that imports, when it is first used:

>>> import rcm_jax
>>> sorted(rcm_jax.__all__)[:4]
['Model', 'Stack', 'UserError', 'bidirectional_gru']
"""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:  # for editors and type checkers; `_PLACES` says the same to Python
  from rcm_jax.decoding.monotone_model import boundary_posterior as boundary_posterior
  from rcm_jax.decoding.strata import median_then_max as median_then_max
  from rcm_jax.decoding.strata import monotone as monotone
  from rcm_jax.inference.model import Model as Model
  from rcm_jax.inference.model import load as load
  from rcm_jax.ops.gru import bidirectional_gru as bidirectional_gru
  from rcm_jax.ops.gru import gru as gru
  from rcm_jax.ops.toeplitz import toeplitz_attention as toeplitz_attention
  from rcm_jax.ops.toeplitz import toeplitz_weights as toeplitz_weights
  from rcm_jax.reporting.study_report import tables_of as tables_of
  from tfds_rcm.errors import UserError as UserError
  from tfds_rcm.stack_io import Stack as Stack
  from tfds_rcm.stack_io import read_stack as read_stack

__version__ = "0.1.0"

_PLACES = {
  "Model": "rcm_jax.inference.model",
  "Stack": "tfds_rcm.stack_io",
  "UserError": "tfds_rcm.errors",
  "bidirectional_gru": "rcm_jax.ops.gru",
  "boundary_posterior": "rcm_jax.decoding.monotone_model",
  "gru": "rcm_jax.ops.gru",
  "load": "rcm_jax.inference.model",
  "median_then_max": "rcm_jax.decoding.strata",
  "monotone": "rcm_jax.decoding.strata",
  "read_stack": "tfds_rcm.stack_io",
  "tables_of": "rcm_jax.reporting.study_report",
  "toeplitz_attention": "rcm_jax.ops.toeplitz",
  "toeplitz_weights": "rcm_jax.ops.toeplitz",
}
__all__ = [*_PLACES]


def __getattr__(name: str) -> Any:
  if name not in _PLACES:
    raise AttributeError(f"module 'rcm_jax' has no attribute '{name}'")
  value = globals()[name] = getattr(importlib.import_module(_PLACES[name]), name)
  return value


def __dir__() -> list[str]:
  return sorted({*globals(), *__all__})
