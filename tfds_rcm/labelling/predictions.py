"""A model's answers, as `rcm_jax.predict` and `predict_study` leave them: NAME.json, one a stack."""

from __future__ import annotations

from collections.abc import Sequence
import dataclasses
import json
import pathlib
from typing import Any

from tfds_rcm.errors import UserError
from tfds_rcm.labelling.stacks import StudyStack
from tfds_rcm.study.annotations import STRATA

_SCHEMA = "rcm_jax.prediction/"


@dataclasses.dataclass(frozen=True)
class Prediction:
  """What a model said about a stack.

  Attributes:
    path: the file.
    labels: index into STRATA of each slice.
    boundaries: name, depth and ends of its interval in µm (None where there is none), by boundary.
    doubt: share of slices that the model expects to have wrong.
    method: which model.
    warnings: what it warned of.
  """

  path: pathlib.Path
  labels: tuple[int, ...]
  boundaries: tuple[dict[str, Any], ...]
  doubt: float
  method: str
  warnings: tuple[str, ...]


def read(folder: pathlib.Path, stacks: Sequence[StudyStack]) -> dict[str, Prediction]:
  """Predictions of a study's stacks by stack_id; some stacks may have none.

  A file belongs to the stack that it was made from, by path, else to the one of its name.

  Raises:
    UserError: no such folder, a damaged file, two files of one stack, or none of any stack.
  """
  if not folder.is_dir():
    raise UserError(f"{folder}: no such folder; give what rcm_jax.predict wrote by --predictions")
  if (folder / "stacks").is_dir():  # where rcm_jax.predict_study has them
    folder = folder / "stacks"
  by_path = {stack.path.absolute().resolve(): stack.stack_id for stack in stacks}
  by_name = {stack.stack_id: stack.stack_id for stack in stacks}
  found: dict[str, Prediction] = {}
  for path in sorted(folder.glob("*.json")):
    values = _load(path)
    if values is None:
      continue
    source = str(values["stack"].get("source", ""))
    stack_id = by_path.get(pathlib.Path(source).absolute().resolve()) or by_name.get(path.stem)
    if stack_id is None:
      continue
    if stack_id in found:
      raise UserError(
        f"{path}: a second prediction of stack {stack_id}, besides {found[stack_id].path.name}; "
        "remove one"
      )
    found[stack_id] = _parse(path, values)
  if not found:
    raise UserError(
      f"{folder}: no prediction of any stack of this study in it; rcm_jax.predict_study writes them"
    )
  return found


def _load(path: pathlib.Path) -> dict[str, Any] | None:
  """A prediction's values, None if the file is another kind of JSON."""
  try:
    values = json.loads(path.read_text(encoding="utf-8"))
  except (OSError, ValueError) as error:
    raise UserError(f"{path}: damaged or no JSON; make it again by rcm_jax.predict") from error
  if not isinstance(values, dict) or not str(values.get("schema", "")).startswith(_SCHEMA):
    return None
  return values if isinstance(values.get("stack"), dict) else None


def _parse(path: pathlib.Path, values: dict[str, Any]) -> Prediction:
  try:
    slices = sorted(values["slices"], key=lambda row: row["slice"])
    if [row["slice"] for row in slices] != list(range(len(slices))) or not slices:
      raise ValueError("slices are not 0, 1, …")
    most_probable = [max(map(float, row["probabilities"].values())) for row in slices]
    return Prediction(
      path=path,
      labels=tuple(STRATA.index(row["stratum"]) for row in slices),
      boundaries=tuple(
        {key: boundary[key] for key in ("name", "depth_um", "low_um", "high_um")}
        for boundary in values["boundaries"]
      ),
      doubt=1 - sum(most_probable) / len(most_probable),
      method=str(values["model"]["method"]),
      warnings=tuple(str(warning["message"]) for warning in values["warnings"]),
    )
  except (KeyError, TypeError, ValueError, AttributeError) as error:
    raise UserError(
      f"{path}: not a prediction of rcm_jax ({error}); make it again by rcm_jax.predict"
    ) from error
