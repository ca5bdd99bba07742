"""The files that one interpreted stack leaves: JSON, CSV and a report."""

from __future__ import annotations

from collections.abc import Sequence
import csv
import dataclasses
import hashlib
import io
import json
import os
import pathlib
import re
from typing import Any

from jaxtyping import UInt8
import numpy as np

from rcm_jax.inference import html_report
from rcm_jax.inference.description import RESEARCH_USE, Description
from rcm_jax.inference.predictor import Prediction
from rcm_jax.inference.stack_warnings import is_wide

SCHEMA = "rcm_jax.prediction/2"
_COLUMNS = ("stack_id", "slice", "name", "depth_um", "stratum", "most_probable_stratum")
SUFFIXES = ("csv", "html", "json")
_MOST_BYTES = 180  # of a file's name, without suffix; file systems take 255


def printable(text: str | os.PathLike[str]) -> str:
  r"""Returns a name from a file system as text: bytes that are not UTF-8 become \xNN."""
  return os.fsencode(text).decode("utf-8", "backslashreplace")


def unwritten(error: OSError, out: os.PathLike[str]) -> str:
  """Says in a line that a command's results could not be written."""
  place = printable(error.filename or out)
  return f"{place}: {error.strerror or error}; make room or choose another --out"


def result_of(
  prediction: Prediction,
  description: Description,
  *,
  stack_id: str,
  source: str,
  slice_names: Sequence[str],
  pixel_um: float | None,
) -> dict[str, Any]:
  """Returns a prediction as JSON values, as `prediction.schema.json` has them.

  Args:
    prediction: of one stack.
    description: of the model.
    stack_id: of `unused_name`.
    source: the stack's whole path, printable.
    slice_names: printable.
    pixel_um: side of a pixel as stored; None if unknown.
  """
  wide, coverage = description.training.wide_um, description.measured_coverage
  strata = description.strata
  steps = np.diff(prediction.depth_um)
  found = prediction.interpretation
  rows = zip(
    slice_names,
    prediction.depth_um,
    found.strata,
    found.most_probable_strata,
    found.probabilities,
    strict=True,
  )
  return {
    "schema": SCHEMA,
    "stack": {
      "id": stack_id,
      "source": source,
      "step_um": float(np.median(steps)) if steps.size else None,
      "pixel_um": pixel_um,
      "tiles": prediction.tiles,
    },
    "model": {
      "image_size": description.scale.image_size or None,
      "field_um": description.scale.field_um,
      "strata": list(strata.names),
      "method": description.method,
      "members": len(description.seeds),
      "dataset": description.training.dataset,
      "coverage": None if wide is None else description.calibration.coverage,
      "measured_coverage": dict(zip(strata.boundaries, coverage, strict=True)),
      "test_patients": description.training.patients.get("test", 0),
      "temperature": description.calibration.temperature,
      "version": description.version,
    },
    "slices": [
      {
        "slice": t,
        "name": name,
        "depth_um": float(depth),
        "stratum": strata.names[stratum],
        "most_probable_stratum": strata.names[most_probable],
        "probabilities": dict(zip(strata.names, np.clip(row, 0, 1).tolist(), strict=True)),
      }
      for t, (name, depth, stratum, most_probable, row) in enumerate(rows)
    ],
    "boundaries": [
      {**dataclasses.asdict(b), "read_by_eye": wide is not None and is_wide(b, wide[i])}
      for i, b in enumerate(prediction.boundaries)
    ],
    "thickness": [dataclasses.asdict(thickness) for thickness in prediction.thickness],
    "plan": [dataclasses.asdict(mosaic) for mosaic in prediction.plan],
    "warnings": [warning._asdict() for warning in prediction.warnings],
    "attention": None
    if prediction.attention is None
    else np.round(prediction.attention.astype(np.float64), 4).tolist(),
    "use": RESEARCH_USE,
  }


def write(
  directory: pathlib.Path,
  result: dict[str, Any],
  slices: UInt8[np.ndarray, "T height width"] | None,
) -> pathlib.Path:
  """Writes a stack's JSON, CSV and report, all or none; returns the report's path.

  Args:
    directory: of all stacks. Files of this stack from an earlier call are replaced.
    result: of `result_of`.
    slices: what the report shows; None where the stack was read from features.

  Raises:
    OSError: they cannot be written.
  """
  content = {
    "csv": _table(result),
    "html": html_report.render(result, slices),
    "json": json.dumps(result, indent=1, allow_nan=False),
  }
  paths = _paths(directory, result["stack"]["id"])
  for path in paths.values():
    if path.is_dir():
      raise IsADirectoryError(None, "is a folder", str(path))
  parts = {suffix: directory / f".stack.{os.getpid()}.{suffix}" for suffix in SUFFIXES}
  try:
    for suffix, part in parts.items():
      with part.open("w", encoding="utf-8") as file:
        file.write(content[suffix])
        file.flush()
        os.fsync(file.fileno())
    for suffix, part in parts.items():
      part.replace(paths[suffix])
  finally:
    for part in parts.values():
      part.unlink(missing_ok=True)
  return paths["html"]


def unused_name(directory: pathlib.Path, path: pathlib.Path, within: str = "") -> str:
  """Names a stack's files after its path, so that they replace no other stack's.

  Args:
    directory: that they are written to.
    path: of the stack, as it was given.
    within: name of the stack, where the file at `path` holds many.

  Returns:
    A name that is safe in any file system; of the same stack, the same one again.
  """
  parts = [part for part in path.parts if part not in (path.anchor, ".", "..")]
  parts = parts or [os.path.basename(os.path.abspath(path))]
  if not path.is_dir():
    parts[-1] = pathlib.PurePath(parts[-1]).stem
  parts += [within] if within else []
  words = [re.sub(r"[^\w.-]+", "_", printable(part)).strip("._-") for part in parts]
  name = "-".join(word for word in words if word) or "stack"
  source = source_of(path, within)
  digits = hashlib.sha256(os.fsencode(os.path.abspath(path)) + within.encode()).hexdigest()[:8]
  if len(name.encode()) > _MOST_BYTES:  # the end tells more
    name = f"{name.encode()[-_MOST_BYTES:].decode(errors='ignore').strip('._-')}-{digits}"
  if _is_others(directory, name, source):
    name = f"{name}-{digits}"
  return name


def _paths(directory: pathlib.Path, name: str) -> dict[str, pathlib.Path]:
  return {suffix: directory / f"{name}.{suffix}" for suffix in SUFFIXES}


def _is_others(directory: pathlib.Path, name: str, wanted: str) -> bool:
  """Whether files of this name are there and do not say that they are of this stack."""
  paths = _paths(directory, name)
  if not any(os.path.lexists(p) for p in paths.values()):
    return False
  try:
    source = json.loads(paths["json"].read_text(encoding="utf-8"))["stack"]["source"]
  except (OSError, ValueError, KeyError, TypeError, RecursionError):
    return True
  return source != wanted


def source_of(path: pathlib.Path, within: str = "") -> str:
  """Returns a stack's whole path, printable, and its name in a file of many."""
  return printable(os.path.abspath(path)) + (f", stack {within}" if within else "")


def _table(result: dict[str, Any]) -> str:
  table = io.StringIO()
  writer = csv.writer(table, lineterminator="\n")
  names = result["model"]["strata"]
  writer.writerow((*_COLUMNS, *(f"p_{name}" for name in names)))
  for row in result["slices"]:
    given = (row["slice"], row["name"], f"{row['depth_um']:.9g}")
    strata = (row["stratum"], row["most_probable_stratum"])
    probabilities = (f"{row['probabilities'][name]:.6g}" for name in names)
    writer.writerow((result["stack"]["id"], *given, *strata, *probabilities))
  return table.getvalue()
