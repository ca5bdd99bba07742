"""The readers' agreement, against scikit-learn, published formulas and worked examples."""

from __future__ import annotations

import contextlib
import csv
import io
import json
import re

import numpy as np
import pytest
from scipy import stats
from sklearn import metrics

from tests import studies
from tests.label_prepare_test import label
from tfds_rcm import agreement as command_line
from tfds_rcm.errors import UserError
from tfds_rcm.labelling import answers, comparison, journal, kappa, plots, readings, report
from tfds_rcm.labelling.journal import FIRST, SECOND

NO_LOGS = readings.Journals({}, {}, {}, {})


def stack(name, patient, depth_um=None, site="arm", **by_reader):
  labels = {reader: np.array(said) for reader, said in by_reader.items()}
  first = next(iter(labels.values()))
  depth_um = 3.0 * np.arange(len(first)) if depth_um is None else np.array(depth_um, float)
  return readings.ReadStack(name, patient, site, depth_um, labels, None, first)


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("weights", kappa.WEIGHTS)
def test_cohens_kappa_is_scikit_learns(seed, weights):
  rng = np.random.default_rng(seed)
  classes = int(rng.integers(2, 6))
  a = rng.integers(0, classes, 200)
  b = np.where(rng.random(200) < 0.6, a, rng.integers(0, classes, 200))
  counts = kappa.confusion(a, b, classes)
  np.testing.assert_array_equal(counts, metrics.confusion_matrix(a, b, labels=range(classes)))
  expected = metrics.cohen_kappa_score(
    a, b, labels=range(classes), weights=None if weights == "none" else weights
  )
  assert kappa.cohen(counts, weights) == pytest.approx(expected, abs=1e-12)
  assert kappa.accuracy(counts) == pytest.approx(metrics.accuracy_score(a, b), abs=1e-12)


def test_fleiss_kappa_is_that_of_his_paper():
  """Psychological Bulletin 76, 1971, table 1: 30 patients, 6 raters, 5 diagnoses; κ = .430."""
  table = """0 0 0 6 0  0 3 0 0 3  0 1 4 0 1  0 0 0 0 6  0 3 0 3 0  2 0 4 0 0  0 0 4 0 2  2 0 3 1 0  2 0 0 4 0
    0 0 0 0 6  1 0 0 5 0  1 1 0 4 0  0 3 3 0 0  1 0 0 5 0  0 2 0 3 1  0 0 5 0 1  3 0 0 1 2  5 1 0 0 0
    0 2 0 4 0  1 0 2 0 3  0 0 0 0 6  0 1 0 5 0  0 2 0 1 3  2 0 0 4 0  1 0 0 4 1  0 5 0 1 0  4 0 0 0 2
    0 2 0 4 0  1 0 5 0 0  0 0 0 0 6"""
  counts = np.array(table.split(), int).reshape(30, 5)
  labels = np.stack([np.repeat(np.arange(5), row) for row in counts], axis=1)
  assert kappa.fleiss(kappa.votes(labels, 5)) == pytest.approx(0.430, abs=5e-4)


@pytest.mark.parametrize("seed", range(5))
def test_fleiss_kappa_is_the_published_formula(seed):
  """Fleiss 1971, equations 1 to 7, in float64; statsmodels' fleiss_kappa computes the same."""
  rng = np.random.default_rng(seed)
  m, subjects, classes = int(rng.integers(2, 6)), 150, 3
  truth = rng.integers(0, classes, subjects)
  labels = np.where(rng.random((m, subjects)) < 0.5, truth, rng.integers(0, classes, (m, subjects)))
  n = (labels[..., None] == np.arange(classes)).sum(0)
  p = n.sum(0) / (subjects * m)
  extent = ((n**2).sum(1) - m) / (m * (m - 1))
  expected = (extent.mean() - (p**2).sum()) / (1 - (p**2).sum())
  assert kappa.fleiss(kappa.votes(labels, classes)) == pytest.approx(expected, abs=1e-12)


@pytest.mark.parametrize("weights", kappa.WEIGHTS)
def test_weighted_fleiss_kappa_is_the_mean_over_pairs_of_readers(weights):
  rng = np.random.default_rng(7)
  labels = np.clip(rng.integers(0, 3, 80) + rng.integers(-1, 2, (4, 80)), 0, 2)
  w = kappa.disagreement_weights(3, weights)
  pairs = [(i, j) for i in range(4) for j in range(4) if i != j]
  observed = np.mean([w[labels[i], labels[j]].mean() for i, j in pairs])
  chance = w[np.ix_(labels.ravel(), labels.ravel())].mean()
  got = kappa.fleiss(kappa.votes(labels, 3), weights)
  assert got == pytest.approx(1 - observed / chance, abs=1e-12)


def test_no_kappa_where_chance_alone_agrees():
  assert np.isnan(kappa.cohen(np.diag([5, 0, 0])))
  assert kappa.cohen(np.diag([5, 5, 0])) == 1


def test_intervals_cover_as_often_as_they_promise():
  """Means of skewed values of 20 patients: the percentile bootstrap covers less."""
  rng = np.random.default_rng(0)
  trials, covered = 200, 0
  for trial in range(trials):
    values = rng.exponential(1.0, 20)
    found = kappa.estimate(lambda draws, v=values: draws @ v / draws.sum(1), 20, seed=trial)
    covered += found.low <= 1.0 <= found.high
  # Efron's BCa covers some 92 to 93 % here; three standard errors below is 87 %.
  assert stats.binom.cdf(covered, trials, 0.92) > 1e-3


def test_an_interval_is_over_patients_not_slices():
  rng = np.random.default_rng(1)
  right = np.repeat(rng.random(8) < 0.6, 500).reshape(8, 500)  # a patient's slices are all alike
  right[0], right[1] = True, False
  totals = np.stack([right.sum(1), np.full(8, 500)], axis=1).astype(float)
  found = kappa.estimate(lambda d: (d @ totals)[:, 0] / (d @ totals)[:, 1], 8)
  assert found.high - found.low > 0.3
  few = totals[: kappa.MIN_PATIENTS - 1]
  found = kappa.estimate(lambda d: (d @ few)[:, 0] / (d @ few)[:, 1], len(few))
  assert np.isfinite(found.value)
  assert np.isnan(found.low)


def test_boundaries_are_compared_in_um_where_both_saw_them():
  depth = [0, 3, 6, 10, 15, 21]
  stacks = [
    stack("s0", "p0", depth, a=[1, 1, 2, 2, 3, 3], b=[1, 1, 1, 2, 2, 3]),
    stack("s1", "p1", depth, a=[1, 2, 2, 2, 2, 3], b=[1, 2, 2, 2, 2, 2]),
    stack("s2", "p1", depth, a=[2, 2, 2, 3, 3, 3], b=[1, 2, 2, 2, 3, 3]),
  ]
  [pair] = comparison.compare(stacks, NO_LOGS).pairs
  upper, lower = (pair.boundaries[name] for name in comparison.BOUNDARIES)
  assert upper.stack_id == ("s0", "s1")  # s2 begins in the DEJ for a
  np.testing.assert_allclose(upper.difference_um, [10 - 6, 0])
  np.testing.assert_allclose(lower.difference_um, [21 - 15, 15 - 10])
  assert (upper.one_only, lower.one_only) == (1, 1)
  assert lower.bias.value == pytest.approx(5.5)
  assert lower.mae.value == pytest.approx(5.5)
  assert lower.sd == pytest.approx(np.std([6, 5], ddof=1))
  assert lower.limits[1] == pytest.approx(5.5 + 1.96 * np.std([6, 5], ddof=1))
  np.testing.assert_allclose(lower.mean_um, [18, 12.5])


def test_corneum_counts_as_epidermis():
  [pair] = comparison.compare([stack("s0", "p0", a=[0, 0, 2, 3], b=[1, 1, 2, 3])], NO_LOGS).pairs
  assert pair.accuracy.value == 1


def test_stacks_are_compared_where_readers_meet():
  stacks = [
    stack("s0", "p0", site="arm", a=[1, 2, 3], b=[1, 2, 3], c=[1, 1, 3]),
    stack("s1", "p1", site="leg", a=[1, 2, 3], b=[1, 1, 1]),
    stack("s2", "p2", site="leg", c=[1, 2, 3]),
  ]
  found = comparison.compare(stacks, NO_LOGS)
  assert [(p.first, p.second, p.stacks, p.slices) for p in found.pairs] == [
    ("a", "b", 2, 6), ("a", "c", 1, 3), ("b", "c", 1, 3),
  ]  # fmt: skip
  assert (found.common.stacks, found.common.slices) == (1, 3)
  assert found.common.unanimous.value == pytest.approx(2 / 3)
  assert [(site, p.first, p.second) for site, p in found.by_site][-1] == ("leg", "a", "b")
  assert [s.stack_id for s in found.worst] == ["s1", "s0"]
  with pytest.raises(UserError, match="two readers"):
    comparison.compare([stacks[2]], NO_LOGS)


@pytest.fixture(scope="module")
def study(tmp_path_factory):
  folder = studies.write_study(tmp_path_factory.mktemp("agreement") / "a & <b>", 6, 6)
  (folder / "labels.csv").unlink()
  manifest = (folder / "manifest.csv").read_text().replace(",arm,A", ",leg,A")
  (folder / "manifest.csv").write_text(manifest)
  done = lambda *starts: answers.Answer("done", starts)
  label(folder, "ann", {f"s{k}": done(0, 2, 4) for k in range(6)})
  label(folder, "bob", {f"s{k}": done(0, 2 + k % 2, 4 + k // 3) for k in range(6)})
  label(folder, "cy", {f"s{k}": done(0, 1, 4) for k in range(5)})
  label(folder, "cy", {"s5": answers.Answer("unreadable", reason="bubble")})
  kept = journal.Journal(folder / "labels", "ann")
  kept.save(("s1", SECOND), done(0, 3, 4), 6, 0)
  kept.save(("s2", SECOND), done(0, 2, 4), 6, 0)
  kept.show_predictions(("s0", FIRST))
  kept.close()
  label(folder, "dora", {"s4": done(0, 3, 5)}, "labels/adjudicated")
  return folder


def run(*arguments):
  out, err = io.StringIO(), io.StringIO()
  with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
    code = command_line.main(list(map(str, arguments)))
  return code, out.getvalue(), err.getvalue()


def rows(path):
  with path.open(newline="") as stream:
    return list(csv.DictReader(stream))


def test_the_report_of_a_study(study, tmp_path):
  code, said, err = run(f"--source={study}", f"--out={tmp_path}")
  assert (code, err) == (0, "")
  assert "3 readers, 6 stacks" in said
  pairs = {row["readers"]: row for row in rows(tmp_path / "pairs.csv")}
  ann = np.tile([0, 0, 1, 1, 2, 2], 6)
  bob = np.concatenate(
    [np.repeat([0, 1, 2], [2 + k % 2, 2 + k // 3 - k % 2, 2 - k // 3]) for k in range(6)]
  )
  both = pairs["ann – bob"]
  assert float(both["κ"]) == pytest.approx(metrics.cohen_kappa_score(ann, bob), abs=1e-12)
  assert float(both["same label"]) == pytest.approx((ann == bob).mean())
  assert float(both["κ low"]) <= float(both["κ"]) <= float(both["κ high"])
  assert (both["stacks"], pairs["ann – cy"]["stacks"]) == ("6", "5")
  [own] = rows(tmp_path / "repeatability.csv")
  assert (own["reader"], own["stacks"]) == ("ann", "2")
  assert float(own["same label"]) == pytest.approx(11 / 12)
  sites = {(row["site"], row["readers"]) for row in rows(tmp_path / "sites.csv")}
  assert ("leg", "ann – bob") in sites
  seen = {row["reader"]: row for row in rows(tmp_path / "seen.csv")}
  assert (seen["ann"]["after the answer"], seen["cy"]["unreadable"]) == ("1", "1")
  text = (tmp_path / "agreement.md").read_text()
  assert "s5 could not be read by all (cy: bubble)" in text
  assert "| ann – bob | 6 | 6 | 36 |" in text
  summary = json.loads((tmp_path / "agreement.json").read_text())
  assert summary["schema"] == "tfds_rcm.agreement/1"
  cy = np.tile([0, 1, 1, 1, 2, 2], 5)
  same = [(ann == bob).sum(), (ann[:30] == cy).sum(), (bob[:30] == cy).sum()]
  assert summary["accuracy"][0] == pytest.approx(sum(same) / 96)
  assert summary["boundary_mae_um"]["dej_dermis"][0] > 0


def test_no_table_of_an_earlier_report_stays(tmp_path):
  studies.write_table(tmp_path / "sites.csv", ("site",), [("nowhere",)])
  folder = studies.write_study(tmp_path / "study", 3, 3)
  said = [(f"s{k}", reader, 2, 4) for k in range(3) for reader in "ab"]
  header = ("stack_id", "reader", "dej_index", "dermis_index")
  studies.write_table(folder / "labels.csv", header, said)
  assert run(f"--source={folder}", f"--out={tmp_path}")[0] == 0
  assert not (tmp_path / "sites.csv").exists()  # one site only


def test_the_consensus_is_the_majority_unless_somebody_decided(study, tmp_path):
  run(f"--source={study}", f"--out={tmp_path}", "--readers=bob,ann")
  found = rows(tmp_path / "consensus.csv")
  of = lambda name: [row["label"] for row in found if row["stack_id"] == name]
  assert of("s0") == ["epidermis"] * 2 + ["dej"] * 2 + ["dermis"] * 2
  assert of("s4") == ["epidermis"] * 3 + ["dej"] * 2 + ["dermis"]  # dora's
  assert of("s5") == ["epidermis"] * 3 + ["dej"] * 2 + ["dermis"]  # bob's: a tie
  assert {row["decided_by"] for row in found if row["stack_id"] == "s4"} == {"adjudicated"}
  labels = f"--labels={tmp_path / 'consensus.csv'}"
  out = studies.succeed("rcm_clinical", study, tmp_path / "data", "--check", labels)
  assert "0 problems" in out


def test_the_page_stands_alone_and_escapes_names(study, tmp_path):
  run(f"--source={study}", f"--out={tmp_path}", "--address=http://127.0.0.1:1234/abc/")
  text = (tmp_path / "agreement.html").read_text()
  assert "<b>" not in text
  assert "a &amp; &lt;b&gt;" in text
  assert "{{" not in text.replace("${{", "")
  assert not re.search(r"(?:src|href)=[\"'](?!data:)", text)
  assert text.count('data-stack="') == 6
  assert text.count("<svg") > 6
  assert 'value="http://127.0.0.1:1234/abc/"' in text


def test_a_bland_altman_plot_has_a_point_a_stack():
  stacks = [
    stack(f"s{k}", f"p{k}", a=[1, 1, 2, 2, 3, 3, 3], b=[1] * (1 + k) + [2, 2, 3, 3, 3, 3][: 6 - k])
    for k in range(4)
  ]
  [pair] = comparison.compare(stacks, NO_LOGS).pairs
  svg = plots.bland_altman(pair.boundaries["epidermis_dej"], "a – <b>")
  assert svg.count("<circle") == 4
  assert "<b>" not in svg
  assert "nan" not in svg


def test_labels_of_a_table_with_readers_are_compared_too(tmp_path):
  folder = studies.write_study(tmp_path / "study", 4, 2)
  header = ("stack_id", "reader", "dej_index", "dermis_index")
  said = [(f"s{k}", reader, 2 + (reader == "b"), 4) for k in range(4) for reader in "ab"]
  studies.write_table(folder / "labels.csv", header, said)
  code, _, err = run(f"--source={folder}", f"--out={tmp_path / 'out'}")
  assert (code, err) == (0, "")
  [row] = rows(tmp_path / "out" / "pairs.csv")
  assert float(row["same label"]) == pytest.approx(5 / 6)


@pytest.mark.parametrize("arguments", [["--source=nowhere"], []])
def test_what_cannot_be_compared_is_one_line(arguments, tmp_path):
  folder = studies.write_study(tmp_path / "study", 2, 2)  # one reader
  code, _, err = run(*(arguments or [f"--source={folder}"]), f"--out={tmp_path / 'out'}")
  [line] = err.splitlines()
  assert code == 1
  assert line.startswith("error: ")
  assert not (tmp_path / "out").exists()


def test_shown_cells_have_few_digits():
  assert report.shown(kappa.Estimate(0.8765, 0.81, 0.932)) == "0.88 (0.81 to 0.93)"
  assert report.shown(report.Percent(kappa.Estimate(0.9, np.nan, np.nan))) == "90.0"
  assert report.shown(-1.234) == "−1.23"
  assert report.shown(float("nan")) == "–"
