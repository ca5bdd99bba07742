"""Any name that a file system allows is read, printed and written."""

import csv
import io
import os
import pathlib
import subprocess
import sys
import zipfile

from PIL import Image
import pytest

from tests import studies
from tfds_rcm import names
from tfds_rcm.errors import UserError, printable
from tfds_rcm.formats import zip_archive

ROOT = pathlib.Path(__file__).resolve().parent.parent
LATIN_1 = os.fsdecode(b"M\xfcller")
AWKWARD = (
  LATIN_1, "new\nline", " lead and trail ", "x" * 255, "back\\slash", "Zürich", 'quote"comma,',
  os.fsdecode(b"a\xff\xfe\xc3\xbc"), "e\u0301",
)  # fmt: skip


def write_bytes_table(path, rows):
  """A CSV with names of files as the bytes that they are."""
  text = io.StringIO(newline="")
  csv.writer(text).writerows(rows)
  path.write_bytes(text.getvalue().encode("utf-8", "surrogateescape"))


@pytest.fixture(name="source")
def _source(tmp_path):
  """A study whose folders, slices and own name are awkward."""
  source = tmp_path / os.fsdecode(b"st\xfcdy")
  rows = [("stack_id", "patient_id", "path", "step_um")]
  labels = [("stack_id", "slice", "label")]
  for index, name in enumerate(AWKWARD):
    (source / name).mkdir(parents=True)
    stem = name[:240]
    for t, pixels in enumerate(studies.volume(index)):
      Image.fromarray(pixels).save(source / name / f"{stem}{t}.bmp")
      stratum = ("stratum_corneum", "epidermis", "dej", "dej", "dermis", "dermis")[t]
      labels.append((f"s{index}", f"{stem}{t}.bmp", stratum))
    rows.append((f"s{index}", f"p{index % 3}", name, 3))
  write_bytes_table(source / "manifest.csv", rows)
  write_bytes_table(source / "labels.csv", labels)
  return source


def test_a_study_of_awkward_names_is_checked_and_prepared(source, tmp_path):
  out = studies.succeed("rcm_clinical", source, tmp_path / "data", "--check")
  assert "stacks      9 of 3 patients, 54 slices" in out
  assert "0 problems" in out
  assert "st\\xfcdy" in out
  out.encode()
  data = tmp_path / os.fsdecode(b"d\xe4ta")
  studies.succeed("rcm_clinical", source, data)
  report = (data / "rcm_clinical/2.0.0/report.txt").read_text(encoding="utf-8")
  assert "st\\xfcdy/manifest.csv" in report


def test_problems_with_awkward_names_are_a_line_each(source, tmp_path):
  for name in AWKWARD:
    [first, *_] = sorted((source / name).iterdir())
    first.write_bytes(b"BM")
  code, out, err = studies.prepare("rcm_clinical", source, tmp_path / "data", "--check")
  assert code == 1
  problems = [line for line in out.splitlines() if line.startswith("problem ")]
  assert len(problems) == len(AWKWARD)
  assert len(err.splitlines()) == 1
  (out + err).encode()


def test_a_terminal_without_unicode(source, tmp_path):
  """Whose standard output raises where another would print µ."""
  command = [
    sys.executable, "-m", "tfds_rcm.prepare", "rcm_clinical", "--check", f"--source={source}",
    f"--data_dir={tmp_path / 'data'}", "--workers=1",
  ]  # fmt: skip
  environment = {**os.environ, "PYTHONIOENCODING": "ascii"}
  done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True)
  assert done.returncode == 0, done.stderr
  assert rb"step, \xb5m" in done.stdout


def test_the_dryad_converter_takes_any_name(tmp_path):
  root = tmp_path / "archive"
  rows = [("Stack", "Volunteer", "Image", "Class", "Age")]
  for index, name in enumerate(AWKWARD):
    name = name[:240] + f" {index}"
    (root / name).mkdir(parents=True)
    for t, pixels in enumerate(studies.volume(index)):
      Image.fromarray(pixels).save(root / name / f"{t}.png")
      stratum = ("corneum", "epidermis", "dej", "dej", "dermis", "dermis")[t]
      rows.append((name, f"v{index % 3}", t, stratum, 50))
  write_bytes_table(root / "labels.csv", rows)
  out = studies.succeed("rcm_dryad", root, tmp_path / "data", "--check", "--step_um=3")
  assert "stacks      9 of 3 patients, 54 slices" in out
  assert "unknown column passed over: 'Age'" in out


@pytest.mark.parametrize("cell", ["M\u00fcller", "Mu\u0308ller", "M\u00fcller\n"])
@pytest.mark.parametrize("name", [LATIN_1, "M\u00fcller", "Mu\u0308ller", "M\u207fller"])
def test_one_name_in_its_spellings_is_found(tmp_path, name, cell):
  (tmp_path / name / "arm").mkdir(parents=True)
  (tmp_path / "Miller").mkdir()
  if name == "M\u207fller" and "\u0308" in cell:
    return  # what zip made of Latin-1, which has no combining characters
  assert names.find(tmp_path, f"{cell}/arm" if "\n" not in cell else cell) in (
    tmp_path / name / "arm", tmp_path / name,
  )  # fmt: skip


def test_the_name_as_written_comes_first_and_two_alike_are_not_guessed(tmp_path):
  for name in (LATIN_1, "M\u00fcller", "a  b", "a b"):
    (tmp_path / name).mkdir()
  assert names.find(tmp_path, "M\u00fcller").name == "M\u00fcller"
  assert names.find(tmp_path, "a b").name == "a b"
  assert not names.find(tmp_path, "a   b").exists()


def test_text_in_mixed_encodings():
  assert names.decode("Zürich".encode() + b" M\xfcller \xe4\xf6") == "Zürich Müller äö"
  assert names.decode("ü".encode("latin-1")) == "ü"


def test_names_get_room_for_a_suffix():
  long = "ü" * 127
  short = names.short(long)
  assert len(short.encode()) < 220
  assert short != names.short("ü" * 126 + "x")
  assert names.short("study") == "study"


def test_zips_with_names_in_old_encodings_and_of_255_bytes(tmp_path):
  path = tmp_path / ("z" * 251 + ".zip")
  inner = io.BytesIO()
  with zipfile.ZipFile(inner, "w") as packed:
    packed.writestr("a.txt", "x")
  with zipfile.ZipFile(path, "w") as packed:
    packed.writestr("utf8-NAME", "x")
    packed.writestr("dosM-NAME", "x")
    packed.writestr("i" * 251 + ".zip", inner.getvalue())
  data = path.read_bytes().replace(b"utf8-NAME", b"Z\xc3\xbcrich**")
  path.write_bytes(data.replace(b"dosM-NAME", b"M\x81ller***"))
  folder = zip_archive.source_folder(path, tmp_path / "cache")
  files = {p.name for p in folder.rglob("*") if p.is_file()}
  assert files == {"Zürich**", "Müller***", "a.txt"}


def test_messages_are_one_printable_line():
  assert str(UserError(f"{LATIN_1}\nx: bad")) == "M\\xfcller\\nx: bad"
  assert printable("µ –\x1b[0m") == "µ –\\x1b[0m"
  assert str(UserError("a\n  b")) == "a\n  b"  # details go on in indented lines
