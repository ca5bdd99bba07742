"""Small studies on disk for the tests of everything that reads a user's files."""

from __future__ import annotations

import contextlib
import csv
import io
import pathlib

import numpy as np
from PIL import Image

from tfds_rcm import prepare as command_line

SIDE = 12


def volume(index: int, num_slices: int = 6) -> np.ndarray:
  rng = np.random.default_rng(index)
  return rng.integers(0, 256, (num_slices, SIDE, SIDE)).astype(np.uint8)


def write_table(path: pathlib.Path, header, rows, encoding="utf-8", delimiter=",", end="\n"):
  path.parent.mkdir(parents=True, exist_ok=True)
  with path.open("w", newline="", encoding=encoding) as stream:
    writer = csv.writer(stream, delimiter=delimiter, lineterminator=end)
    writer.writerows([header, *rows])
  return path


def write_study(folder: pathlib.Path, num_stacks: int = 6, num_patients: int = 3):
  """Stacks s0, s1, … of patients p0, p1, …, of 6 slices: corneum, epidermis, 2 dej, 2 dermis."""
  rows, labels = [], []
  for index in range(num_stacks):
    patient = f"p{index % num_patients}"
    where = pathlib.Path(patient, "arm", f"VivaStack #{index}")
    (folder / where).mkdir(parents=True)
    for t, pixels in enumerate(volume(index)):
      Image.fromarray(pixels).save(folder / where / f"v{t:07d}.bmp")
      name = ("stratum_corneum", "epidermis", "dej", "dej", "dermis", "dermis")[t]
      labels.append((f"s{index}", t, name))
    rows.append((f"s{index}", patient, where, 3, 0.5, "arm", "AB"[index % 2]))
  header = ("stack_id", "patient_id", "path", "step_um", "pixel_um", "site", "source")
  write_table(folder / "manifest.csv", header, rows)
  write_table(folder / "labels.csv", ("stack_id", "slice", "label"), labels)
  return folder


def edit(path: pathlib.Path, old: str, new: str, count: int = 1):
  text = path.read_text(encoding="utf-8")
  assert old in text
  path.write_text(text.replace(old, new, count), encoding="utf-8")


def prepare(name: str, source: pathlib.Path, data_dir: pathlib.Path, *options: str):
  """Runs the command line, on one core unless told otherwise: exit code, output, errors."""
  out, err = io.StringIO(), io.StringIO()
  with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
    code = command_line.main(
      [name, f"--source={source}", f"--data_dir={data_dir}", "--workers=1", *options]
    )
  return code, out.getvalue(), err.getvalue()


def succeed(*args) -> str:
  """Output of a command line that works."""
  code, out, err = prepare(*args)
  assert code == 0, err
  return out


def fail(*args) -> str:
  """The one line of a command line that does not."""
  code, _, err = prepare(*args)
  assert code == 1
  [line] = err.splitlines()
  assert line.startswith("error: ")
  return line
