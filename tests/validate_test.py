"""A finished model on labelled stacks: two readers, manifest columns, patients it knows."""

from __future__ import annotations

import csv
import dataclasses
import hashlib
import json
import shutil

from flax import nnx
import jax
import jsonschema
import numpy as np
import pytest

from rcm_jax import evaluate, recalibrate, validate
from rcm_jax.anatomy import PAPER
from rcm_jax.data import labelled
from rcm_jax.evaluation import finished_runs, results
from rcm_jax.inference import bundle as bundle_lib
from rcm_jax.inference import model_card, seen_patients
from rcm_jax.inference.predictor import Predictor
from rcm_jax.reporting import reader_rows
from rcm_jax.validation import figures, groups, reading, report
from tests import studies
from tests.main_runs import SMALL
from tests.predict_test import SCHEMA
from tfds_rcm.errors import UserError

pytestmark = pytest.mark.slow  # on a run, a study and what `validate` says of it

[PHANTOM] = SMALL["data.sources"]
LESIONS = ("nevus", "melanoma", "")


@pytest.fixture(scope="module")
def phantom(home):
  builder, filled = labelled.open_builder(PHANTOM, str(home / "data"), labelled.parse_splits("all"))
  return list(labelled.read(builder, filled, PAPER))


def seen_by_ann(stack):
  """Ann sees the dermis at the end of every stack."""
  return np.concatenate([stack.labels[:-2], [2, 2]])


@pytest.fixture(scope="module")
def study(phantom, tmp_path_factory):
  """The phantom's stacks as a hospital has them, six patients, read by two; bob sees deeper."""
  root = tmp_path_factory.mktemp("study")
  rows, said = [], []
  for k, stack in enumerate(phantom):
    path = root / "study" / f"{k}.npy"
    path.parent.mkdir(exist_ok=True)
    np.save(path, stack.slices)
    source, age = "AB"[k % 2], 20 + k
    rows.append((f"s{k}", f"q{k % 6}", path.name, 3, 2.0, "arm", source, LESIONS[k % 3], age))
    for reader, shift in (("ann", 0), ("bob", 1)):
      ann = seen_by_ann(stack)
      labels = np.concatenate([ann[:1].repeat(shift), ann])[: len(ann)]
      said += [(f"s{k}", reader, t, PAPER.names[c]) for t, c in enumerate(labels)]
  header = ("stack_id", "patient_id", "path", "step_um", "pixel_um", "site", "source")
  studies.write_table(root / "study/manifest.csv", (*header, "Lesion", "Age"), rows)
  studies.write_table(root / "study/labels.csv", ("stack_id", "reader", "slice", "label"), said)
  studies.succeed("rcm_clinical", root / "study", root / "data", "--split_sizes=0,0,9")
  return root


def content(folder):
  files = sorted(path for path in folder.rglob("*") if path.is_file())
  return {str(p.relative_to(folder)): hashlib.sha256(p.read_bytes()).hexdigest() for p in files}


@pytest.fixture(scope="module")
def validated(home, study):
  out, before = study / "out", content(home / "run/model")
  agreement = {"schema": reader_rows._SCHEMA, "readers": ["ann", "bob"], "stacks": 9}
  agreement["boundary_mae_um"] = {name: [3.0, 2.0, 4.0] for name in PAPER.boundaries}
  (study / "agreement.json").write_text(json.dumps(agreement | {"accuracy": [0.9, 0.8, 1.0]}))
  argv = [f"--checkpoint={home / 'run'}", "--source=rcm_clinical", f"--data_dir={study / 'data'}"]
  argv += ["--by=lesion,age", "--worst=2", f"--readers={study / 'agreement.json'}"]
  assert validate.main([*argv, f"--out={out}"]) == 0
  assert content(home / "run/model") == before  # nothing is learned
  return out, json.loads((out / "validation.json").read_text())


def lines(path):
  with path.open(newline="") as file:
    return list(csv.DictReader(file))


def test_records_keep_columns_and_each_readers_labels(study, phantom):
  builder, filled = labelled.open_builder("rcm_clinical", str(study / "data"), ("test",))
  found = {stack.stack_id: stack for stack in labelled.read(builder, filled, PAPER)}
  for k, stack in enumerate(phantom):
    mine = found[f"s{k}"]
    lesion = {"lesion": LESIONS[k % 3]} if LESIONS[k % 3] else {}
    assert mine.columns == {"site": "arm", "source": "AB"[k % 2], "age": str(20 + k), **lesion}
    ann = seen_by_ann(stack)
    np.testing.assert_array_equal(mine.readings["ann"], ann)
    np.testing.assert_array_equal(mine.readings["bob"][1:], ann[:-1])
    np.testing.assert_array_equal(mine.labels, ann)  # ties go to ann
    np.testing.assert_array_equal(mine.slices, labelled.read_again(builder, mine, PAPER).slices)


def test_figures_are_those_of_what_predict_shows(home, study, validated):
  _, found = validated
  said = Predictor(bundle_lib.load(home / "run"))
  builder, filled = labelled.open_builder("rcm_clinical", str(study / "data"), ("test",))
  right, count, error, inside = 0, 0, [], []
  for stack in labelled.read(builder, filled, PAPER):
    prediction = said.predict(stack.slices, stack.depth_um, pixel_um=stack.pixel_um)
    right += (prediction.interpretation.strata == stack.labels).sum()
    count += len(stack.labels)
    first = int(np.argmax(stack.labels == 1))
    b = prediction.boundaries[0]
    if first > 0 and b.shown:
      error.append(abs(b.depth_um - stack.depth_um[first]))
      if b.low_um is not None:
        inside.append(b.low_um <= stack.depth_um[first] <= b.high_um)
  assert found["all"]["slices"] == count
  assert found["all"]["patients"] == 6
  assert found["all"]["accuracy"][0] == pytest.approx(right / count)
  low, high = found["all"]["accuracy"][1:]
  assert low < right / count < high
  if len(error) == found["all"]["boundary_n"]["epidermis_dej"]:
    assert found["all"]["boundary_mae_um"]["epidermis_dej"][0] == pytest.approx(np.mean(error))
  assert len(inside) or found["all"]["interval_coverage"]["epidermis_dej"][0] is None


def test_it_divides_by_reader_and_by_any_column(validated):
  out, found = validated
  assert set(found["by"]) == {"source", "reader", "lesion", "age"}  # one site, one split
  assert {name: f["stacks"] for name, f in found["by"]["lesion"].items()} == {
    "melanoma": 3, "nevus": 3, "not told": 3,
  }  # fmt: skip
  assert found["by"]["reader"]["ann"] == found["all"]
  assert found["by"]["reader"]["bob"]["accuracy"] != found["all"]["accuracy"]
  slices = sum(f["slices"] for f in found["by"]["source"].values())
  assert slices == found["all"]["slices"]
  text = (out / "validation.md").read_text()
  for part in ("# toeplitz_d", "By lesion", "By reader", "figures/calibration.png", "tables.md"):
    assert part in text


def test_worst_stacks_lead_to_their_reports(validated):
  out, found = validated
  rows = {row["stack_id"]: float(row["accuracy"]) for row in lines(out / "stacks.csv")}
  assert len(rows) == 9
  assert [rows[name] for name in found["worst"]] == sorted(rows.values())[:2]
  text = (out / "validation.md").read_text()
  for name in found["worst"]:
    [path] = (out / "reports").glob(f"*-{name}.json")
    result = json.loads(path.read_text())
    jsonschema.validate(result, SCHEMA)
    assert f"(reports/{path.stem}.html)" in text
    assert path.with_suffix(".html").exists()
  assert len(list((out / "reports").iterdir())) == 6


def test_warnings_and_errors_with_and_without_them(validated):
  out, found = validated
  codes = [set(row["warnings"].split()) for row in lines(out / "stacks.csv")]
  assert found["warnings"][-1]["code"] is None
  for entry in found["warnings"]:
    has = [entry["code"] in own if entry["code"] else bool(own) for own in codes]
    assert entry["stacks"] == sum(has)
    for name, wanted in (("with", True), ("without", False)):
      assert (entry[name] or {"stacks": 0})["stacks"] == has.count(wanted)


def test_evaluate_sets_it_beside_other_runs(validated, tmp_path):
  out, found = validated
  [run], notes = finished_runs.gather(out)
  assert not notes
  [method] = run.predictions
  written = json.loads((out / "results.json").read_text())
  assert method == written["rows"][0]["method"] == found["model"]["name"]
  again = results.summarize(run.predictions[method][0], None, run.temperature_of)
  assert again == written["rows"]
  other = [dataclasses.replace(p, method="other") for p in run.predictions[method][0]]
  results.write_run(tmp_path / "runs/b", written["dataset"], other, versions={})
  shutil.copytree(out, tmp_path / "runs/a")
  assert evaluate.main([f"--runs={tmp_path / 'runs'}", f"--out={tmp_path / 'tables'}"]) == 0
  text = (tmp_path / "tables/tables.md").read_text()
  assert "other" in text
  assert method in text


@pytest.fixture(scope="module")
def on_phantom(home, tmp_path_factory):
  out = tmp_path_factory.mktemp("phantom")
  options = {"data_dir": str(home / "data"), "worst": 0}
  whole = validate.run(home / "run", PHANTOM, out / "all", split="all", **options)
  tested = validate.run(home / "run", PHANTOM, out / "test", split="test", **options)
  return out, whole, tested


def test_patients_of_the_training_are_found_by_their_ids(on_phantom, phantom):
  _, whole, tested = on_phantom
  known = {s.patient_id for s in phantom if s.split != "test"}
  assert whole.seen_patients == sorted(known)
  assert tested.seen_patients == []
  # Without them only the test split is left, and no stack's answer depends on the others'.
  assert whole.unseen == tested.whole
  assert whole.whole != tested.whole
  assert (on_phantom[0] / "all/validation.json").read_text().count(next(iter(known))) >= 1


def test_the_test_split_gets_what_the_run_itself_predicted(home, on_phantom):
  out, _, tested = on_phantom
  mine = lines(out / "test/predictions.csv")
  runs = [
    row for row in lines(home / "run/predictions.csv")
    if row["split"] == "test" and f"{row['method']}_ensemble" == tested.name
  ]  # fmt: skip
  by_seed = [[row for row in runs if row["seed"] == seed] for seed in ("0", "1")]
  for name in ("p_epidermis", "p_dej", "p_dermis"):
    mean = np.mean([[float(row[name]) for row in rows] for rows in by_seed], axis=0)
    np.testing.assert_allclose([float(row[name]) for row in mine], mean, atol=2e-4)
  assert json.loads((out / "test/results.json").read_text())["dataset"]["name"] == PHANTOM


def test_a_model_that_does_not_tell_its_patients_says_so(on_phantom):
  _, whole, _ = on_phantom
  silent = dataclasses.replace(whole.model, patients=())
  assert reading._seen(silent, PHANTOM, whole.stacks[0].known.patient_id) is None
  stacks = [dataclasses.replace(s, seen=None) for s in whole.stacks]
  found = dataclasses.replace(whole, model=silent, stacks=stacks, unseen=None)
  assert "cannot be checked" in report.notes(found)[0]
  assert report.to_json(found)["seen_patients"] is None
  assert f"{len(whole.seen_patients)} of " in report.notes(whole)[0]


def test_a_shared_model_names_nobody(home, phantom):
  text = (home / "run/model/bundle.json").read_text()
  assert not [s.patient_id for s in phantom if f'"{s.patient_id}"' in text]


def test_ids_are_compared_as_studies_compare_them():
  known = seen_patients.hashes_of(seen_patients.people(["rcm_clinical"], ["P-07", "8"]))
  see = lambda source, name: seen_patients.has_seen(
    [known], next(seen_patients.people([source], [name]))
  )
  assert see("rcm_clinical", "p7")
  assert see("rcm_dryad", "08")
  assert not see("rcm_clinical", "70")
  assert not see("rcm_phantom/demo", "8")
  people = seen_patients.people(["rcm_phantom/demo+seed=3/2.0.0"], ["p001"])
  assert list(people) == ["rcm_phantom, seed 3/p1"]
  assert list(seen_patients.people(["rcm_phantom/of another"], ["1"]))  # whatever a file calls it
  mixed = ["rcm_clinical", "rcm_phantom/demo+seed=3"]
  people = list(seen_patients.people(mixed, ["rcm_clinical/8", "rcm_phantom/p001"]))
  assert people == ["/8", "rcm_phantom, seed 3/p1"]
  assert seen_patients.hashes_of(reversed(people)) == seen_patients.hashes_of(people)


@pytest.mark.parametrize(
  ("extra", "message"),
  [
    (["--by=lesoin"], "--by=lesoin: no stack has such a column; known are age, lesion"),
    (["--split=tset"], "'tset' is none of all, train, validation, test; did you mean 'test'"),
    (["--split=train"], "split 'train' of 'rcm_clinical' has no stacks; it needs some"),
    (["--source=rcm_clinic"], "--source: no dataset 'rcm_clinic'"),
    (["--readers=none.json"], "none.json: not the agreement"),
    (["--checkpoint=nowhere"], "nowhere: no model in it"),
    (["--out={home}/run"], "is a run's work directory"),
  ],
)
def test_bad_input_is_one_line_and_leaves_nothing(home, study, tmp_path, capsys, extra, message):
  argv = [f"--checkpoint={home / 'run'}", "--source=rcm_clinical", f"--data_dir={study / 'data'}"]
  extra = [text.format(home=home) for text in extra]
  assert validate.main([*argv, f"--out={tmp_path / 'out'}", *extra]) == 1
  [line] = capsys.readouterr().err.splitlines()
  assert line.startswith("error: ")
  assert message in line
  assert not list((tmp_path / "out").glob("*"))


def test_the_readers_are_the_ceiling(validated):
  out, _ = validated
  assert (out / "tables.md").read_text().count("readers between themselves") == 2


def test_numbers_are_divided_into_quarters_and_too_many_words_refused(on_phantom):
  _, whole, _ = on_phantom
  stacks = [
    dataclasses.replace(
      s, known=dataclasses.replace(s.known, columns={"age": f"{k}", "id": f"x{k}"})
    )
    for k, s in enumerate(list(whole.stacks) * 5)
  ]
  measured = figures.measure(stacks)
  found = groups.divide(stacks, measured, ["age"])
  [division] = [d for d in found if d.column == "age"]
  assert [g.name for g in division.groups] == ["0 to 11", "12 to 22", "23 to 33", "34 to 44"]
  assert sum(g.figures.stacks for g in division.groups) == 45
  with pytest.raises(UserError, match="45 different values"):
    groups.divide(stacks, measured, ["id"])


def test_every_patient_weighs_the_same_in_coverage(on_phantom):
  _, whole, _ = on_phantom
  m = figures.measure(whole.stacks)
  found = figures.figures_of(m)
  for b in range(2):
    share = []
    for patient in set(m.patient):
      own = np.array([p == patient for p in m.patient]) & m.bounded[:, b]
      if own.any():
        share.append(m.inside[own, b].mean())
    expected = np.mean(share) if share else np.nan
    assert found.covered[b].value == pytest.approx(expected, nan_ok=True)


@pytest.fixture(scope="module")
def six(home, study):
  """A model recalibrated on the clinic's six patients."""
  out = study / "new"
  argv = [f"--checkpoint={home / 'run'}", "--source=rcm_clinical", f"--data_dir={study / 'data'}"]
  assert recalibrate.main([*argv, f"--out={out}"]) == 0
  return bundle_lib.load(out)


def test_recalibration_changes_temperature_and_intervals_alone(home, study, six):
  old, new = bundle_lib.load(home / "run").description, six.description
  kept = dataclasses.replace(
    new,
    calibration=old.calibration,
    figures=old.figures,
    recalibrated=None,
    patients=old.patients,
    training=dataclasses.replace(new.training, wide_um=old.training.wide_um),
  )
  assert kept == old
  assert six.familiar is not None or bundle_lib.load(home / "run").familiar is None
  assert new.recalibrated.dataset == "rcm_clinical, all splits"
  assert (new.recalibrated.stacks, new.recalibrated.patients) == (9, 6)
  assert new.training.wide_um is not None
  assert new.measured_coverage == (None, None)  # what was measured before is not said of it
  assert len(new.patients) == len(old.patients) + 1
  learned = lambda b: jax.tree.leaves((nnx.state(b.network), b.heads, b.familiar))
  for mine, theirs in zip(learned(six), learned(bundle_lib.load(home / "run")), strict=True):
    np.testing.assert_array_equal(mine, theirs)


def test_a_recalibrated_model_knows_the_patients_that_it_was_fitted_on(six):
  known = [reading._seen(six.description, "rcm_clinical", f"q{k}") for k in range(10)]
  assert known == [True] * 6 + [False] * 4


def test_its_card_says_what_it_was_fitted_on(six):
  card = model_card.markdown(six.description)
  assert "fitted anew on 9 stacks of 6 patients of rcm_clinical, all splits" in card.replace(
    "\n", " "
  )
  assert "None since temperature and intervals were fitted anew" in card


@pytest.mark.parametrize(
  ("source", "out", "message"),
  [
    (PHANTOM, "new", "patients that the model has not learned from"),
    ("rcm_clinical", "full", "is there and no model"),
    ("rcm_clinical", "itself", "is the model itself"),
  ],
)
def test_recalibration_refuses_in_a_line(home, study, tmp_path, capsys, source, out, message):
  (tmp_path / "full").mkdir()
  (tmp_path / "full/thesis.tex").write_text("years of work")
  (tmp_path / "itself").symlink_to(home / "run/model")
  data = home / "data" if source == PHANTOM else study / "data"
  before = content(home / "run/model")
  argv = [f"--checkpoint={home / 'run'}", f"--source={source}", f"--data_dir={data}"]
  assert recalibrate.main([*argv, f"--out={tmp_path / out}"]) == 1
  [line] = capsys.readouterr().err.splitlines()
  assert message in line
  assert (tmp_path / "full/thesis.tex").exists()
  assert not (tmp_path / "new").exists()
  assert content(home / "run/model") == before


def test_a_stack_that_the_model_cannot_read_is_told_and_left_out(home, phantom):
  small = dataclasses.replace(phantom[0], stack_id="tiny", pixel_um=0.1)
  said = Predictor(bundle_lib.load(home / "run"))
  found, faults = reading.read(said, [small, phantom[1]], PHANTOM)
  assert [s.known.stack_id for s in found] == [phantom[1].stack_id]
  assert faults[0].startswith("stack 'tiny': a field of 8 µm is less than 50%")
  with pytest.raises(UserError, match="can read no stack"):
    reading.read(said, [small], PHANTOM)
