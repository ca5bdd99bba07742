"""predictions.csv: what goes in comes out, and what is wrong is named."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest

from rcm_jax.evaluation import predictions as predictions_lib
from tfds_rcm import errors


def stacks():
  rng = np.random.default_rng(0)
  out = []
  for seed in range(2):
    for i, length in enumerate((1, 5, 3)):
      p = rng.dirichlet([0.3, 0.3, 0.3], size=length).astype(np.float32)
      out.append(
        predictions_lib.StackPrediction(
          method="toeplitz_d1",
          input="whole stack",
          seed=seed,
          split="test",
          stack_id=f"stack, {i}",
          patient_id=f'patient "{i // 2}"',
          depth_um=(np.float32(1.1) * np.arange(length, dtype=np.float32)),
          labels=np.sort(rng.integers(0, 3, length)),
          probabilities=p,
        )
      )
  return out


def written(tmp_path):
  path = tmp_path / "predictions.csv"
  predictions_lib.write_csv(path, stacks())
  return path


def test_csv_round_trips_to_the_same_bits(tmp_path):
  path = written(tmp_path)
  header = "method,seed,split,stack_id,patient_id,slice,depth_um,label,predicted"
  header += ",p_epidermis,p_dej,p_dermis"
  assert path.read_text().splitlines()[0] == header
  back = predictions_lib.read_csv(path, {"toeplitz_d1": "whole stack"})
  assert len(back) == len(stacks())
  for a, b in zip(stacks(), back):
    for field in dataclasses.fields(a):
      np.testing.assert_array_equal(getattr(a, field.name), getattr(b, field.name))
    assert b.probabilities.dtype == b.depth_um.dtype == np.float32
  predictions_lib.write_csv(tmp_path / "again.csv", back)
  assert (tmp_path / "again.csv").read_bytes() == path.read_bytes()


def test_input_is_empty_where_nobody_says(tmp_path):
  assert {p.input for p in predictions_lib.read_csv(written(tmp_path))} == {""}


@pytest.mark.parametrize(
  ("row", "column", "value", "message"),
  [
    (3, 9, "x", "row 3, column p_epidermis: 'x' is not a probability"),
    (3, 10, "1.5", "row 3, column p_dej"),
    (3, 11, "nan", "row 3, column p_dermis"),
    (4, 7, "skin", "row 4, column label: 'skin' is not one of epidermis, dej, dermis"),
    (2, 8, "melanoma", "row 2, column predicted"),
    (4, 5, "7", "row 4, column slice: 7 where 1 is due"),
    (4, 6, "deep", "row 4, column depth_um: 'deep' is not a depth in µm"),
    (2, 1, "1.5", "row 2, column seed"),
    (2, 2, "exam", "row 2, column split: 'exam' is not one of train, validation, test"),
    (2, 4, "", "row 2, column patient_id"),
    (1, 0, "Method", "row 1: the header must be"),
  ],
)
def test_bad_cells_are_named(tmp_path, row, column, value, message):
  path = written(tmp_path)
  lines = [line.split(",") for line in path.read_text().replace(", ", " ").splitlines()]
  lines[row - 1][column] = value
  path.write_text("\n".join(",".join(line) for line in lines) + "\n")
  with pytest.raises(errors.UserError) as caught:
    predictions_lib.read_csv(path)
  assert message in str(caught.value)
  assert str(path) in str(caught.value)
  assert "\n" not in str(caught.value)


def test_predicted_must_agree_with_the_probabilities(tmp_path):
  path = written(tmp_path)
  lines = path.read_text().splitlines()
  cells = lines[1].split(",")
  cells[-4] = next(s for s in ("epidermis", "dej", "dermis") if s != cells[-4])
  path.write_text("\n".join([lines[0], ",".join(cells), *lines[2:]]))
  with pytest.raises(errors.UserError, match="row 2, column predicted"):
    predictions_lib.read_csv(path)


def test_cut_off_doubled_missing_and_binary_files(tmp_path):
  path = written(tmp_path)
  text = path.read_text()
  path.write_text(text[:-20])
  with pytest.raises(errors.UserError, match="columns instead of 12"):
    predictions_lib.read_csv(path)
  path.write_text(text + "".join(text.splitlines(keepends=True)[1:]))
  with pytest.raises(errors.UserError, match="comes a second time"):
    predictions_lib.read_csv(path)
  path.write_bytes(b"\xff\xfe\x00")
  with pytest.raises(errors.UserError, match="UTF-8"):
    predictions_lib.read_csv(path)
  path.unlink()
  with pytest.raises(errors.UserError, match="no such file"):
    predictions_lib.read_csv(path)


@pytest.mark.parametrize(
  ("change", "message"),
  [
    ({"labels": np.array([3])}, "labels outside"),
    ({"probabilities": np.full((1, 3), np.nan, np.float32)}, "diverged"),
    ({"depth_um": np.zeros(2, np.float32)}, "each slice needs"),
  ],
)
def test_malformed_predictions_are_not_written(tmp_path, change, message):
  path = written(tmp_path)
  before = path.read_bytes()
  # The annotations would refuse some of these before the code under test can.
  bad = object.__new__(predictions_lib.StackPrediction)
  bad.__dict__.update({**vars(stacks()[0]), **change})
  with pytest.raises(errors.UserError, match=message):
    predictions_lib.write_csv(path, [stacks()[1], bad])
  assert path.read_bytes() == before
  assert [p.name for p in tmp_path.iterdir()] == ["predictions.csv"]


def test_pad_keeps_real_slices_and_masks_the_rest():
  padded = predictions_lib.pad(stacks())
  assert padded.mask.shape == (6, 8)
  for i, p in enumerate(stacks()):
    n = len(p.labels)
    assert padded.mask[i].sum() == n
    np.testing.assert_array_equal(padded.probabilities[i, :n], p.probabilities)
    np.testing.assert_array_equal(padded.labels[i, :n], p.labels)
    np.testing.assert_array_equal(padded.depth_um[i, :n], p.depth_um)
  assert np.isfinite(np.log(padded.probabilities)[~padded.mask]).all()
