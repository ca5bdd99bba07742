"""Whether large studies can be prepared: memory by number of stacks, a kill, and the time of 1,000.

python -m benchmarks.scale [--stacks=8,32] [--folder=DIR]

Writes studies of stacks of 70 BMP slices of 1000 x 1000 px into DIR (75 MB a stack; records take
as much again, twice over in the end), runs `python -m tfds_rcm.prepare rcm_clinical` on each, kills
a further run of the last one halfway with SIGKILL, goes on with it, and compares the records.
"""

from __future__ import annotations

import argparse
import hashlib
import os
import pathlib
import signal
import subprocess
import sys
import tempfile
import time

from benchmarks import studies

TARGET = 1000


def main(argv: list[str] | None = None) -> None:
  """Runs everything and prints one line a run."""
  parser = argparse.ArgumentParser(prog="python -m benchmarks.scale", description=__doc__)
  parser.add_argument("--stacks", default="8,32", help="numbers of stacks, rising")
  parser.add_argument("--folder", type=pathlib.Path, help="where there is room (default: /tmp)")
  options = parser.parse_args(argv)
  counts = [int(text) for text in options.stacks.split(",")]
  with tempfile.TemporaryDirectory(dir=options.folder) as name:
    folder = pathlib.Path(name)
    took = {}
    for count in counts:
      source = folder / f"source{count}"
      studies.write_study(source, "BMP", count)
      os.sync()
      took[count], most = _prepare(source, folder / f"data{count}")
      print(f"{count} stacks: {took[count]:.1f} s, at most {most:.0f} MiB in all processes")
    whole = _digests(folder / f"data{counts[-1]}")
    again = folder / "again"
    seconds, _ = _prepare(source, again, kill_after=counts[-1] // 2)
    staged = _staged(again)
    print(f"killed after {seconds:.1f} s with {staged} of {counts[-1]} stacks finished")
    if list(again.glob("rcm_clinical/2.0.0")):
      sys.exit("a killed run registered a dataset")
    seconds, _ = _prepare(source, again)
    same = _digests(again) == whole
    print(f"the same command went on for {seconds:.1f} s; the records are the same: {same}")
    if len(counts) > 1:
      a_stack = (took[counts[-1]] - took[counts[0]]) / (counts[-1] - counts[0])
      print(
        f"{a_stack:.2f} s a further stack, so {TARGET} stacks take about "
        f"{(took[counts[-1]] + a_stack * (TARGET - counts[-1])) / 60:.0f} min, and "
        f"{TARGET * studies.SLICES * studies.SIDE**2 / 1e9:.0f} GB of records"
      )
    if not same:
      sys.exit(1)


def _prepare(
  source: pathlib.Path, data_dir: pathlib.Path, kill_after: int | None = None
) -> tuple[float, float]:
  """Runs the command, killed when so many stacks are staged; seconds and most MiB of memory."""
  command = [
    sys.executable, "-m", "tfds_rcm.prepare", "rcm_clinical", f"--source={source}",
    f"--data_dir={data_dir}",
  ]  # fmt: skip
  started, most = time.perf_counter(), 0.0
  process = subprocess.Popen(command, stdout=subprocess.DEVNULL)
  while process.poll() is None:
    most = max(most, _family_mib(process.pid))
    if kill_after is not None and _staged(data_dir) >= kill_after:
      process.send_signal(signal.SIGKILL)
    time.sleep(0.02)
  if process.returncode and kill_after is None:
    sys.exit(f"exit code {process.returncode} of: {' '.join(command)}")
  return time.perf_counter() - started, most


def _staged(data_dir: pathlib.Path) -> int:
  staged = data_dir.glob("rcm_clinical/staging/*")
  return sum(not path.name.endswith(".partial") for path in staged)


def _family_mib(pid: int) -> float:
  """Memory of a process and its children, without the system's own copies of files."""
  total = 0
  try:
    status = pathlib.Path(f"/proc/{pid}/status").read_text()
    total = int(next(l for l in status.splitlines() if l.startswith("RssAnon")).split()[1]) / 1024
    for task in pathlib.Path(f"/proc/{pid}/task").iterdir():
      total += sum(map(_family_mib, map(int, (task / "children").read_text().split())))
  except (OSError, StopIteration):  # it just ended
    pass
  return total


def _digests(data_dir: pathlib.Path) -> dict[str, str]:
  return {
    path.name: hashlib.sha256(path.read_bytes()).hexdigest()
    for path in sorted(data_dir.glob("rcm_clinical/2.0.0/*.array_record*"))
  }


if __name__ == "__main__":
  main()
