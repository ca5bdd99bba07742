"""The 13 methods of Table 1 as one sweep."""

from __future__ import annotations

from pathlib import Path

import pytest

from launch import sweep, table1
from rcm_jax.evaluation import paper_results


@pytest.fixture(autouse=True)
def _at_the_root(monkeypatch):
  monkeypatch.chdir(Path(__file__).resolve().parent.parent)


def test_the_methods_are_the_papers():
  assert set(table1.METHODS) == set(paper_results.METHODS)
  assert len(table1.METHODS) == 13


@pytest.mark.parametrize("preset", ["demo", "paper_small", "paper"])
def test_every_method_has_a_config_that_names_it(preset):
  for method in table1.METHODS:
    fields = sweep.resolve({"config": f"configs/{method}.py:{preset}"})
    assert fields["name"] == method
    assert fields["data.sources"] == (f"rcm_phantom/{preset}",)


def test_half_widths_train_in_one_program_and_features_are_shared():
  folded = sweep.fold(table1.points("demo", 4))
  (toeplitz,) = [job for job in folded if job.fields["head.attention"] == "toeplitz"]
  assert toeplitz.fields["head.half_widths"] == (0, 1, 2, 3, 5, 7)
  assert toeplitz.fields["seeds"] == (0, 1, 2, 3)
  assert toeplitz.members == 24
  assert len(folded) == 13 - 5 + 1
  first = next(job for job in folded if job.fields["pipeline"] == "head")
  assert first.fields["name"] == "global_attention"  # the fewest members
  for job in folded:
    own_features = job is first or job.fields["pipeline"] in ("hames", "kaur", "depth_prior")
    own_features |= job.fields["cnn.context"] != toeplitz.fields["cnn.context"]
    assert job.after == (None if own_features else first.name)


def test_a_dry_run_says_what_it_would_cost(tmp_path, capsys):
  table1.main([f"--workdir={tmp_path / 'runs'}", "--preset=paper", "--seeds=1", "--dry-run"])
  cost_line, *lines = capsys.readouterr().out.splitlines()
  assert cost_line.startswith("9 jobs, ")
  assert len(lines) == 9 + 1
  assert "rcm_jax.evaluate" in lines[-1]
  assert not (tmp_path / "runs").exists()


@pytest.mark.parametrize(("option", "word"), [("--preset=papr", "paper"), ("--seeds=0", "--seeds")])
def test_a_mistake_is_told_in_one_line(option, word, tmp_path, capsys):
  with pytest.raises(SystemExit, match="1"):
    table1.main([f"--workdir={tmp_path}", "--dry-run", option])
  err = capsys.readouterr().err
  assert err.count("\n") == 1
  assert word in err
