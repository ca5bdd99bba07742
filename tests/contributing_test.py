"""The example of a new method in CONTRIBUTING.md works as it stands there."""

from __future__ import annotations

import dataclasses
from pathlib import Path
import re

import numpy as np
import precision
import pytest

from launch import sweep
from rcm_jax.arrays import Features
from rcm_jax.heads import attention
from rcm_jax.heads import head as head_lib
from rcm_jax.heads import training as head_training
from rcm_jax.heads.objective import Member

ROOT = Path(__file__).resolve().parent.parent
LENGTHS = np.array([3, 5, 4, 5])


@pytest.fixture
def features():
  rng = np.random.default_rng(0)
  mask = np.arange(5) < LENGTHS[:, None]
  return Features(
    values=rng.normal(size=(4, 5, 6)).astype(np.float32) * mask[..., None],
    labels=rng.integers(0, 3, (4, 5)) * mask,
    depth_um=np.zeros((4, 5), np.float32),
    mask=mask,
  )


def test_the_example_of_a_new_method_trains(monkeypatch, tmp_path, features):
  text = (ROOT / "CONTRIBUTING.md").read_text()
  module, entry, config = re.findall(r"```python\n(.*?)```", text, re.DOTALL)
  namespace = dict(vars(attention))
  exec(module, namespace)  # noqa: S102
  for name, make in eval(f"{{{entry}}}", namespace).items():  # noqa: S307
    monkeypatch.setitem(head_lib.ATTENTIONS, name, make)
  monkeypatch.chdir(ROOT)
  (tmp_path / "method.py").write_text(config)
  fields = sweep.resolve({"config": str(tmp_path / "method.py"), "head.hidden": 4})

  of_attention = attention.AttentionSpec(fields["head.attention"])
  given = {"num_features": 6, "num_strata": 3, "attention": of_attention, "max_slices": 5}
  names = [field.name for field in dataclasses.fields(head_lib.HeadSpec)]
  spec = head_lib.HeadSpec(**{n: given[n] if n in given else fields[f"head.{n}"] for n in names})
  members = [Member(seed, 0, 1e-3, 0.05, 0.1) for seed in (0, 1)]
  head_training.train(spec, members, features, features, tmp_path, epochs=1, batch_size=2)
  trained = head_training.load(spec, members, tmp_path)

  sums = trained.probabilities(features)[:, features.mask].sum(-1)
  precision.assert_close(sums, np.ones(sums.shape))
  maps = trained.attention_weights(features)
  precision.assert_close(maps.sum(-1), np.tile(features.mask, (2, 1, 1)))
