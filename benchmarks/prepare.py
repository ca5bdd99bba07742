"""Preparing a study against decoding the same files with the same library in a loop, on all cores.

Each case is a study of stacks of 70 slices of 1000 x 1000 px, given in seconds a stack. "ours" is
the command `python -m tfds_rcm.prepare rcm_clinical`, its start included, which is why half the
stacks take more than half of its time; the other rows run in processes that wait for them. "ours,
read" decodes through `tfds_rcm.stack_io` and writes nothing, "NAME, loop" decodes by the library
alone. What must be written anyhow: "loop and write" also writes what it decoded, one .npy file a
stack, and "loop and ArrayRecord" one bare record. TMPDIR=/dev/shm leaves the disk out.
"""

from __future__ import annotations

from collections.abc import Callable
from concurrent import futures
import functools
import multiprocessing
import os
import pathlib
import shutil
import subprocess
import sys
import tempfile

from benchmarks import studies, timing
from tfds_rcm import cores

STACKS = {"BMP": 24, "TIFF": 24, "DICOM": 24, "PNG": 4}
DIFFERENT = 2  # the other stacks are links to these
REPEATS = 3


def rows(peers: bool) -> list[dict]:
  """Seconds a stack, by format; the loops are no peers but the measure, and always run."""
  del peers
  context = multiprocessing.get_context("spawn")  # JAX runs threads here: no forking
  with futures.ProcessPoolExecutor(cores.num_cores(), mp_context=context) as pool:
    return [row for kind, stacks in STACKS.items() for row in _case(kind, stacks, pool)]


def _case(kind: str, stacks: int, pool: futures.Executor) -> list[dict]:
  with tempfile.TemporaryDirectory() as name:
    directory = pathlib.Path(name)
    source = directory / "source"
    studies.write_study(source, kind, stacks, DIFFERENT)
    os.sync()
    paths = sorted(p for p in source.iterdir() if p.name != "manifest.csv")
    half = directory / "half.csv"
    rows_of_half = (source / "manifest.csv").read_text().splitlines()[: stacks // 2 + 1]
    half.write_text("\n".join(rows_of_half))
    library = {"TIFF": "tifffile", "DICOM": "pydicom"}.get(kind, "Pillow")

    def loop(function: Callable[[pathlib.Path], int]) -> int:
      return sum(pool.map(function, paths))

    calls = {
      "ours": lambda: _prepare(source, source / "manifest.csv"),
      "ours, half the stacks": lambda: _prepare(source, half),
      "ours, read": lambda: loop(studies.read),
      f"{library}, loop": lambda: loop(functools.partial(studies.decode, kind)),
      f"{library}, loop and write": lambda: loop(
        functools.partial(studies.decode_and_write, kind, directory)
      ),
      f"{library}, loop and ArrayRecord": lambda: loop(
        functools.partial(studies.decode_and_record, kind, directory)
      ),
    }
    timed = timing.alternate(calls, repeats=REPEATS, warmup=1, min_seconds=0)
  case = f"a stack of {kind}, of {stacks}"
  pixels = studies.SLICES * studies.SIDE**2
  floor = 2 * pixels / timing.copy_bytes_per_second()  # each is read and written once
  found = []
  for name, seconds in timed.items():
    count = stacks // 2 if "half" in name else stacks
    by_stack = {k: v / count for k, v in seconds.items()}
    found.append(timing.row("prepare", case, name, by_stack, floor))
  return found


def _prepare(source: pathlib.Path, manifest: pathlib.Path) -> None:
  """Runs the command: started from here, its processes would import all that stands here."""
  data_dir = source.parent / "data"
  shutil.rmtree(data_dir, ignore_errors=True)
  command = [
    sys.executable, "-m", "tfds_rcm.prepare", "rcm_clinical", f"--source={source}",
    f"--data_dir={data_dir}", f"--manifest={manifest}",
  ]  # fmt: skip
  subprocess.run(command, stdout=subprocess.DEVNULL, check=True)
