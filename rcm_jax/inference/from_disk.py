"""A stack from disk to its result."""

from __future__ import annotations

from collections.abc import Callable
import dataclasses
import pathlib
from typing import Any

import numpy as np

from rcm_jax.inference import stack_files
from rcm_jax.inference.predictor import Predictor
from rcm_jax.inference.stack_warnings import StackWarning
from tfds_rcm import stack_io
from tfds_rcm.errors import UserError


def read_stack(
  predictor: Predictor,
  path: pathlib.Path,
  advance: Callable[[int, int], None] = lambda done, total: None,
  *,
  stack_id: str,
  **options: Any,
) -> tuple[dict[str, Any], np.ndarray]:
  """Interprets a stack from disk.

  Args:
    predictor: of the model.
    path: of the stack.
    advance: called with the slices done and the slices in all.
    stack_id: its name in the result.
    options: of `stack_io.open_stack`.

  Returns:
    The result as `stack_files.result_of` has it, and the slices.

  Raises:
    UserError: the stack cannot be read; names it.
  """
  try:
    with stack_io.open_stack(path, **options) as reader:
      slices = reader.read_all()
      prediction = predictor.predict(slices, reader.depth_um, advance, pixel_um=reader.pixel_um)
  except (UserError, OSError) as error:
    text = str(error)
    if isinstance(error, OSError):
      text = f"cannot be read ({error.strerror or error}); mend the file or its rights"
    text, place = str(UserError(text)), str(UserError(str(path)))
    raise UserError(text if place in text else f"{place}: {text}") from error
  of_files = [StackWarning("file", stack_files.printable(text)) for text in reader.warnings]
  result = stack_files.result_of(
    dataclasses.replace(prediction, warnings=[*of_files, *prediction.warnings]),
    predictor.bundle.description,
    stack_id=stack_id,
    source=stack_files.source_of(path),
    slice_names=[stack_files.printable(pathlib.Path(name).name) for name in reader.names],
    pixel_um=reader.pixel_um,
  )
  return result, slices
