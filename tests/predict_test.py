"""Stacks from disk and from a microscope, read by a model with random weights."""

from __future__ import annotations

import csv
import json
import pathlib

import bundles
import jsonschema
import numpy as np
from PIL import Image
import pytest
import tifffile

from rcm_jax import predict
from rcm_jax.arrays import STRATA
from rcm_jax.data import scale as scale_lib
from rcm_jax.inference import bundle, predictor
from tfds_rcm.errors import UserError

SCHEMA = json.loads(
  (pathlib.Path(predict.__file__).parent / "inference/prediction.schema.json").read_text()
)


def write_bmps(folder, slices):
  folder.mkdir(parents=True)
  for t, image in enumerate(slices):
    Image.fromarray(image).save(folder / f"v{t:07d}.bmp")
  return folder


@pytest.fixture(scope="module")
def run(tmp_path_factory):
  """One call of the command line: two good stacks of one name, one bad."""
  root = tmp_path_factory.mktemp("predict")
  made = bundles.made()
  bundle.save(root / "run" / "model", made)
  one = write_bmps(root / "a & <b>" / "VivaStack #1", bundles.slices(5, size=100))
  (root / "b").mkdir()
  two = root / "b" / "VivaStack #1.tif"
  tifffile.imwrite(two, bundles.slices(3, seed=1), photometric="minisblack")
  bad = write_bmps(root / "bad", bundles.slices(2))
  (bad / "v0000001.bmp").write_bytes(b"BM")
  out = root / "out"
  stacks = [f"--stack={path}" for path in (one, bad, two)]
  options = [f"--checkpoint={root / 'run'}", "--step_um=3", "--pixel_um=0.5", f"--out={out}"]
  return root, out, [*options, *stacks]


def test_the_command_line_reads_what_it_can_and_names_what_it_cannot(run, capsys):
  root, out, argv = run
  assert predict.main(argv) == 1
  shown = capsys.readouterr().err
  faults = [line for line in shown.splitlines() if line.startswith("error: ")]
  assert len(faults) == 1
  assert str(root / "bad" / "v0000001.bmp") in faults[0]
  assert "Traceback" not in shown
  assert sorted(path.name for path in out.iterdir()) == sorted(
    f"{name}.{suffix}"
    for name in ("VivaStack_1", "VivaStack_1-2")
    for suffix in ("csv", "html", "json")
  )
  for name, count in (("VivaStack_1", 5), ("VivaStack_1-2", 3)):
    result = json.loads((out / f"{name}.json").read_text())
    jsonschema.validate(result, SCHEMA)
    assert [s["depth_um"] for s in result["slices"]] == [3.0 * t for t in range(count)]
    assert np.shape(result["attention"]) == (count, count)
    assert result["stack"]["pixel_um"] == 0.5
    strata = [STRATA.index(s["stratum"]) for s in result["slices"]]
    assert set(np.diff(strata).tolist()) <= {0, 1}
    with (out / f"{name}.csv").open(newline="") as file:
      rows = list(csv.DictReader(file))
    assert [row["stratum"] for row in rows] == [s["stratum"] for s in result["slices"]]
    for row, s in zip(rows, result["slices"], strict=True):
      for stratum in STRATA:
        assert float(row[f"p_{stratum}"]) == pytest.approx(s["probabilities"][stratum], rel=1e-4)
  assert "v0000000.bmp" in (out / "VivaStack_1.csv").read_text()


@pytest.mark.parametrize(
  ("change", "message"),
  [
    (lambda argv: [argv[0] + "x", *argv[1:]], "no model in it"),
    (lambda argv: [a for a in argv if "step_um" not in a], "give step_um"),
    (lambda argv: [*argv, "--step_um=-1"], "expected 0.1 to 100 µm"),
  ],
)
def test_a_wrong_call_is_told_by_lines(run, capsys, change, message):
  _, _, argv = run
  assert predict.main(change(argv)) == 1
  faults = [x for x in capsys.readouterr().err.splitlines() if x.startswith("error: ")]
  assert faults
  assert message in faults[0]


def test_an_out_that_cannot_be_written_is_told(run, capsys, tmp_path):
  _, _, argv = run
  (tmp_path / "file").write_text("")
  assert predict.main([*argv, f"--out={tmp_path / 'file'}"]) == 1
  assert "choose another --out" in capsys.readouterr().err


def test_names_are_safe_and_distinct(tmp_path):
  paths = [
    tmp_path / "a" / "s #1",
    tmp_path / "b" / "s #1",
    tmp_path / "..." / "…",
    tmp_path / "x.tif",
  ]
  paths[0].mkdir(parents=True)
  paths[1].mkdir(parents=True)
  names = predict.file_names(paths)
  assert len(set(names)) == len(names)
  assert names[0] == "s_1"
  assert names[3] == "x"
  assert all("/" not in name and not name.startswith(".") for name in names)


def test_the_model_sees_slices_as_training_did():
  image = np.random.default_rng(0).integers(0, 256, (120, 100)).astype(np.uint8)
  seen = bundles.reader().prepare(image)
  np.testing.assert_array_equal(
    seen, scale_lib.tiles(image, None, scale_lib.Scale(bundles.SIZE, None))[0]
  )


@pytest.mark.parametrize("context", [1, 3])
def test_a_stream_says_what_the_stack_so_far_says(context):
  reader = bundles.reader(context)
  stack, depth = bundles.slices(7), 3.0 * np.arange(7)
  stream = predictor.StreamingPredictor(reader)
  for _ in range(2):  # the second time after another stack
    for t in range(len(stack)):
      found = stream.add(stack[t], depth[t])
      if t not in (0, 1, 6):
        continue
      whole = reader.predict(stack[: t + 1], depth[: t + 1])
      np.testing.assert_allclose(
        found.reading.probabilities, whole.reading.probabilities, atol=1e-5
      )
      np.testing.assert_array_equal(found.reading.strata, whole.reading.strata)
      np.testing.assert_allclose(found.attention, whole.attention, atol=1e-5)
      assert [m.slice for m in found.plan] == [m.slice for m in whole.plan]
      assert found.warnings == whole.warnings
    stream.clear()


def test_a_stream_goes_down_only():
  stream = predictor.StreamingPredictor(bundles.reader())
  stream.add(bundles.slices(1)[0], 6.0)
  with pytest.raises(UserError, match="slice 1 at 6 µm is not below the one before, at 6 µm"):
    stream.add(bundles.slices(1)[0], 6.0)
  assert len(stream.add(bundles.slices(1)[0], 9.0).depth_um) == 2  # the refused one is not kept


def test_a_stream_outgrows_its_room(monkeypatch):
  monkeypatch.setattr(predictor, "_STREAM_SLICES", 2)
  stream = predictor.StreamingPredictor(bundles.reader())
  for t, image in enumerate(bundles.slices(3)):
    found = stream.add(image, 3.0 * t)
  assert len(found.reading.strata) == 3
