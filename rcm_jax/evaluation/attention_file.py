"""attention.npz of a run: the attention maps and Toeplitz weights that figures are drawn from."""

from __future__ import annotations

from collections.abc import Mapping
import io
import json
import os
import pathlib
import zipfile

from jaxtyping import Float
import numpy as np

from tfds_rcm import disk, errors

ATTENTION = "attention.npz"
Maps = dict[tuple[str, int, str], np.ndarray]
Taps = dict[tuple[str, int], np.ndarray]


def write(
  workdir: str | os.PathLike,
  maps: Mapping[tuple[str, int, str], Float[np.ndarray, "n n"]],
  taps: Mapping[tuple[str, int], Float[np.ndarray, "K"]],
) -> None:
  """Keeps what figures of attention are drawn from in a run's directory, in one go.

  Args:
    workdir: the run's.
    maps: (method, seed, stack) → attention of each slice (row) over the stack's slices.
    taps: (method, seed) → learned Toeplitz weights, shallow to deep.
  """
  values = {json.dumps(["map", *key]): value for key, value in maps.items()}
  values |= {json.dumps(["taps", *key]): value for key, value in taps.items()}
  path = pathlib.Path(workdir) / ATTENTION
  names, data = np.array(list(values)), io.BytesIO()
  np.savez_compressed(data, names=names, **{f"a{i}": v for i, v in enumerate(values.values())})
  disk.write_whole(path, data.getvalue())


def read(path: pathlib.Path) -> tuple[Maps, Taps]:
  """Returns maps and Toeplitz weights as `write` was given them; none where there is no file.

  Raises:
    UserError: the file is cut short.
  """
  maps: Maps = {}
  taps: Taps = {}
  if not path.exists():
    return maps, taps
  try:
    with np.load(path, allow_pickle=False) as values:
      for i, name in enumerate(values["names"]):
        kind, *key = json.loads(str(name))
        (maps if kind == "map" else taps)[tuple(key)] = values[f"a{i}"]
  except zipfile.BadZipFile as error:
    raise errors.UserError(f"{path}: not a whole .npz file; delete it") from error
  return maps, taps
