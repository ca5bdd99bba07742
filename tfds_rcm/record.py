"""The record that every source writes: one stack of slices, shallow to deep.

On disk (TFDS, ArrayRecord) the slices are PNG files, or one volume of plain bytes;
`as_data_source` decodes either when a record is read, one record at a time.
`read_record` turns what it hands over into plain arrays and strings.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
import dataclasses
import io
import json
import math
from typing import Any

from jaxtyping import Float, Int, UInt8
import numpy as np
import tensorflow_datasets as tfds
from tensorflow_datasets.proto import tf_example_pb2

LABELS = ("stratum_corneum", "epidermis", "dej", "dermis")


@dataclasses.dataclass(frozen=True)
class Record:
  """One stack as read back.

  Attributes:
    stack_id: unique in its dataset.
    patient_id: all stacks of a patient are in one split.
    site: where on the body, empty if unknown.
    slices: T images of gray levels, shallow first.
    labels: indices into LABELS.
    depth_um: depth below the first contact with skin in µm, growing.
    pixel_um: µm a pixel, None if unknown (NaN on disk).
    columns: what else the manifest says of the stack, by column; older data sets do not tell.
    readings: indices into LABELS by reader, −1 where that one has none; likewise.
  """

  stack_id: str
  patient_id: str
  site: str
  slices: list[UInt8[np.ndarray, "height width 1"]]
  labels: Int[np.ndarray, "T"]
  depth_um: Float[np.ndarray, "T"]
  pixel_um: float | None
  columns: Mapping[str, str] = dataclasses.field(default_factory=dict)
  readings: Mapping[str, Int[np.ndarray, "T"]] = dataclasses.field(default_factory=dict)


def stack_features(*, png: bool = True, about: bool = False) -> tfds.features.FeaturesDict:
  """Returns the features of one stack.

  Args:
    png: slices as PNG files; else one volume of plain bytes, which takes the time of
      copying them, to write and to read.
    about: whether records tell of the manifest's other columns and of each reader's labels.
  """
  if png:
    slices = tfds.features.Sequence(
      tfds.features.Image(shape=(None, None, 1), dtype=np.uint8, encoding_format="png")
    )
  else:
    slices = tfds.features.Tensor(shape=(None, None, None, 1), dtype=np.uint8, encoding="bytes")
  more = {"about": tfds.features.Text()} if about else {}
  return tfds.features.FeaturesDict(
    {
      "stack_id": tfds.features.Text(),
      "patient_id": tfds.features.Text(),
      "site": tfds.features.Text(),
      "slices": slices,
      "labels": tfds.features.Sequence(tfds.features.ClassLabel(names=LABELS)),
      "depth_um": tfds.features.Sequence(tfds.features.Scalar(np.float32)),
      "pixel_um": tfds.features.Scalar(np.float32),
      **more,
    }
  )


def stack_record(
  *,
  stack_id: str,
  patient_id: str,
  slices: Sequence[bytes] | Sequence[UInt8[np.ndarray, "height width"]],
  labels: Sequence[int],
  depth_um: Sequence[float],
  site: str = "",
  pixel_um: float | None = None,
  columns: Mapping[str, str] | None = None,
  readings: Mapping[str, Sequence[int]] | None = None,
) -> dict[str, Any]:
  """Makes the example that a builder yields for one stack.

  Args:
    stack_id: unique name of the stack in its dataset.
    patient_id: name of the patient; a patient belongs to one split only.
    slices: T images of gray levels, shallow first: PNG files' bytes (TFDS would import
      TensorFlow to make them), or arrays for a volume of plain bytes.
    labels: T indices into LABELS.
    depth_um: T depths in µm, growing.
    site: where on the body, empty if unknown.
    pixel_um: µm a pixel, None if unknown.
    columns: see `Record`; None for a data set whose records do not tell.
    readings: see `Record`.

  Raises:
    ValueError: no slices, lengths that differ, labels outside the classes, or
      depths that do not grow.
  """
  if not len(slices) == len(labels) == len(depth_um) > 0:
    raise ValueError(
      f"stack {stack_id}: {len(slices)} slices, {len(labels)} labels and {len(depth_um)} depths;"
      " expected the same number of each, at least one"
    )
  for index, label in enumerate(labels):
    if not 0 <= label < len(LABELS):
      raise ValueError(
        f"stack {stack_id}, slice {index}: label {label}; expected 0 to {len(LABELS) - 1}"
        f" ({', '.join(LABELS)})"
      )
  if not np.all(np.diff(np.asarray(depth_um, np.float64)) > 0):
    raise ValueError(f"stack {stack_id}: depths must grow from slice to slice")
  return {
    "stack_id": stack_id,
    "patient_id": patient_id,
    "site": site,
    "slices": [io.BytesIO(s) if isinstance(s, bytes) else s[..., np.newaxis] for s in slices],
    "labels": [int(label) for label in labels],
    "depth_um": [float(depth) for depth in depth_um],
    "pixel_um": math.nan if pixel_um is None else float(pixel_um),
    **({} if columns is None else {"about": _about(columns, readings or {})}),
  }


def _about(columns: Mapping[str, str], readings: Mapping[str, Sequence[int]]) -> str:
  said = {reader: [int(label) for label in labels] for reader, labels in readings.items()}
  return json.dumps({"columns": dict(columns), "readings": said}, ensure_ascii=False)


def read_record(example: Mapping[str, Any]) -> Record:
  """Returns an element of `builder.as_data_source(split)` as a Record."""
  pixel_um = float(example["pixel_um"])
  about = json.loads(_text(example["about"])) if "about" in example else {}
  readings = about.get("readings", {})
  return Record(
    stack_id=_text(example["stack_id"]),
    patient_id=_text(example["patient_id"]),
    site=_text(example["site"]),
    slices=list(example["slices"]),
    labels=np.asarray(example["labels"], np.int32),
    depth_um=np.asarray(example["depth_um"], np.float32),
    pixel_um=None if math.isnan(pixel_um) else pixel_um,
    columns=about.get("columns", {}),
    readings={reader: np.asarray(labels, np.int32) for reader, labels in readings.items()},
  )


def _text(value: str | bytes) -> str:
  return value.decode() if isinstance(value, bytes) else value


class LocalInfo(tfds.core.DatasetInfo):
  """Information about a dataset that Google's bucket knows nothing of.

  TFDS would look there and leave an empty temporary directory, once a dataset and process.
  """

  def initialize_from_bucket(self) -> None:
    """Does nothing."""


class StableWriter(tfds.core.ExampleWriter):
  """Writes equal records as equal bytes, for a builder's `_example_writer`.

  Protocol buffers leave the order of a record's fields to chance, another one each process.
  """

  def write(self, path: Any, examples: Iterable[tuple[Any, bytes]]) -> Any:
    ordered = (
      (key, tf_example_pb2.Example.FromString(record).SerializeToString(deterministic=True))
      for key, record in examples
    )
    return super().write(path, ordered)
