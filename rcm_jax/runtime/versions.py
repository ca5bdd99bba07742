"""The packages that a result was made with."""

from __future__ import annotations

import importlib.metadata
import sys

_PACKAGES = (
  "jax",
  "jaxlib",
  "flax",
  "optax",
  "orbax-checkpoint",
  "numpy",
  "grain",
  "tensorflow-datasets",
  "ml-collections",
)


def installed() -> dict[str, str]:
  """Returns package → version, Python first."""
  versions = {name: importlib.metadata.version(name) for name in _PACKAGES}
  return {"python": sys.version.split()[0], **versions}
