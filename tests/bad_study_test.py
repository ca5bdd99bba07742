"""Whatever is wrong with a study is told in one line with its file and row, and nothing is registered."""

import os
import zipfile

import numpy as np
from PIL import Image
import pydicom
import pytest
import tifffile

from tests import studies
from tfds_rcm.rcm_clinical import rcm_clinical_dataset_builder as clinical

STACK = "p0/arm/VivaStack #0"
SLICE = f"{STACK}/v0000002.bmp"


@pytest.fixture(name="source")
def _source(tmp_path):
  return studies.write_study(tmp_path / "study")


def error(source, data_dir, *options):
  line = studies.fail("rcm_clinical", source, data_dir, *options)
  assert not clinical.Builder(data_dir=data_dir).is_prepared()
  assert not list(data_dir.glob("rcm_clinical/*2.0.0*"))
  return line


def _cut(path, keep):
  path.write_bytes(path.read_bytes()[:keep])


def _bomb(path):
  data = bytearray(path.read_bytes())
  data[18:26] = (20_000).to_bytes(4, "little") * 2
  path.write_bytes(data)


def _loop(folder):
  for path in folder.iterdir():
    path.unlink()
  folder.rmdir()
  os.symlink(folder, folder)


def _instead(source, name):
  """Has the first row of the manifest name another file; returns its path."""
  studies.edit(source / "manifest.csv", STACK, name)
  return source / name


def _nan(source):
  values = studies.volume(0).astype(np.float32)
  values[3, 1, 1] = np.nan
  np.save(_instead(source, "nan.npy"), values)


def _two_channels(source):
  pixels = np.stack([studies.volume(0)] * 2, -1)
  path = _instead(source, "two.tif")
  tifffile.imwrite(path, pixels, photometric="minisblack", planarconfig="contig")


BAD = {
  "truncated image": (
    lambda s: _cut(s / SLICE, 200), "v0000002.bmp", "row 2"),
  "truncated pixels": (lambda s: _cut(s / SLICE, -10), "v0000002.bmp", "row 2"),
  "zero-byte image": (
    lambda s: _cut(s / SLICE, 0), "v0000002.bmp", "empty"),
  "unequal sizes": (
    lambda s: Image.new("L", (9, 9)).save(s / SLICE),
    "9 x 9", "row 2"),
  "gap": (
    lambda s: (s / SLICE).unlink(), "number 2 is missing", "row 2"),
  "symlink loop": (
    lambda s: _loop(s / STACK), "VivaStack #0", "row 2"),
  "decompression bomb": (lambda s: _bomb(s / SLICE), "v0000002.bmp", "bomb", "row 2"),
  "two channels": (_two_channels, "two.tif", "has 2 channels", "row 2"),
  "NaN": (_nan, "nan.npy slice 3: holds NaN", "row 2"),
  "label of a slice that is not there": (
    lambda s: studies.edit(s / "labels.csv", "s0,5,", "s0,6,"),
    "labels.csv, row 7", "first_slice=1"),
  "unlabelled slice": (
    lambda s: studies.edit(s / "labels.csv", "s0,5,dermis\n", ""),
    "slices 5 have no label", "row 2"),
  "stack without labels": (
    lambda s: studies.edit(s / "labels.csv", "s1,", "s0,", 6),
    "manifest.csv, row 3", "has no labels"),
  "labelled twice": (
    lambda s: studies.edit(s / "labels.csv", "s0,5,", "s0,4,"), "row 7", "has a label already"),
  "labels of a stranger": (
    lambda s: studies.edit(s / "labels.csv", "s5,5,dermis", "s9,5,dermis"), "row 37", "'s9'"),
  "duplicate stack": (
    lambda s: studies.edit(s / "manifest.csv", "s1,", "s0,"), "manifest.csv, row 3", "in row 2"),
  "duplicate path": (
    lambda s: studies.edit(s / "manifest.csv", "p1/arm/VivaStack #1", "p0/arm/VivaStack #0"),
    "manifest.csv, row 3", "path"),
  "missing path": (
    lambda s: studies.edit(s / "manifest.csv", "VivaStack #2", "VivaStack #20"),
    "row 4", "no such file"),
  "no step": (
    lambda s: studies.edit(s / "manifest.csv", "#0,3,", "#0,,"), "row 2", "step_um"),
  "negative step": (
    lambda s: studies.edit(s / "manifest.csv", "#0,3,", "#0,-3,"), "row 2", "step_um"),
  "text for a number": (
    lambda s: studies.edit(s / "manifest.csv", "#0,3,", "#0,three,"), "row 2", "'three'"),
  "no patient": (
    lambda s: studies.edit(s / "manifest.csv", "s1,p1", "s1,"), "row 3", "patient_id is empty"),
  "no column": (
    lambda s: studies.edit(s / "manifest.csv", "patient_id", "who"), "row 1", "patient_id"),
  "numbers without a map": (
    lambda s: studies.edit(s / "labels.csv", "s0,0,stratum_corneum", "s0,0,7"),
    "row 2", "--label_map=7=?"),
}  # fmt: skip


@pytest.mark.parametrize("name", BAD)
def test_bad_input_is_told_in_one_line(source, tmp_path, name):
  damage, *expected = BAD[name]
  damage(source)
  message = error(source, tmp_path / "data")
  for part in expected:
    assert part in message
  assert studies.fail("rcm_clinical", source, tmp_path / "data", "--check") == message


def test_zip_that_climbs_out(source, tmp_path):
  packed = tmp_path / "study.zip"
  for member in ("../evil.txt", "/evil.txt", "a/../../evil.txt", "..\\evil.txt", "C:/evil.txt"):
    with zipfile.ZipFile(packed, "w") as archive:
      archive.writestr("manifest.csv", "stack_id")
      archive.writestr(member, "x")
    assert "leads out of the folder" in error(packed, tmp_path / "data")
    assert not list(tmp_path.rglob("evil.txt"))
    assert not list((tmp_path / "data").rglob("manifest.csv"))


def test_zips_with_links_or_damage_and_other_files(source, tmp_path):
  packed = tmp_path / "study.zip"
  link = zipfile.ZipInfo("link")
  link.external_attr = 0o120777 << 16
  with zipfile.ZipFile(packed, "w") as archive:
    archive.writestr(link, "/etc/passwd")
  assert "symbolic link" in error(packed, tmp_path / "data")
  with zipfile.ZipFile(packed, "w") as archive:
    archive.writestr("a", np.random.default_rng(0).bytes(5000))
  data = bytearray(packed.read_bytes())
  data[2000] ^= 1
  packed.write_bytes(data)
  assert "study.zip: cannot be decoded" in error(packed, tmp_path / "data")
  packed.write_bytes(b"Rar!")
  assert "neither a folder nor a zip" in error(packed, tmp_path / "data")


def test_a_damaged_slice_found_by_another_process(source, tmp_path):
  _cut(source / SLICE, -10)
  assert "v0000002.bmp" in error(source, tmp_path / "data", "--workers=2")
  [staging] = (tmp_path / "data/rcm_clinical").glob("staging")
  assert not list(staging.glob("*.partial"))


def test_compressed_dicom_without_its_codec(source, tmp_path, monkeypatch):
  syntax = studies.compress_badly(
    studies.write_dicom(_instead(source, "s.dcm"), studies.volume(0)[:1]),
    pydicom.uid.JPEGLSLossless,
  )
  monkeypatch.setattr(type(pydicom.pixels.get_decoder(syntax)), "is_available", False)
  message = error(source, tmp_path / "data")
  for part in ("manifest.csv, row 2", "s.dcm", "codec is missing", "pip install pyjpegls"):
    assert part in message


def test_a_patient_in_two_given_splits(source, tmp_path):
  given = ("train", "validation", "test", "test", "validation", "test")
  rows = [(f"s{i}", split) for i, split in enumerate(given)]
  path = studies.write_table(tmp_path / "mine.csv", ("stack_id", "split"), rows)
  message = error(source, tmp_path / "data", f"--splits={path}")
  assert "mine.csv, row 5: patient 'p0' is in test here and in train in row 2" in message


def test_transitions_that_run_backwards_are_prepared_with_a_warning(source, tmp_path):
  (source / "labels.csv").unlink()
  header, *lines = (source / "manifest.csv").read_text().splitlines()
  lines = [f"{line},{'12,6' if line.startswith('s1') else '6,12'}" for line in lines]
  (source / "manifest.csv").write_text("\n".join([f"{header},dej_um,dermis_um", *lines]))
  out = studies.succeed("rcm_clinical", source, tmp_path / "data")
  assert "warning     " in out
  assert "manifest.csv, row 3: transitions run backwards: dermis_um 6 lies above dej_um 12" in out
  assert clinical.Builder(data_dir=tmp_path / "data").is_prepared()


@pytest.mark.parametrize(("encoding", "delimiter", "end"), [
  ("utf-8-sig", ";", "\r\n"), ("latin-1", ",", "\r\n"), ("utf-16", "\t", "\n"),
])  # fmt: skip
def test_spreadsheets_of_other_countries(source, tmp_path, encoding, delimiter, end):
  for name in ("manifest.csv", "labels.csv"):
    text = (source / name).read_text().replace("p0,", "Jürgen,").replace(",", delimiter)
    if delimiter == ";":
      text = text.replace("0.5", "0,5")
    (source / name).write_bytes(text.replace("\n", end).encode(encoding))
  studies.succeed("rcm_clinical", source, tmp_path / "data")
  table = (tmp_path / "data/rcm_clinical/splits.csv").read_text(encoding="utf-8")
  assert table.count(",Jürgen,") == 2
  builder = clinical.Builder(data_dir=tmp_path / "data")
  pixels = {r["pixel_um"] for split in builder.info.splits for r in builder.as_data_source(split)}
  assert pixels == {0.5}
