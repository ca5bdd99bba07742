"""Data sets of studies as older versions of the builders wrote them are read, or refused in one line."""

from __future__ import annotations

import io
from unittest import mock

import numpy as np
import pytest
import tensorflow_datasets as tfds

from rcm_jax.anatomy import PAPER
from rcm_jax.data import labelled, records, slices
from rcm_jax.validation import figures, groups
from tests import studies
from tfds_rcm.errors import UserError
from tfds_rcm.formats.png import encode_png

SPLITS = ("train", "validation", "test")
LABELS = [0, 1, 1, 2, 3, 3]
STRATA = [0, 0, 0, 1, 2, 2]


def old_builder(folder, version: str, png: bool) -> tfds.core.DatasetBuilder:
  """The builder before records told of columns and readers, spelled out so that it stays old."""
  text, feature = tfds.features.Text(), tfds.features
  volume = feature.Tensor(shape=(None, None, None, 1), dtype=np.uint8, encoding="bytes")
  pngs = feature.Sequence(
    feature.Image(shape=(None, None, 1), dtype=np.uint8, encoding_format="png")
  )
  names = ("stratum_corneum", "epidermis", "dej", "dermis")
  layout = {
    "stack_id": text, "patient_id": text, "site": text, "slices": pngs if png else volume,
    "labels": feature.Sequence(feature.ClassLabel(names=names)),
    "depth_um": feature.Sequence(feature.Scalar(np.float32)),
    "pixel_um": feature.Scalar(np.float32),
  }  # fmt: skip

  class Old(tfds.core.GeneratorBasedBuilder, skip_registration=True):
    VERSION = tfds.core.Version(version)
    name = "rcm_clinical"

    def _info(self):
      return tfds.core.DatasetInfo(builder=self, features=feature.FeaturesDict(layout))

    def _split_generators(self, dl_manager):
      return {split: self._generate_examples(k) for k, split in enumerate(SPLITS)}

    def _generate_examples(self, k):
      with_png = lambda image: io.BytesIO(encode_png(image))
      images = studies.volume(k)
      yield f"s{k}", {
        "stack_id": f"s{k}", "patient_id": f"p{k}", "site": "arm",
        "slices": [with_png(image) for image in images] if png else images[..., None],
        "labels": LABELS, "depth_um": [3.0 * t for t in range(6)], "pixel_um": 0.5,
      }  # fmt: skip

  return Old(data_dir=folder, file_format="array_record")


@pytest.mark.parametrize("png", [True, False])
def test_records_without_columns_and_readers_are_read(tmp_path, png):
  old_builder(tmp_path, "2.0.0", png).download_and_prepare()
  builder, filled = labelled.open_builder("rcm_clinical", str(tmp_path), SPLITS)
  for k, stack in enumerate(labelled.read(builder, filled, PAPER)):
    assert (stack.stack_id, stack.patient_id, stack.pixel_um) == (f"s{k}", f"p{k}", 0.5)
    assert (stack.columns, stack.readings) == ({"site": "arm"}, {})
    np.testing.assert_array_equal(stack.labels, STRATA)
    np.testing.assert_array_equal(stack.slices, studies.volume(k))
  records.decode([builder], tmp_path, image_size=None)
  assert slices.load_slices(tmp_path)["test"].labels.tolist() == STRATA


def test_a_column_that_they_lack_is_asked_for_in_vain(tmp_path):
  old_builder(tmp_path, "2.0.0", True).download_and_prepare()
  builder, filled = labelled.open_builder("rcm_clinical", str(tmp_path), SPLITS)
  stacks = [
    mock.NonCallableMock(spec=figures.ReadStack, known=stack)
    for stack in labelled.read(builder, filled, PAPER)
  ]
  with pytest.raises(UserError, match="keep no columns but the site: prepare them again"):
    groups.divide(stacks, mock.NonCallableMock(spec=figures.Measured), ["lesion"])


def test_an_older_version_is_to_be_prepared_again(tmp_path):
  old_builder(tmp_path, "1.0.0", True).download_and_prepare()
  with pytest.raises(UserError, match=r"is not prepared; run: python -m tfds_rcm.prepare"):
    records.open_builder("rcm_clinical", str(tmp_path))
