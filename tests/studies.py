"""Small studies on disk for the tests of everything that reads a user's files."""

from __future__ import annotations

import argparse
import csv
import pathlib

import numpy as np
from PIL import Image

from tfds_rcm import prepare_study

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
  """Runs the command line of one dataset in this process, on one core unless told otherwise."""
  parser = argparse.ArgumentParser()
  prepare_study.add_arguments(parser, name)
  args = parser.parse_args([f"--source={source}", "--workers=1", *options])
  prepare_study.run(name, args, data_dir)
