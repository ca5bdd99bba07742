"""Stacks from disk and from a microscope, read by a model with random weights."""

from __future__ import annotations

import csv
import errno
import json
import os
import pathlib

import bundles
import jsonschema
import numpy as np
from PIL import Image
import pytest
import tifffile

from rcm_jax import predict
from rcm_jax.anatomy import PAPER
from rcm_jax.data import scale as scale_lib
from rcm_jax.inference import bundle, given_arrays, predictor, stack_files
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
  bundle.save(root / "run" / "model", bundles.made())
  one = write_bmps(root / "a & <b>" / "VivaStack #1", bundles.slices(5, size=100))
  (root / "b").mkdir()
  two = root / "b" / "VivaStack #1.tif"
  tifffile.imwrite(two, bundles.slices(3, seed=1), photometric="minisblack")
  bad = write_bmps(root / "bad", bundles.slices(2))
  (bad / "v0000001.bmp").write_bytes(b"BM")
  out = root / "out"
  stacks = [f"--stack={path}" for path in (one, bad, two, one)]
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
  assert shown.count("→") == 2  # the stack that was given twice is read once
  names = sorted({path.stem for path in out.iterdir()})
  assert len(list(out.iterdir())) == 6
  assert [name.endswith(end) for name, end in zip(names, ("a_b-VivaStack_1", "b-VivaStack_1"))]
  for name, count in zip(names, (5, 3), strict=True):
    result = json.loads((out / f"{name}.json").read_text())
    jsonschema.validate(result, SCHEMA)
    assert [s["slice"] for s in result["slices"]] == list(range(count))
    assert [s["depth_um"] for s in result["slices"]] == [3.0 * t for t in range(count)]
    assert np.shape(result["attention"]) == (count, count)
    assert result["stack"]["pixel_um"] == 0.5
    strata = [PAPER.names.index(s["stratum"]) for s in result["slices"]]
    assert set(np.diff(strata).tolist()) <= {0, 1}
    with (out / f"{name}.csv").open(newline="") as file:
      rows = list(csv.DictReader(file))
    assert {row["stack_id"] for row in rows} == {result["stack"]["id"]} == {name}
    for row, s in zip(rows, result["slices"], strict=True):
      assert row["stratum"] == s["stratum"]
      assert row["most_probable_stratum"] == s["most_probable_stratum"]
      assert int(row["slice"]) == s["slice"]
      for stratum in PAPER.names:
        assert float(row[f"p_{stratum}"]) == pytest.approx(s["probabilities"][stratum], rel=1e-4)
  assert "v0000000.bmp" in (out / f"{names[0]}.csv").read_text()


@pytest.mark.parametrize(
  ("change", "message"),
  [
    (lambda argv: [argv[0] + "x", *argv[1:]], "no model in it"),
    (lambda argv: [a for a in argv if "step_um" not in a], "give step_um"),
    (lambda argv: [*argv, "--step_um=-1"], "expected 0.1 to 100"),
    (lambda argv: [*argv, "--step_um=1e38"], "expected 0.1 to 100"),
    (lambda argv: [*argv, "--step_um=1e-320"], "expected 0.1 to 100"),
    (lambda argv: [*argv, "--step_um=nan"], "expected 0.1 to 100"),
    (lambda argv: [*argv, "--stack=" + "n" * 300], "too long"),
  ],
)
def test_a_wrong_call_is_told_by_lines(run, capsys, change, message):
  _, _, argv = run
  assert predict.main(change(argv)) == 1
  faults = [x for x in capsys.readouterr().err.splitlines() if x.startswith("error: ")]
  assert any(message in fault for fault in faults)


def test_an_out_that_cannot_be_written_is_told(run, capsys, tmp_path):
  _, _, argv = run
  (tmp_path / "file").write_text("")
  assert predict.main([*argv, f"--out={tmp_path / 'file'}"]) == 1
  assert "choose another --out" in capsys.readouterr().err


def test_a_full_disk_leaves_nothing_of_the_stack(run, capsys, tmp_path, monkeypatch):
  _, _, argv = run
  real, synced = os.fsync, []

  def fsync(file):
    synced.append(file)
    if len(synced) == 3:  # the third file of the first stack
      raise OSError(errno.ENOSPC, "No space left on device")
    real(file)

  monkeypatch.setattr(os, "fsync", fsync)
  assert predict.main([*argv, f"--out={tmp_path / 'out'}"]) == 1
  assert len(synced) == 3
  [line] = [x for x in capsys.readouterr().err.splitlines() if x.startswith("error: ")]
  assert "No space left on device; make room" in line
  assert list((tmp_path / "out").iterdir()) == []


@pytest.mark.parametrize(
  "name",
  [
    os.fsdecode(b"M\xfcller \xff"),
    "n" * 255,
    "ü" * 127,
    "\u202e\n=1+1",
    "...",
  ],
)
def test_any_name_of_a_file_system_is_read_printed_and_written(run, capsys, tmp_path, name):
  root, _, _ = run
  image = tmp_path / "images"
  write_bmps(image, bundles.slices(2))
  stack = tmp_path / name
  image.rename(stack)
  (stack / "v0000000.bmp").rename(stack / os.fsdecode(b"\xff0.bmp"))
  (stack / "v0000001.bmp").rename(stack / os.fsdecode(b"\xff1.bmp"))
  options = [f"--checkpoint={root / 'run'}", "--step_um=3", f"--out={tmp_path / 'out'}"]
  assert predict.main([*options, f"--stack={stack}"]) == 0
  assert "→" in capsys.readouterr().err
  files = sorted((tmp_path / "out").iterdir())
  assert [path.suffix for path in files] == [".csv", ".html", ".json"]
  result = json.loads(files[2].read_bytes().decode("utf-8"))
  json.dumps(result, ensure_ascii=False).encode("utf-8")  # no half of a character is in it
  jsonschema.validate(result, SCHEMA)
  assert result["slices"][0]["name"] == r"\xff0.bmp"


@pytest.mark.slow
def test_no_stack_replaces_the_files_of_another(run, tmp_path, monkeypatch, capsys):
  """Patients whose stacks have one name, read from different places into one folder."""
  root, _, _ = run
  options = [f"--checkpoint={root / 'run'}", "--step_um=3", f"--out={tmp_path / 'out'}"]
  sources = set()
  for patient in ("7", "8"):
    write_bmps(tmp_path / patient / "VivaStack #1", bundles.slices(2))
    monkeypatch.chdir(tmp_path / patient)
    assert predict.main([*options, "--stack=VivaStack #1"]) == 0
  for _ in range(2):  # again from a third place: the same names and files
    monkeypatch.chdir(tmp_path)
    assert predict.main([*options, "--stack=8/VivaStack #1", "--stack=./7/VivaStack #1"]) == 0
    found = list((tmp_path / "out").glob("*.json"))
    sources = [json.loads(path.read_text())["stack"]["source"] for path in found]
    assert len(found) == 4
    assert sorted(set(sources)) == [str(tmp_path / p / "VivaStack #1") for p in ("7", "8")]
  (tmp_path / "out" / "x.html").write_text("somebody's")
  assert stack_files.unused_name(tmp_path / "out", pathlib.Path("x")) != "x"
  assert stack_files.unused_name(tmp_path / "out", pathlib.Path("y.v2.tif")) == "y.v2"
  assert stack_files.unused_name(tmp_path / "out", pathlib.Path("/a/../b c/#1.tif")) == "a-b_c-1"


def test_the_model_sees_slices_as_training_did():
  image = np.random.default_rng(0).integers(0, 256, (120, 100)).astype(np.uint8)
  [seen] = bundles.reader().prepare(image)
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
        found.interpretation.probabilities, whole.interpretation.probabilities, atol=1e-5
      )
      np.testing.assert_array_equal(found.interpretation.strata, whole.interpretation.strata)
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
  assert len(found.interpretation.strata) == 3


BAD_ARRAYS = [
  (lambda s, d: (s.astype(np.float32) / 255, d), "float32, expected uint8; give value_range"),
  (lambda s, d: (s.astype(np.uint16), d), "uint16, expected uint8; give value_range"),
  (lambda s, d: (s[0], d), "shape (80, 80)"),
  (lambda s, d: (s[:0], d), "shape (0, 80, 80)"),
  (lambda s, d: (s.astype(str), d), "expected uint8"),
  (lambda s, d: ([s[0], s[1, :40]], d), "expected an array of numbers"),
  (lambda s, d: (np.stack([s, s], -1), d), "2 channels"),
  (lambda s, d: (s, None), "expected one number of µm a slice"),
  (lambda s, d: (s, "deep"), "expected one number of µm a slice"),
  (lambda s, d: (s, 3.0), "one number for 4 slices"),
  (lambda s, d: (s, d[:3]), "(3,) for 4 slices"),
  (lambda s, d: (s, d[:, None]), "(4, 1) for 4 slices"),
  (lambda s, d: (s, d[::-1]), "expected rising numbers"),
  (lambda s, d: (s, d * 0), "expected rising numbers"),
  (lambda s, d: (s, np.array([0, np.nan, 6, 9])), "of slice 1"),
  (lambda s, d: (s, np.array([0, 3, 6, np.inf])), "of slice 3"),
  (lambda s, d: (s, d * 1e37), "µm"),
  (lambda s, d: (s, d * 1e-3), "expected 0.1 to 100"),
  (lambda s, d: (s, d + 1e9), "float32 can tell apart"),
]


@pytest.mark.parametrize(("change", "message"), BAD_ARRAYS)
def test_arrays_that_are_no_stack_are_told_in_a_line(change, message):
  slices, depths = change(bundles.slices(4), 3.0 * np.arange(4))
  with pytest.raises(UserError) as caught:
    given_arrays.depths_um(depths, len(given_arrays.gray_slices(slices)))
  assert message in str(caught.value)
  assert "\n" not in str(caught.value)
  with pytest.raises(UserError):  # the predictor asks
    bundles.reader().predict(slices, depths)


def test_arrays_are_read_as_files_are():
  stack = bundles.slices(3)
  same = lambda given, **options: np.testing.assert_array_equal(
    given_arrays.gray_slices(given, **options), stack
  )
  same(stack)
  same(list(stack))
  same(np.stack([stack] * 3, -1))  # colour saved by mistake
  same(stack.astype(np.uint16) * 10, value_range=(0, 2550))
  same(stack / 255, value_range=(0.0, 1.0))
  caption = np.concatenate([stack, np.full((3, 9, 80), 255, np.uint8)], axis=1)
  same(caption)
  with pytest.raises(UserError, match="NaN"):
    given_arrays.gray_slices(np.full((2, 8, 8), np.nan), (0.0, 1.0))
  for wrong in ((1, 0), (0, np.nan), (0, np.inf)):
    with pytest.raises(UserError, match="value_range"):
      given_arrays.gray_slices(stack, wrong)
  np.testing.assert_array_equal(given_arrays.depths_um([0, 3, 6], 3), [0.0, 3.0, 6.0])


def test_a_stream_refuses_what_a_stack_would_and_goes_on():
  stream = predictor.StreamingPredictor(bundles.reader())
  image = bundles.slices(1)[0]
  stream.add(image, 0.0)
  for slice_, depth in (
    (image, np.nan),
    (image, None),
    (image, [3.0]),
    (image, 1e38),
    (image, 0.01),
    (image / 255, 3.0),
    (image[:, :40], 3.0),
    (np.stack([image, image]), 3.0),
  ):
    with pytest.raises(UserError) as caught:
      stream.add(slice_, depth)
    assert "\n" not in str(caught.value)
  assert len(stream.add(np.stack([image] * 3, -1), 3.0).depth_um) == 2
