"""From TFDS records to batches: order, context, resumption, and records at fault."""

import io
import types
from unittest import mock

import numpy as np
from PIL import Image
import pytest
import tensorflow_datasets as tfds

from rcm_jax.data import batches as batches_lib
from rcm_jax.data import records as records_lib
from rcm_jax.data import slices as slices_lib
from tfds_rcm.errors import UserError

LENGTHS = {"train": (5, 3, 4), "validation": (2,), "test": (3, 1)}


def record(split: str, number: int, length: int, size=(20, 20)) -> dict:
  rng = np.random.default_rng([len(split), number])
  return {
    "stack_id": f"{split}{number}".encode(),
    "patient_id": f"patient-{split}".encode(),
    "site": b"",
    "slices": [rng.integers(0, 256, (*size, 1), dtype=np.uint8) for _ in range(length)],
    "labels": np.sort(rng.integers(0, 4, length)),
    "depth_um": 3.0 * np.arange(length, dtype=np.float32),
    "pixel_um": np.float32(np.nan),
  }


def builder(records: dict[str, list]) -> mock.NonCallableMock:
  """What of a TFDS builder the data stage uses."""
  made = mock.NonCallableMock(spec=tfds.core.DatasetBuilder)
  splits = {name: types.SimpleNamespace(num_examples=len(rows)) for name, rows in records.items()}
  made.info = types.SimpleNamespace(splits=splits, full_name="fake/1")
  made.name = "fake"
  made.data_dir = "somewhere"
  made.as_data_source = records.__getitem__
  return made


def records(**change) -> dict[str, list]:
  made = {
    split: [record(split, i, n) for i, n in enumerate(lengths)]
    for split, lengths in LENGTHS.items()
  }
  made["train"][1].update(change)
  return made


def decoded(tmp_path, *builders, image_size=None) -> dict[str, slices_lib.Slices]:
  records_lib.decode(builders, tmp_path, image_size=image_size)
  return slices_lib.load_slices(tmp_path)


@pytest.fixture
def train(tmp_path) -> slices_lib.Slices:
  return decoded(tmp_path, builder(records()))["train"]


def test_decoding_keeps_pixels_and_merges_corneum_into_epidermis(tmp_path):
  made = records()
  splits = decoded(tmp_path, builder(made))
  for name, split in splits.items():
    assert split.stack_id == tuple(f"{name}{i}" for i in range(len(LENGTHS[name])))
    assert tuple(split.lengths) == LENGTHS[name]
    for i, original in enumerate(made[name]):
      rows = split.rows(i)
      np.testing.assert_array_equal(split.slices[rows], np.stack(original["slices"])[..., 0])
      expected = np.array([0, 0, 1, 2])[original["labels"]]
      np.testing.assert_array_equal(split.labels[rows], expected)
      np.testing.assert_array_equal(split.depth_um[rows], original["depth_um"])


def test_sources_are_mixed_split_by_split(tmp_path):
  other = builder(records())
  other.name = "other"
  splits = decoded(tmp_path, builder(records()), other)
  names = ("fake/test0", "fake/test1", "other/test0", "other/test1")
  assert splits["test"].stack_id == names
  assert splits["test"].patient_id == ("fake/patient-test",) * 2 + ("other/patient-test",) * 2
  assert list(splits["test"].stack) == [0, 0, 0, 1, 2, 2, 2, 3]


def test_resampling_takes_the_central_square(tmp_path):
  slices = [np.zeros((20, 40, 1), np.uint8) for _ in range(3)]
  for image in slices:
    image[:, 10:30] = 200
  split = decoded(tmp_path, builder(records(slices=slices)), image_size=10)["train"]
  assert split.slices.shape[1:] == (10, 10)
  np.testing.assert_array_equal(split.slices[split.rows(1)], 200)


def test_every_slice_comes_once_an_epoch(train):
  rows = batches_lib.training_rows(train, batch_size=4, seed=0)
  epochs = np.concatenate([rows[i] for i in range(9)]).reshape(3, 12)
  for epoch in epochs:
    np.testing.assert_array_equal(np.sort(epoch), np.arange(12))
  assert not np.array_equal(epochs[0], epochs[1])


def test_a_batch_does_not_depend_on_where_the_sequence_was_entered(train):
  arguments = {"batch_size": 5, "context": 1, "seed": 3}
  whole = list(batches_lib.training_batches(train, start=0, stop=7, **arguments))
  late = list(batches_lib.training_batches(train, start=4, stop=7, **arguments))
  for a, b in zip(whole[4:], late, strict=True):
    np.testing.assert_array_equal(a[0], b[0])
    np.testing.assert_array_equal(a[1], b[1])
  other = next(batches_lib.training_batches(train, start=0, stop=1, **{**arguments, "seed": 4}))
  assert not np.array_equal(other[0], whole[0][0])


def test_sequential_batches_cover_all_slices_in_order(train):
  batches = list(batches_lib.sequential_batches(train, batch_size=5, context=1))
  assert [len(images) for images, _ in batches] == [5, 5, 5]
  rows = np.concatenate([rows for _, rows in batches])
  np.testing.assert_array_equal(rows, np.arange(12))
  images = np.concatenate([images[: len(rows)] for images, rows in batches])
  np.testing.assert_array_equal(images[..., 0], train.slices)


def test_context_stays_in_its_stack(train):
  # Stacks are rows 0-4, 5-7, 8-11.
  images = batches_lib.with_context(train, np.array([0, 4, 5, 6]), 3)
  neighbours = [[0, 0, 1], [3, 4, 4], [5, 5, 6], [5, 6, 7]]
  np.testing.assert_array_equal(images, np.moveaxis(train.slices[np.array(neighbours)], 1, -1))


def test_features_are_padded_and_cut_by_stack(train):
  values = np.arange(24.0).reshape(12, 2)
  features = slices_lib.features_of(train, values)
  assert features.values.shape == (3, 5, 2)
  np.testing.assert_array_equal(features.mask.sum(1), [5, 3, 4])
  np.testing.assert_array_equal(features.values[features.mask], values)
  assert not np.any(features.values[~features.mask])
  cut = features.cut(2)
  np.testing.assert_array_equal(cut.values, features.values[:, :2])
  assert cut.stack_id == features.stack_id


@pytest.mark.parametrize(
  ("change", "message"),
  [
    ({"slices": []}, r"stack 'train1' has no slices"),
    ({"labels": np.array([0, 1, 4])}, r"stack 'train1' slice 2: label 4 is none of 0 to 3"),
    ({"slices": [np.zeros((20, 20, 1), np.uint8)] * 2}, r"'train1' has 2 slices, 3 labels"),
    ({"slices": [np.zeros((20, 21, 1), np.uint8)] * 3}, r"'train1' has .*image_size"),
  ],
)
def test_records_at_fault_are_named(tmp_path, change, message):
  with pytest.raises(UserError, match=message):
    decoded(tmp_path, builder(records(**change)))


class Truncated(list):
  """Records whose second one decodes a PNG file that was cut off."""

  def __getitem__(self, index):
    if index == 1:
      whole = io.BytesIO()
      Image.fromarray(np.zeros((50, 50), np.uint8)).save(whole, "PNG")
      Image.open(io.BytesIO(whole.getvalue()[:-30])).load()
    return super().__getitem__(index)


def test_a_truncated_image_is_named(tmp_path):
  made = records()
  made["train"] = Truncated(made["train"])
  with pytest.raises(UserError, match=r"somewhere: train record 1 cannot be decoded"):
    decoded(tmp_path, builder(made))


@pytest.mark.parametrize(
  ("source", "message"),
  [
    ("rcm_fantom/demo", r"no dataset 'rcm_fantom'; known are rcm_phantom"),
    ("rcm_phantom/demo", r"not prepared; run: python -m tfds_rcm.prepare rcm_phantom"),
  ],
)
def test_missing_datasets_say_what_to_do(tmp_path, source, message):
  with pytest.raises(UserError, match=message):
    records_lib.open_builder(source, str(tmp_path))
