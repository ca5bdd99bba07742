"""What every test runs under: CPU, one device, checked array annotations, fixed seeds.

The environment variables also reach the processes that tests start. They are set before JAX is
imported, and only where the caller has not set them.
"""

from __future__ import annotations

import itertools
import os
from pathlib import Path
import random
import time

_ROOT = Path(__file__).resolve().parent.parent

for _name, _value in {
  "JAX_PLATFORMS": "cpu",
  "KERAS_BACKEND": "jax",
  "MPLBACKEND": "agg",
  # Compiled programs are kept between runs of the suite; `make clean` removes them.
  "JAX_COMPILATION_CACHE_DIR": str(_ROOT / ".cache" / "jax"),
  "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
}.items():
  os.environ.setdefault(_name, _value)

from absl import flags  # noqa: E402
from jaxtyping import install_import_hook  # noqa: E402
import numpy as np  # noqa: E402
import pytest  # noqa: E402

# JAX rebuilds a registered container with whatever a transformation puts in its leaves (slices
# under vmap, None, shardings), so the containers are imported unchecked, before the hook.
import rcm_jax.arrays  # noqa: E402, F401

install_import_hook(["rcm_jax", "tfds_rcm"], "beartype.beartype")

flags.FLAGS.mark_as_parsed()  # grain reads absl flags


@pytest.fixture(autouse=True)
def _fixed_seeds():
  random.seed(0)
  np.random.seed(0)  # noqa: NPY002


@pytest.fixture
def jumping_clock(monkeypatch):
  """A wall clock that is set ahead by 300 days, back, and ahead by an hour, over and over."""
  real, jumps = time.time, itertools.cycle([0.0, 86400.0 * 300, -86400.0 * 300, 3600.0])
  monkeypatch.setattr(time, "time", lambda: real() + next(jumps))


@pytest.fixture(scope="session")
def home(tmp_path_factory):
  """One whole small run (`run`, `cache` and `data`), trained once for all tests and workers."""
  import main_runs

  from rcm_jax.run import pipeline
  from tfds_rcm import locks

  of_all = tmp_path_factory.getbasetemp()
  if "PYTEST_XDIST_WORKER" in os.environ:
    of_all = of_all.parent
  home = of_all / "home"
  config = main_runs.small("toeplitz_d1")
  config.data.data_dir = str(home / "data")
  with locks.held(home / ".lock"):
    if not (home / "trained").exists():
      pipeline.run(config, home / "run", home / "cache")
      (home / "trained").touch()
  return home
