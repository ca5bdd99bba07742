"""Predictions of one method on one stack, and the CSV that all tables come from."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
import csv
import dataclasses
import io
import itertools
import math
import os
import pathlib

from jaxtyping import Float, Int
import numpy as np

from rcm_jax import anatomy
from rcm_jax.decoding import strata as strata_lib
from rcm_jax.runtime import files
from tfds_rcm import errors
from tfds_rcm.study.splits import SPLITS

_COLUMNS = (  # before those of the strata's probabilities
  "method",
  "seed",
  "split",
  "stack_id",
  "patient_id",
  "slice",
  "depth_um",
  "label",
  "predicted",
)


def columns(strata: anatomy.Strata) -> tuple[str, ...]:
  """Returns the columns of predictions.csv."""
  return (*_COLUMNS, *(f"p_{name}" for name in strata.names))


@dataclasses.dataclass(frozen=True)
class StackPrediction:
  """What one trained model says about one stack; real slices only, plain NumPy.

  Attributes:
    method: name of the method, as its config file is named.
    input: "whole stack", "partial stack" or "single image" (Table 1's blocks). The CSV does not
      hold it, since it belongs to the method and not to a slice.
    seed: which of the runs of this method.
    split: "train", "validation" or "test".
    stack_id: one name a stack.
    patient_id: one name a patient.
    depth_um: depth of each slice in µm, shallow to deep.
    labels: true stratum of each slice.
    probabilities: of the strata, by slice.
    ordered: whether they are marginals of the monotone model (an ordered head). Belongs to the
      method, too.
    strata: of the task, which `labels` and the columns of `probabilities` count.
  """

  method: str
  input: str
  seed: int
  split: str
  stack_id: str
  patient_id: str
  depth_um: Float[np.ndarray, "n"]
  labels: Int[np.ndarray, "n"]
  probabilities: Float[np.ndarray, "n C"]
  ordered: bool = False
  strata: anatomy.Strata = anatomy.PAPER

  @property
  def predicted(self) -> Int[np.ndarray, "n"]:
    """Stratum of each slice, by `decode.strata_of`."""
    return strata_lib.strata_of(self.probabilities, ordered=self.ordered)


@dataclasses.dataclass(frozen=True)
class PaddedPredictions:
  """Stacks of one run side by side, padded to one length for `vmap`."""

  depth_um: Float[np.ndarray, "N T"]
  labels: Int[np.ndarray, "N T"]
  probabilities: Float[np.ndarray, "N T C"]
  mask: np.ndarray


def pad(predictions: Sequence[StackPrediction], multiple: int = 8) -> PaddedPredictions:
  """Pads stacks to their greatest length, rounded up so that few shapes are compiled."""
  longest = max(len(p.labels) for p in predictions)
  length = -(-longest // multiple) * multiple
  count, strata = len(predictions), len(predictions[0].strata)
  out = PaddedPredictions(
    np.zeros((count, length), np.float32),
    np.zeros((count, length), np.int32),
    np.full((count, length, strata), 1 / strata, np.float32),
    np.zeros((count, length), bool),
  )
  for i, p in enumerate(predictions):
    n = len(p.labels)
    out.depth_um[i, :n] = p.depth_um
    out.labels[i, :n] = p.labels
    out.probabilities[i, :n] = p.probabilities
    out.mask[i, :n] = True
  return out


def slices_of(
  predictions: Sequence[StackPrediction],
) -> tuple[Float[np.ndarray, "n C"], Int[np.ndarray, "n"]]:
  """Strings the slices of all stacks together: probabilities and true strata."""
  if not predictions:
    return np.zeros((0, 0), np.float32), np.zeros(0, np.int32)
  return (
    np.concatenate([p.probabilities for p in predictions]),
    np.concatenate([p.labels for p in predictions]),
  )


def write_csv(path: str | os.PathLike, predictions: Iterable[StackPrediction]) -> None:
  """Writes one line a slice; the file appears only once it is complete.

  Numbers are written in their shortest form that reads back as the same float32.

  Raises:
    UserError: a stack's arrays differ in length, hold labels outside the classes, or
      probabilities or depths that are no numbers; or stacks differ in their strata.
    OSError: the file cannot be written.
  """
  text = io.StringIO()
  writer = csv.writer(text, lineterminator="\n")
  strata = None
  for prediction in predictions:
    if strata is None:
      strata = prediction.strata
      writer.writerow(columns(strata))
    if prediction.strata != strata:
      raise errors.UserError(
        f"{path}: predictions of {len(strata)} and of other strata; keep apart"
      )
    writer.writerows(_rows(prediction))
  if strata is None:
    writer.writerow(columns(anatomy.PAPER))
  files.write_text(pathlib.Path(path), text.getvalue())


def read_csv(
  path: str | os.PathLike,
  inputs: Mapping[str, str] | None = None,
  ordered: Collection[str] = (),
) -> list[StackPrediction]:
  """Reads what `write_csv` wrote; one item a run and stack, in the order of the file.

  Args:
    path: the file.
    inputs: method → what it sees ("whole stack", …); methods not named get "".
    ordered: methods whose probabilities are marginals of the monotone model.

  Raises:
    UserError: the file is missing or a line does not say what it should; names file, row
      (counted from 1, the header) and column.
  """
  try:
    with open(path, newline="", encoding="utf-8") as f:
      return _parse(path, csv.reader(f), inputs or {}, ordered)
  except FileNotFoundError as error:
    raise errors.UserError(
      f"{path}: no such file; predictions are written at the end of a run of rcm_jax.main"
    ) from error
  except (OSError, UnicodeDecodeError, csv.Error) as error:
    raise errors.UserError(f"{path}: cannot be read as UTF-8 CSV ({error})") from error


def _rows(p: StackPrediction):
  where = f"predictions of {p.method}, seed {p.seed}, stack {p.stack_id}"
  n, strata = len(p.labels), len(p.strata)
  if p.depth_um.shape != (n,) or p.probabilities.shape != (n, strata) or not n:
    raise errors.UserError(
      f"{where}: {n} labels, {p.depth_um.shape} depths and {p.probabilities.shape} probabilities;"
      f" each slice needs one label, one depth and {strata} probabilities"
    )
  if not np.isin(p.labels, range(strata)).all():
    raise errors.UserError(f"{where}: labels outside 0 to {strata - 1}; leave padding out")
  if not (np.isfinite(p.probabilities).all() and np.isfinite(p.depth_um).all()):
    raise errors.UserError(f"{where}: a probability or depth is not a number; has it diverged?")
  head = (p.method, int(p.seed), p.split, p.stack_id, p.patient_id)
  depths = p.depth_um.astype(np.float32)
  probabilities = p.probabilities.astype(np.float32)
  predicted = strata_lib.strata_of(probabilities, ordered=p.ordered)
  for i in range(n):
    named = (p.strata.names[p.labels[i]], p.strata.names[predicted[i]])
    yield (*head, i, str(depths[i]), *named, *map(str, probabilities[i]))


def _parse(path, reader, inputs, ordered):
  header = next(reader, None)
  tasks = {columns(task): task for task in map(anatomy.of_count, anatomy.COUNTS)}
  strata = tasks.get(tuple(header or ()))
  if strata is None:
    known = " or ".join(map(",".join, tasks))
    raise errors.UserError(f"{path}, row 1: the header must be {known}, not {header}")
  out, seen = [], set()
  numbered = enumerate(reader, start=2)
  for key, group in itertools.groupby(numbered, key=lambda item: tuple(item[1][:5])):
    group = list(group)
    first = group[0][0]
    is_ordered = key[0] in ordered
    parsed = [_parse_row(path, number, row, strata, is_ordered) for number, row in group]
    if key in seen:
      raise errors.UserError(
        f"{path}, row {first}: stack {key[3]} of {key[0]}, seed {key[1]}, comes a second time;"
        " one stack's slices must stand together, once"
      )
    seen.add(key)
    for i, (index, *_) in enumerate(parsed):
      if index != i:
        raise errors.UserError(
          f"{path}, row {first + i}, column slice: {index} where {i} is due; slices of a stack"
          " are numbered from 0, shallow to deep (is a line missing?)"
        )
    _, seed, depth, label, probabilities = zip(*parsed)
    out.append(
      StackPrediction(
        method=key[0],
        input=inputs.get(key[0], ""),
        seed=seed[0],
        split=key[2],
        stack_id=key[3],
        patient_id=key[4],
        depth_um=np.array(depth, np.float32),
        labels=np.array(label, np.int32),
        probabilities=np.array(probabilities, np.float32),
        ordered=is_ordered,
        strata=strata,
      )
    )
  return out


def _parse_row(path, number, row, strata, ordered):
  names = columns(strata)

  def fail(column, expected):
    value = row[names.index(column)]
    raise errors.UserError(f"{path}, row {number}, column {column}: {value!r} is not {expected}")

  def parse(column, kind, expected):
    try:
      value = kind(row[names.index(column)])
    except ValueError:
      fail(column, expected)
    return value if math.isfinite(value) else fail(column, expected)

  if len(row) != len(names):
    raise errors.UserError(
      f"{path}, row {number}: {len(row)} columns instead of {len(names)}; is the file cut off?"
    )
  for column in ("method", "stack_id", "patient_id"):
    if not row[names.index(column)]:
      fail(column, "a name")
  if row[2] not in SPLITS:
    fail("split", f"one of {', '.join(SPLITS)}")
  for column in ("label", "predicted"):
    if row[names.index(column)] not in strata.names:
      fail(column, f"one of {', '.join(strata.names)}")
  of_strata = names[len(_COLUMNS) :]
  probabilities = tuple(parse(c, float, "a probability") for c in of_strata)
  for column, value in zip(of_strata, probabilities):
    if not -1e-6 <= value <= 1 + 1e-6:
      fail(column, "a probability (0 to 1)")
  best = int(strata_lib.strata_of(np.array([probabilities], np.float32), ordered=ordered)[0])
  if row[8] != strata.names[best]:
    kind = "median" if ordered else "most probable"
    fail("predicted", f"the {kind} stratum of its row, {strata.names[best]}")
  return (
    parse("slice", int, "a whole number"),
    parse("seed", int, "a whole number"),
    parse("depth_um", float, "a depth in µm"),
    strata.names.index(row[7]),
    probabilities,
  )
