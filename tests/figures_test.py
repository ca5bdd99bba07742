"""Every figure draws on ordinary and on degenerate input, without a warning."""

from __future__ import annotations

import io

import numpy as np
from PIL import Image
import pytest

from rcm_jax import anatomy
from rcm_jax.evaluation import predictions as predictions_lib
from rcm_jax.reporting import plots


def predictions(lengths=(12, 9), methods=("toeplitz_d1", "mine"), seeds=2):
  rng = np.random.default_rng(0)
  return [
    predictions_lib.StackPrediction(
      method=method,
      input="whole stack",
      seed=seed,
      split="test",
      stack_id=f"s{i}",
      patient_id=f"p{i}",
      depth_um=1.5 * np.arange(n, dtype=np.float32),
      labels=np.sort(rng.integers(0, 3, n)),
      probabilities=rng.dirichlet(np.ones(3), n).astype(np.float32),
    )
    for method in methods
    for seed in range(seeds)
    for i, n in enumerate(lengths)
  ]


def check(path):
  """A readable picture, and nothing left beside it."""
  data = path.read_bytes()
  assert [p.name for p in path.parent.iterdir()] == [path.name]
  image = np.asarray(Image.open(io.BytesIO(data)).convert("RGB"))
  assert image.shape[0] > 200
  assert image.shape[1] > 300
  assert image.std() > 5  # not a blank page


CASES = {
  "training": lambda path: plots.training_curves(
    {"loss": [3.0, 2.0], "validation accuracy": [0.4, 0.6]}, path
  ),
  "one_curve": lambda path: plots.training_curves({"loss": [3.0]}, path),
  "heads": lambda path: plots.head_training(
    ["a", "a", "b"], [[3.0, 2.0, 1.0]] * 3, [[0.3, 0.5, 0.6]] * 3, path
  ),
  "errors": lambda path: plots.boundary_error_histograms(predictions(), path),
  "no_errors": lambda path: plots.boundary_error_histograms(predictions((1,)), path),
  "ribbon": lambda path: plots.strata_ribbon(predictions(), path),
  "one_slice": lambda path: plots.strata_ribbon(predictions((1,)), path),
  "taps": lambda path: plots.toeplitz_weights(
    {d: np.full((2, 2 * d + 1), 1 / (2 * d + 1)) for d in (0, 1, 2, 7)}, path
  ),
  "attention": lambda path: plots.attention_maps({"Global Att.": np.eye(5)}, path),
  "reliability": lambda path: plots.reliability_diagram(
    {"raw": (np.full((4, 3), 1 / 3), np.array([0, 0, 1, 2]))}, path
  ),
}


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("case", CASES)
def test_draws(case, tmp_path):
  path = tmp_path / "figures" / f"{case}.png"
  CASES[case](path)
  check(path)


def test_same_input_gives_the_same_bytes(tmp_path):
  first, second = tmp_path / "first.png", tmp_path / "second.png"
  for path in (first, second):
    CASES["attention"](path)
  assert first.read_bytes() == second.read_bytes()


def test_strata_colors_differ_in_gray_too():
  def luminance(color):
    return np.dot([int(color[i : i + 2], 16) for i in (1, 3, 5)], [0.2126, 0.7152, 0.0722])

  for strata in (anatomy.PAPER, anatomy.WITH_CORNEUM):
    gray = np.array(list(map(luminance, strata.colors)))
    assert np.abs(np.diff(gray)).min() > 30  # of neighbours
    assert len(set(strata.colors)) == len(strata)
