"""Which file `--config=` means: any file, or by its name one that ships with the package."""

from __future__ import annotations

import pathlib

from rcm_jax import configs
from tfds_rcm.errors import UserError, nearest


def find(given: str) -> str:
  """Returns `FILE.py[:PRESET]` for a file or a name, with or without preset.

  Args:
    given: such as `configs/toeplitz_d1.py`, `mine.py:paper` or `toeplitz_d1`. A file of that name
      comes first.

  Raises:
    UserError: there is neither.
  """
  name, colon, preset = given.partition(":")
  if pathlib.Path(name).is_file():
    return given
  shipped = configs.names()
  if name in shipped:
    return f"{configs.FOLDER / name}.py{colon}{preset}"
  files = [str(path) for path in sorted(pathlib.Path("configs").glob("[a-z]*.py"))]
  raise UserError(f"--config={name}: no such file{nearest(name, [*files, *shipped])}")
