"""The configurations that ship with the package, one readable file a method.

    from rcm_jax.configs import base

An installed package has the files here. A checkout has them in `configs/` at its top, where they are
edited, and so do installations that point to it (`pip install --editable`).
"""

import pathlib

_HERE = pathlib.Path(__file__).resolve().parent
FOLDER = _HERE if (_HERE / "base.py").is_file() else _HERE.parents[1] / "configs"
__path__ = [str(FOLDER)]


def names() -> list[str]:
  """Returns what `--config=` calls them."""
  return sorted(path.stem for path in FOLDER.glob("[a-z]*.py") if path.stem != "base")
