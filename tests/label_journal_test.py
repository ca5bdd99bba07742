"""What a reader said: checked, saved at once, never half, never over somebody else's change."""

from __future__ import annotations

import csv
import io
import json
import subprocess
import sys
import time

import numpy as np
from PIL import Image
import pytest

from tests import studies
from tfds_rcm.errors import UserError
from tfds_rcm.labelling import answers, journal, order, predictions, stacks
from tfds_rcm.labelling.journal import FIRST, SECOND

DONE = answers.Answer("done", (0, 2, 4))


def lines(path):
  return [json.loads(line) for line in path.read_text().splitlines()]


def table(path):
  with path.open(newline="") as stream:
    return list(csv.DictReader(stream))


@pytest.fixture
def kept(tmp_path):
  opened = journal.Journal(tmp_path, "ann")
  yield opened
  opened.close()


def reopened(kept, folder):
  kept.close()
  return journal.Journal(folder, "ann")


@pytest.mark.parametrize(
  ("starts", "expected"),
  [
    ((0, 2, 4), [1, 1, 2, 2, 3, 3]),
    ((1, 2, 4), [0, 1, 2, 2, 3, 3]),
    ((0, 0, 6), [2, 2, 2, 2, 2, 2]),
    ((0, 6, 6), [1, 1, 1, 1, 1, 1]),
    ((0, 3, 3), [1, 1, 1, 3, 3, 3]),
    ((0, 2, None), [1, 1, -1, -1, -1, -1]),
    ((0, None, 4), [-1, -1, -1, -1, 3, 3]),
    ((None, None, None), [-1] * 6),
  ],
)
def test_labels_follow_from_boundaries(starts, expected):
  assert list(answers.Answer(starts=starts).strata(6)) == expected


@pytest.mark.parametrize(
  "wrong",
  [
    None, [], {"state": "finished"}, {"starts": [0, 1]}, {"starts": [0, 5, 4]}, {"starts": [0, 1, 7]},
    {"starts": [0, True, 4]}, {"starts": [0, 1.0, 4]}, {"labels": [1] * 5}, {"labels": [4] * 6},
    {"state": "done", "starts": [0, 2, None]}, {"state": "done", "labels": [1, 1, 1, 1, 1, -1]},
    {"state": "unreadable"}, {"state": "done", "starts": [0, 2, 4], "reason": "bubble"},
    {"note": "x" * 3000}, {"note": 1}, {"stack_id": "s0"},
  ],
)  # fmt: skip
def test_what_is_no_answer_is_refused(wrong):
  with pytest.raises(UserError):
    answers.parse({"state": "draft", **wrong} if isinstance(wrong, dict) else wrong, 6, "answer")


def test_an_answer_goes_through_json():
  for answer in (
    DONE,
    answers.Answer("unreadable", reason="bubble"),
    answers.Answer(labels=(1,) * 6),
  ):
    assert answers.parse(json.loads(json.dumps(answer.as_json())), 6, "answer") == answer


def test_the_file_holds_what_is_finished_and_the_log_everything(kept, tmp_path):
  kept.save(("s1", FIRST), answers.Answer(starts=(0, 3, None)), 6, 0)
  kept.save(("s0", FIRST), answers.Answer("done", (0, 2, 4), note="odd,\nbut sure"), 6, 0)
  kept.save(("s0", SECOND), answers.Answer("done", (0, 1, 4)), 6, 0)
  kept.save(("s2", FIRST), answers.Answer("unreadable", reason="bubble"), 6, 0)
  rows = table(tmp_path / "ann.csv")
  of = lambda name: [row["label"] for row in rows if row["stack_id"] == name]
  assert of("s0") == ["epidermis"] * 2 + ["dej"] * 2 + ["dermis"] * 2
  assert of("s1") == []
  assert of("s2") == ["unreadable"]
  assert rows[0]["note"] == "odd, but sure"
  assert {row["reader"] for row in rows} == {"ann"}
  assert len(lines(tmp_path / "ann.log.jsonl")) == 4
  again = reopened(kept, tmp_path)
  assert again["s1", FIRST].answer.starts == (0, 3, None)
  assert again["s0", SECOND].answer.starts == (0, 1, 4)
  again.close()


def test_the_second_of_two_windows_is_told_and_overwrites_nothing(kept):
  kept.save(("s0", FIRST), DONE, 6, 0)
  with pytest.raises(journal.Conflict) as caught:
    kept.save(("s0", FIRST), answers.Answer(), 6, 0)
  assert caught.value.entry.answer == DONE
  assert kept["s0", FIRST].revision == 1
  kept.save(("s0", FIRST), DONE, 6, 0)  # the same once more: its reply was lost
  assert kept["s0", FIRST].revision == 1


def test_a_reader_has_one_server(kept, tmp_path):
  with pytest.raises(UserError, match="held by another"):
    journal.Journal(tmp_path, "ann")
  journal.Journal(tmp_path, "bob").close()


@pytest.mark.parametrize("cut", range(1, 40, 3))
def test_a_kill_in_the_middle_of_a_line_loses_that_line_alone(kept, tmp_path, cut):
  kept.save(("s0", FIRST), DONE, 6, 0)
  before = (tmp_path / "ann.csv").read_text()
  kept.save(("s1", FIRST), DONE, 6, 0)
  kept.close()
  log = tmp_path / "ann.log.jsonl"
  log.write_bytes(log.read_bytes()[:-cut])
  (tmp_path / "ann.csv").write_text(before)  # the log is written first
  again = journal.Journal(tmp_path, "ann")
  assert again["s0", FIRST].answer == DONE
  assert again["s1", FIRST].revision == 0
  again.save(("s1", FIRST), DONE, 6, 0)
  assert reopened(again, tmp_path)["s1", FIRST].answer == DONE


def test_a_kill_between_log_and_file_is_mended(kept, tmp_path):
  kept.save(("s0", FIRST), DONE, 6, 0)
  before = (tmp_path / "ann.csv").read_text()
  kept.save(("s1", FIRST), DONE, 6, 0)
  after = (tmp_path / "ann.csv").read_text()
  (tmp_path / "ann.csv").write_text(before)
  reopened(kept, tmp_path).close()
  assert (tmp_path / "ann.csv").read_text() == after


def test_a_full_disk_changes_nothing(kept, tmp_path, monkeypatch):
  kept.save(("s0", FIRST), DONE, 6, 0)
  log = (tmp_path / "ann.log.jsonl").read_bytes()

  def full(*_):
    raise OSError(28, "No space left on device")

  with monkeypatch.context() as patch:
    patch.setattr(journal.files, "write_whole", full)
    with pytest.raises(OSError, match="No space"):
      kept.save(("s1", FIRST), DONE, 6, 0)
  assert kept["s1", FIRST].revision == 0
  assert (tmp_path / "ann.log.jsonl").read_bytes() == log
  kept.save(("s1", FIRST), DONE, 6, 0)


def test_a_file_that_somebody_edited_is_not_overwritten(kept, tmp_path):
  kept.save(("s0", FIRST), DONE, 6, 0)
  kept.close()
  studies.edit(tmp_path / "ann.csv", "dermis", "dej")
  with pytest.raises(UserError, match="somebody"):
    journal.Journal(tmp_path, "ann")
  assert "dej\n" not in (tmp_path / "ann.log.jsonl").read_text()


def test_a_damaged_log_is_told_with_its_line(kept, tmp_path):
  kept.save(("s0", FIRST), DONE, 6, 0)
  kept.close()
  log = tmp_path / "ann.log.jsonl"
  log.write_text("{nonsense\n" + log.read_text())
  with pytest.raises(UserError, match="line 1"):
    journal.Journal(tmp_path, "ann")


def test_it_is_recorded_what_the_reader_had_seen(kept, tmp_path):
  key = ("s0", FIRST)
  assert kept[key].predictions == "no"
  kept.save(key, DONE, 6, 0)
  assert kept.show_predictions(key).predictions == "after"
  assert kept.save(key, answers.Answer("done", (0, 2, 4), note="hm"), 6, 1).predictions == "after"
  assert kept.save(key, answers.Answer("done", (0, 1, 4)), 6, 2).predictions == "revised"
  other = ("s1", FIRST)
  kept.show_predictions(other)
  assert kept.save(other, DONE, 6, 0).predictions == "before"
  assert reopened(kept, tmp_path)[key].predictions == "revised"


@pytest.mark.parametrize("name", ["", "a/b", "..", ".ann", "a b", "x" * 65, "_x"])
def test_a_reader_is_called_as_a_file_can_be(name):
  with pytest.raises(UserError, match="--reader"):
    journal.check_reader(name)


def test_orders_are_shuffled_by_seed_and_reader_and_move_little():
  names = [f"s{k}" for k in range(60)]
  plan = order.plan(names, "ann", repeats=0.2)
  first = [stack for stack, reading in plan if reading == FIRST]
  assert sorted(first) == sorted(names)
  assert first != names
  assert plan == order.plan(list(reversed(names)), "ann", repeats=0.2)
  assert plan != order.plan(names, "bob", repeats=0.2)
  assert plan != order.plan(names, "ann", repeats=0.2, seed=1)
  again = [stack for stack, reading in plan if reading == SECOND]
  assert len(again) == 12
  gaps = [plan.index((stack, SECOND)) - plan.index((stack, FIRST)) for stack in again]
  assert min(gaps) >= min(5, len(names))
  more = [s for s, r in order.plan([*names, "new"], "ann", repeats=0.2) if r == FIRST]
  assert [stack for stack in more if stack != "new"] == first


def test_the_least_certain_come_first():
  names = [f"s{k}" for k in range(9)]
  doubt = {"s3": 0.1, "s7": 0.4, "s1": 0.2}
  plan = order.plan(names, "ann", repeats=0.0, doubt=doubt)
  assert [stack for stack, _ in plan[:3]] == ["s7", "s1", "s3"]


def prediction(path, source, strata="eeddmm", sure=0.9):
  name = {"e": "epidermis", "d": "dej", "m": "dermis"}
  rows = []
  for t, letter in enumerate(strata):
    p = dict.fromkeys(name.values(), (1 - sure) / 2) | {name[letter]: sure}
    rows.append({"slice": t, "stratum": name[letter], "depth_um": 3.0 * t, "probabilities": p})
  boundaries = []
  for boundary, below in (("epidermis_dej", "dm"), ("dej_dermis", "m")):
    t = sum(letter not in below for letter in strata)
    depth = None if t == len(strata) else 3.0 * t - 1.5
    ends = (None, None) if depth is None else (depth - 4, depth + 6)
    boundaries.append(
      {"name": boundary, "depth_um": depth, "low_um": ends[0], "high_um": ends[1], "slice": t}
    )
  values = {
    "schema": "rcm_jax.prediction/1",
    "stack": {"name": path.stem, "source": str(source)},
    "model": {"method": "ordered"},
    "slices": rows,
    "boundaries": boundaries,
    "warnings": [],
  }
  path.parent.mkdir(exist_ok=True)
  path.write_text(json.dumps(values))


def test_predictions_are_found_by_path_and_by_name(tmp_path):
  study = studies.write_study(tmp_path / "study")
  found = stacks.find(study)
  prediction(tmp_path / "read" / "VivaStack_1.json", found[1].path, sure=0.6)
  prediction(tmp_path / "read" / "s0.json", "elsewhere")
  prediction(tmp_path / "read" / "other.json", "elsewhere")
  (tmp_path / "read" / "summary.json").write_text("[]")
  read = predictions.read(tmp_path / "read", found)
  assert set(read) == {"s0", "s1"}
  assert read["s1"].doubt == pytest.approx(0.4)
  assert read["s0"].labels == (1, 1, 2, 2, 3, 3)
  prediction(tmp_path / "read" / "twice.json", found[1].path)
  with pytest.raises(UserError, match="second prediction"):
    predictions.read(tmp_path / "read", found)
  with pytest.raises(UserError, match="no prediction of any"):
    predictions.read(study, found)
  (tmp_path / "read" / "twice.json").unlink()
  (tmp_path / "of_study").mkdir()
  (tmp_path / "read").rename(tmp_path / "of_study" / "stacks")
  assert set(predictions.read(tmp_path / "of_study", found)) == {"s0", "s1"}


def test_a_study_without_a_manifest_has_its_stacks_and_a_draft(tmp_path):
  study = studies.write_study(tmp_path / "study")
  (study / "manifest.csv").unlink()
  found = stacks.find(study, step_um=3.0)
  assert found[0].stack_id == "p0/arm/VivaStack #0"
  draft = table(study / "manifest.draft.csv")
  assert [row["path"] for row in draft] == [stack.stack_id for stack in found]
  assert {row["step_um"] for row in draft} == {"3.0"}
  slices = stacks.Slices(stacks.find(study))
  assert slices.shown(found[0].stack_id).depth_um is None  # nobody told the step
  slices.close()


def test_slices_reach_the_page_bit_for_bit(tmp_path):

  study = studies.write_study(tmp_path / "study", num_stacks=5)
  slices = stacks.Slices(stacks.find(study))
  for k in range(5):
    assert slices.shown(f"s{k}").count == 6
    png, (low, high) = slices.png(f"s{k}", 3)
    pixels = np.asarray(Image.open(io.BytesIO(png)))
    np.testing.assert_array_equal(pixels, studies.volume(k)[3])
    assert 0 <= low < high <= 255
  slices.close()


_WRITER = """
import pathlib, sys
from tfds_rcm.labelling import answers, journal
kept = journal.Journal(pathlib.Path(sys.argv[1]), "ann")
for k in range(100000):
  key = f"s{k % 7}", journal.FIRST
  at = kept[key].revision
  entry = kept.save(key, answers.Answer("done", (0, at % 30, 30)), 40, at)
  print(key[0], entry.revision, flush=True)
"""


@pytest.mark.parametrize("seconds", [0.05, 0.13, 0.31])
def test_a_kill_at_any_moment_loses_at_most_the_change_in_hand(tmp_path, seconds):
  command = [sys.executable, "-c", _WRITER, str(tmp_path)]
  writer = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
  said = [writer.stdout.readline()]
  time.sleep(seconds)
  writer.kill()
  said += writer.stdout.readlines()
  writer.wait()
  writer.stdout.close()
  told = {stack: int(revision) for stack, revision in map(str.split, said)}
  kept = journal.Journal(tmp_path, "ann")
  found = {stack: kept[stack, FIRST].revision for stack in told}
  ahead = sum(found[stack] - told[stack] for stack in told)
  assert all(found[stack] >= told[stack] for stack in told)
  assert ahead <= 1  # saved, and killed before it could say so
  rows = table(tmp_path / "ann.csv")
  assert len(rows) == 40 * sum(1 for k in range(7) if kept[f"s{k}", FIRST].revision)
  kept.close()
