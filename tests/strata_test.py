"""Four strata, or any number: names, labels, decoding, metrics, tables and readers follow the task."""

from __future__ import annotations

import dataclasses
import io
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import rich.console
from scipy import special

from rcm_jax import anatomy, evaluate
from rcm_jax.anatomy import PAPER, WITH_CORNEUM
from rcm_jax.baselines import depth_prior, hames, kaur
from rcm_jax.data import feature_file
from rcm_jax.data import records as records_lib
from rcm_jax.data import slices as slices_lib
from rcm_jax.decoding import boundaries
from rcm_jax.decoding import strata as strata_lib
from rcm_jax.evaluation import calibration as calibration_lib
from rcm_jax.evaluation import metrics, results
from rcm_jax.evaluation import predictions as predictions_lib
from rcm_jax.reporting import console_table, reader_rows
from tests.agreement_test import NO_LOGS, stack
from tests.boundaries_test import chains, labellings
from tests.data_test import builder, records
from tests.evaluate_test import DATASET, numbers
from tfds_rcm.errors import UserError
from tfds_rcm.labelling import comparison, report


def test_a_task_names_its_boundaries_and_the_steps_that_anatomy_forbids():
  assert PAPER.boundaries == ("epidermis_dej", "dej_dermis")
  assert PAPER.transitions == (  # Table 2's order
    "epidermis_dermis",
    "dej_epidermis",
    "dermis_epidermis",
    "dermis_dej",
  )
  assert WITH_CORNEUM.boundaries == ("stratum_corneum_epidermis", *PAPER.boundaries)
  assert len(WITH_CORNEUM.transitions) == 9
  for task in (PAPER, WITH_CORNEUM):
    assert anatomy.of_count(len(task)) == anatomy.of_names(task.names) == task
    assert len(set(task.colors)) == len(task)
  assert list(WITH_CORNEUM.layers) == ["stratum_corneum", "epidermis"]
  assert not PAPER.layers
  with pytest.raises(ValueError, match="its strata are skin, not epidermis, dej, dermis or"):
    anatomy.of_names(["skin"])


@pytest.mark.parametrize(("length", "count"), [(9, 2), (7, 4), (6, 5)])
def test_the_most_probable_labelling_is_the_best_of_all(length, count):
  rng = np.random.default_rng(0)
  paths = labellings(length, count)
  find = jax.jit(strata_lib.monotone)
  for _ in range(8):
    scores = rng.normal(scale=2, size=(length, count)).astype(np.float32)
    best = paths[scores.astype(np.float64)[np.arange(length), paths].sum(1).argmax()]
    np.testing.assert_array_equal(find(scores, np.ones(length, bool)), best)


@pytest.mark.parametrize("count", [2, 3, 4, 5])
def test_labellings_and_boundaries_undo_each_other(count):
  paths, mask = labellings(6, count), np.ones(6, bool)
  found = jax.vmap(lambda path: boundaries.boundary_indices(path, mask, count))(paths)
  np.testing.assert_array_equal(found, chains(paths, count))
  again = jax.vmap(lambda indices: boundaries.strata_between(indices, mask))(found)
  np.testing.assert_array_equal(again, paths)


@pytest.mark.parametrize("count", [2, 3, 4, 5])
def test_counts_are_those_of_a_loop(count):
  rng = np.random.default_rng(count)
  labels, strata = rng.integers(0, count, (2, 40))
  mask = np.arange(40) < 33
  steps = list(zip(strata[:32].tolist(), strata[1:33].tolist()))
  expected = [steps.count(step) for step in anatomy.impossible_steps(count)]
  assert sum(expected) == sum(b - a not in (0, 1) for a, b in steps) > 0
  found = metrics.inconsistent_transitions(jnp.asarray(strata), mask, count)
  np.testing.assert_array_equal(found, expected)
  confusion = np.zeros((count, count))
  np.add.at(confusion, (labels[:33], strata[:33]), 1)
  np.testing.assert_array_equal(metrics.confusion_matrix(labels, strata, mask, count), confusion)


def decode(tmp_path, made, strata=WITH_CORNEUM):
  records_lib.decode([builder(made)], tmp_path, image_size=None, strata=strata)
  return slices_lib.load_slices(tmp_path)


def test_labels_keep_the_corneum_where_it_is_told_apart(tmp_path):
  made = records()
  made["train"][0]["labels"][:2] = 0  # one stack shows it; others begin below
  made["train"][1]["labels"][:] = [1, 2, 3]
  for name, split in decode(tmp_path, made).items():
    assert split.strata == WITH_CORNEUM
    for i, original in enumerate(made[name]):
      np.testing.assert_array_equal(split.labels[split.rows(i)], original["labels"])
    assert split.first(1).strata == WITH_CORNEUM


def test_a_dataset_in_which_nobody_labelled_the_corneum_is_refused(tmp_path):
  made = records()
  for record in made["train"]:
    record["labels"] = np.maximum(record["labels"], 1)
  with pytest.raises(UserError, match=r"^somewhere: no training slice is labelled stratum_corneum"):
    decode(tmp_path, made)
  assert decode(tmp_path, made, PAPER)["train"].strata == PAPER


def test_a_file_of_features_keeps_its_strata(tmp_path):
  splits = decode(tmp_path, records(labels=np.array([0, 1, 2])))
  about = {"dataset": "d", "method": "m", "seed": 0, "sources": ("d",)}
  path = tmp_path / "features.npz"
  feature_file.save(
    path, splits, lambda split, kind: np.full((len(splits[split]), 4), 0.25), **about
  )
  assert feature_file.load(str(path)).splits["train"].strata == WITH_CORNEUM


def test_baselines_tell_as_many_strata_as_they_were_given():
  rng = np.random.default_rng(0)
  labels = np.repeat(np.arange(4), 12)
  noise = rng.integers(0, 40, (48, 24, 24))
  slices = (noise + 50 * labels[:, None, None] * (np.indices((24, 24)).sum(0) % 2)).astype(np.uint8)
  split = (slices, labels, slices, labels)
  search = kaur.KaurSearch((False,), (8,), (1e-2,), (1e-4,), textons=10, epochs=3)
  model = kaur.fit(*split, seed=0, strata=WITH_CORNEUM.names, search=search)
  assert kaur.predict_proba(model, slices).shape == (48, 4)
  search = hames.HamesSearch((10,), (1,), ("sqrt",), ("l2",), (1.0,))
  model = hames.fit(*split, seed=0, strata=WITH_CORNEUM.names, search=search)
  assert (hames.predict_proba(model, slices).argmax(1) == labels).mean() > 0.9
  with pytest.raises(
    UserError, match="no slice is labelled stratum_corneum; expected all 4 strata"
  ):
    hames.fit(slices, np.maximum(labels, 1), slices, labels, seed=0, strata=WITH_CORNEUM.names)
  depth = np.arange(48.0)[:, None]
  assert depth_prior.fit(depth, labels, seed=0, num_strata=4).predict_proba(depth).shape[1] == 4
  with pytest.raises(UserError, match="no slice of stratum 3"):
    depth_prior.fit(depth, np.minimum(labels, 2), seed=0, num_strata=4)


def run(seed=0, split="test", stacks=12, noise=0.8, ordered=False, method="mine"):
  """A run's stacks of four strata, from the corneum to the dermis."""
  truth, rng = (np.random.default_rng([n, split == "test"]) for n in (7, seed))
  out = []
  for i in range(stacks):
    n = int(truth.integers(14, 22))
    ends = np.sort(truth.choice(np.arange(1, n), size=3, replace=False))
    labels = (np.arange(n)[:, None] >= ends).sum(1)
    logits = 2 * np.eye(4)[labels] + rng.normal(scale=noise, size=(n, 4))
    out.append(
      predictions_lib.StackPrediction(
        method=method,
        input="whole stack",
        seed=seed,
        split=split,
        stack_id=f"{split}{i}",
        patient_id=f"{split} patient {i // 2}",
        depth_um=3 * np.arange(n, dtype=np.float32),
        labels=labels,
        probabilities=special.softmax(logits, axis=-1).astype(np.float32),
        ordered=ordered,
        strata=WITH_CORNEUM,
      )
    )
  return out


def test_results_csv_and_tables_have_a_column_for_every_stratum_and_boundary(tmp_path):
  test = [*run(), *run(1)]
  dataset = {**DATASET, "name": "phantom, 4 strata"}
  rows = results.write_run(tmp_path / "a", dataset, [*test, *run(0, "validation")], versions={})
  for row, seed in zip(rows, (0, 1), strict=True):
    mine = [p for p in test if p.seed == seed]
    predicted, labels = (
      np.concatenate([getattr(p, n) for p in mine]) for n in ("predicted", "labels")
    )
    for c, name in enumerate(WITH_CORNEUM.names):
      found = predicted[labels == c]
      assert row["sensitivity"][name] == pytest.approx((found == c).mean())
      assert row["specificity"][name] == pytest.approx((predicted[labels != c] != c).mean())
    assert set(row["inconsistent"]) == {*WITH_CORNEUM.transitions, "total"}
    assert tuple(row["boundary_n"].values()) == (12, 12, 12)
    monotone, errors = jax.jit(strata_lib.monotone), []
    for p in mine:
      path = np.asarray(monotone(np.log(p.probabilities), np.ones(len(p.labels), bool)))
      end = lambda x, p=p: [
        np.append(3 * np.arange(len(x)), 3 * len(x))[(x < b).sum()] for b in (1, 2, 3)
      ]
      errors.append(np.abs(np.subtract(end(path), end(p.labels))))
    mae = row["decoding"]["monotone"]["boundary_mae_um"]
    np.testing.assert_allclose([mae[b] for b in WITH_CORNEUM.boundaries], np.mean(errors, axis=0))
  back = predictions_lib.read_csv(tmp_path / "a" / "predictions.csv")
  assert {p.strata for p in back} == {WITH_CORNEUM}
  np.testing.assert_array_equal(back[0].probabilities, test[0].probabilities)
  assert evaluate.main([f"--runs={tmp_path / 'a'}", f"--out={tmp_path / 'out'}"]) == 0
  text = (tmp_path / "out" / "tables.md").read_text()
  assert "Corneum-Epidermis" in text
  assert "Corneum → DEJ" in text
  assert "no such rows" in text
  [line] = numbers(tmp_path / "out" / "table3.csv")
  assert sum(key.startswith("mean_absolute_error_um") and key.count("_") < 9 for key in line) >= 3
  console = rich.console.Console(record=True, width=80, file=io.StringIO())
  console_table.print_table(rows, console=console)
  shown = console.export_text()
  assert "C-E" in shown
  assert "mine" in shown  # names have room beside more columns
  assert "…" not in shown


def test_runs_of_other_strata_are_not_mixed(tmp_path, capsys):
  three = [
    dataclasses.replace(
      p, strata=PAPER, labels=np.maximum(p.labels - 1, 0), probabilities=p.probabilities[:, 1:]
    )
    for p in run(method="other")
  ]
  with pytest.raises(UserError, match="predictions of 4 and of other strata"):
    predictions_lib.write_csv(tmp_path / "both.csv", [*run(), *three])
  results.write_run(tmp_path / "runs" / "a", DATASET, run(), versions={})
  results.write_run(tmp_path / "runs" / "b", DATASET, three, versions={})
  assert evaluate.main([f"--runs={tmp_path / 'runs'}", f"--out={tmp_path / 'out'}"]) == 0
  assert "other strata than the other runs" in capsys.readouterr().out.replace("\n", " ")


@pytest.mark.slow
def test_intervals_of_a_thickness_cover_it_as_often_as_they_promise():
  learned = calibration_lib.calibrate(run(3, "validation", 60, noise=1.5), 0.9)
  assert len(learned.margin_um) == 3
  assert len(learned.thickness_margin_um) == 1
  found = calibration_lib.assess_thickness(learned, run(4, "test", 200, noise=1.5))
  # 100 patients and 30 that it was learned on: four standard errors.
  assert found.covered[0] > 0.9 - 4 * np.sqrt(0.09 / 30 + 0.09 / 100)
  assert 3 < found.width_um[0] < 40
  assert found.mae_um[0] < found.width_um[0]
  few = calibration_lib.calibrate(run(3, "validation", 6), 0.9)
  assert few.thickness_margin_um == (np.inf,)
  assert np.isnan(calibration_lib.assess_thickness(few, run(4)).covered[0])


def test_readers_who_label_the_corneum_are_compared_on_its_lower_end(tmp_path):
  a, b = [0, 0, 1, 2, 3, 3], [0, 1, 1, 2, 2, 3]
  both = [stack(f"s{k}", f"p{k}", a=a, b=b) for k in range(3)]
  one = [stack(f"t{k}", f"q{k}", a=[0, 1, 2, 2, 3, 3], b=[1, 1, 2, 2, 3, 3]) for k in range(3)]
  found = comparison.compare([*both, *one], NO_LOGS)
  assert found.boundaries == WITH_CORNEUM.boundaries
  corneum = found.pairs[0].boundaries["stratum_corneum_epidermis"]
  assert (len(corneum.stack_id), corneum.one_only) == (3, 3)
  assert corneum.mae.value == pytest.approx(3.0)
  assert found.accuracy.value == pytest.approx((5 * 3 + 6 * 3) / 36)  # corneum counts as epidermis
  assert found.accuracy_with_corneum.value == pytest.approx(4 / 6)  # where both labelled it
  path = report.write(found, tmp_path, source="study", notes=())
  assert "corneum–epidermis" in path.read_text()
  read = reader_rows.read(tmp_path / "agreement.json")
  assert read.accuracy[4][0] == pytest.approx(4 / 6)
  assert read.mae_um["stratum_corneum_epidermis"][0] == pytest.approx(3.0)
  plain = comparison.compare([stack("s", "p", a=[1, 1, 2, 3], b=[0, 1, 2, 3])], NO_LOGS)
  assert plain.boundaries == PAPER.boundaries
  assert json.loads(json.dumps(report.to_json(plain)))["accuracy_with_corneum"] is None
