"""Shards of records: the bytes that TFDS would write, several times as fast.

TFDS copies a stack's pixels six times on their way to the disk and has ArrayRecord compress
speckle. Here they are copied once, between a few bytes of protocol buffer, and not compressed.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
import io
import os
from typing import Any

from array_record.python import array_record_module
import numpy as np
from tensorflow_datasets.proto import tf_feature_pb2

from tfds_rcm import disk

_FIRST, _SECOND = b"\x0a", b"\x12"  # tags of a message's field 1 or 2, its length to follow
_Chunks = list[bytes | np.ndarray]


def write_shard(path: str | os.PathLike[str], records: Iterable[Mapping[str, Any]]) -> None:
  """Writes a shard of what `record.stack_record` made.

  Raises:
    OSError: the file cannot be written, above all because the disk is full.
  """
  with disk.failures_told(path):
    writer = array_record_module.ArrayRecordWriter(os.fsencode(path), "group_size:1,uncompressed")
    try:
      for record in records:
        writer.write(serialize(record))
    finally:
      writer.close()


def is_whole_shard(path: str | os.PathLike[str], count: int) -> bool:
  """Whether a shard is there with `count` records, all of which can be read."""
  try:
    reader = array_record_module.ArrayRecordReader(os.fsencode(path))
    return reader.num_records() == count and all(reader.read([i]) for i in range(count))
  except (OSError, ValueError, RuntimeError, IndexError):  # ArrayRecord's for damaged files
    return False


def serialize(record: Mapping[str, Any]) -> bytes:
  """The tf.train.Example of what `record.stack_record` made, its fields in alphabetical order.

  An Example holds Features (field 1), they hold entries of a map (field 1), each a name
  (field 1) and a Feature (field 2).
  """
  entries: _Chunks = []
  for name, chunks in sorted(_columns(record).items()):
    entry = _field(_FIRST, [name.encode()]) + _field(_SECOND, chunks)
    entries += _field(_FIRST, entry)
  return b"".join(_field(_FIRST, entries))


def _columns(record: Mapping[str, Any]) -> dict[str, _Chunks]:
  """The serialized Feature of each column, in pieces."""
  columns = {
    name: _bytes_list([[record[name].encode()]])
    for name in ("stack_id", "patient_id", "site", "about")
    if name in record
  }
  columns["labels"] = _ints(record["labels"])
  for name, floats in (("depth_um", record["depth_um"]), ("pixel_um", [record["pixel_um"]])):
    values = tf_feature_pb2.FloatList(value=floats)
    columns[name] = [tf_feature_pb2.Feature(float_list=values).SerializeToString()]
  slices = record["slices"]
  if isinstance(slices[0], io.BytesIO):
    columns["slices"] = _bytes_list([[png.getvalue()] for png in slices])
  else:
    columns["slices/shape"] = _ints((len(slices), *slices[0].shape))
    columns["slices/value"] = _bytes_list([[np.ascontiguousarray(s) for s in slices]])
  return columns


def _ints(values: Sequence[int]) -> _Chunks:
  values = tf_feature_pb2.Int64List(value=values)
  return [tf_feature_pb2.Feature(int64_list=values).SerializeToString()]


def _bytes_list(values: Sequence[_Chunks]) -> _Chunks:
  """A Feature (field 1: a BytesList) of values (its field 1) that are given in pieces."""
  return _field(_FIRST, [chunk for value in values for chunk in _field(_FIRST, value)])


def _field(tag: bytes, chunks: _Chunks) -> _Chunks:
  size = sum(memoryview(chunk).nbytes for chunk in chunks)
  length = bytearray()
  while size > 127:
    length.append(size & 127 | 128)
    size >>= 7
  return [tag + length + bytes([size]), *chunks]
