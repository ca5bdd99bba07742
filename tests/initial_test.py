"""Trainings that start from a model of ours."""

from __future__ import annotations

import csv
import dataclasses
import json

import jax
import numpy as np
import pytest

from rcm_jax.cnn import training as cnn_training
from rcm_jax.configs import hames, iv3_context, ordered_textures, toeplitz_d1
from rcm_jax.data.slices import Slices
from rcm_jax.heads import training as head_training
from rcm_jax.heads.objective import Member
from rcm_jax.inference import bundle as bundle_lib
from rcm_jax.inference import model_card
from rcm_jax.run import head_config, initial, pipeline
from tests.main_runs import small
from tfds_rcm.errors import UserError

STILL = {
  "cnn.learning_rate": 0.0,
  "cnn.epochs": 1,
  "head.epochs": 1,
  "head.learning_rates": (0.0,),
}


def starting(home, method=toeplitz_d1, **change):
  config = small(method)
  config.data.data_dir, config.init = str(home / "data"), str(home / "run")
  config.update_from_flattened_dict(change)
  return config


@pytest.fixture(scope="module")
def tuned(home, tmp_path_factory):
  """A run from `home`'s model that learns nothing more."""
  workdir = tmp_path_factory.mktemp("tuned") / "run"
  pipeline.run(starting(home, **STILL), workdir, home / "cache")
  return workdir


def probabilities(workdir, method):
  with (workdir / "predictions.csv").open(newline="") as file:
    rows = [row for row in csv.DictReader(file) if row["method"] == method]
  return np.array([[float(row[f"p_{c}"]) for c in ("epidermis", "dej", "dermis")] for row in rows])


@pytest.mark.slow
def test_cnn_and_heads_begin_where_the_model_stands(home, tuned):
  method = bundle_lib.load(home / "run").description.method
  before, after = (probabilities(workdir, method) for workdir in (home / "run", tuned))
  np.testing.assert_allclose(after, before, atol=1e-4)
  network = [probabilities(workdir, "inception_v3") for workdir in (home / "run", tuned)]
  np.testing.assert_allclose(*network, atol=1e-4)


@pytest.mark.slow
def test_the_new_model_tells_what_it_started_from_and_whom_both_saw(home, tuned):
  old, new = bundle_lib.load(home / "run").description, bundle_lib.load(tuned).description
  assert new.initial == f"{old.method} trained on {old.training.dataset}"
  assert new.patients[1:] == old.patients
  assert f"Training started from {new.initial}" in model_card.markdown(new)


@pytest.mark.slow
def test_the_start_is_part_of_what_names_a_stage(home, tuned, tmp_path, monkeypatch):
  specs = [json.loads(p.read_text()) for p in (home / "cache").glob("train_cnn-*/spec.json")]
  model = bundle_lib.load(home / "run")
  [mine] = [spec for spec in specs if "init" in spec and not spec["learning_rate"]]
  assert [spec for spec in specs if "init" not in spec]  # those before are named as they were
  assert mine["frozen_epochs"] == 1
  monkeypatch.setattr(cnn_training, "train", None)
  monkeypatch.setattr(head_training, "train", None)
  pipeline.run(starting(home, **STILL), tmp_path / "again", home / "cache")  # all from the cache
  other = dataclasses.replace(model.description, method="another")
  bundle_lib.save(tmp_path / "model", dataclasses.replace(model, description=other))
  config = starting(home, init=str(tmp_path))
  start = opened(config)
  assert start.key != mine["init"]


@pytest.mark.slow
def test_frozen_epochs_leave_the_convolutions_alone(home, tmp_path):
  change = {"cnn.learning_rate": 1e-2, "cnn.epochs": 1, "head.epochs": 1}
  pipeline.run(starting(home, **change), tmp_path / "run", home / "cache")
  old, new = (bundle_lib.load(workdir).network for workdir in (home / "run", tmp_path / "run"))
  for name, block in old.named_blocks().items():
    np.testing.assert_array_equal(block.conv.kernel[...], new.named_blocks()[name].conv.kernel[...])
  assert np.abs(old.classifier.kernel[...] - new.classifier.kernel[...]).max() > 0


def train_slices(size=80, field_um=160.0):
  nothing = np.zeros(0, int)
  images = np.zeros((0, size, size), np.uint8)
  return {"train": Slices(images, nothing, nothing, nothing, (), (), field_um)}


def opened(config, slices=None, **options):
  start = initial.load(config)
  initial.check(start, config, train_slices() if slices is None else slices, **options)
  return start


def test_seeds_start_from_members_in_their_order(home):
  said = []
  config = starting(home, seeds=(7, 8, 9))
  start = opened(config, say=said.append)
  members = [Member(seed, width, 0, 0, 0) for width in (0, 1) for seed in (7, 8, 9)]
  found = start.head_params(members)
  for mine, theirs in zip(jax.tree.leaves(found), jax.tree.leaves(start.model.heads), strict=True):
    np.testing.assert_array_equal(mine, np.asarray(theirs)[[0, 1, 0, 0, 1, 0]])
  assert "3 seeds start from 2 members; those beyond begin with the first again" in said[0]


@pytest.mark.parametrize(
  ("method", "change", "message"),
  [
    (iv3_context, {}, r"context = 1, this run 3; set --config.cnn.context=1"),
    (toeplitz_d1, {"cnn.width": 0.5}, r"set --config.cnn.width=0.0625"),
    (toeplitz_d1, {"cnn.count_include_pad": True}, r"set --config.cnn.count_include_pad=False"),
    (toeplitz_d1, {"cnn.pretrained": "x.h5"}, "leave one of both empty"),
    (hames, {}, "config.pipeline = hames starts from no model; leave config.init empty"),
    (ordered_textures, {}, "config.pipeline = views starts from no model"),
    (toeplitz_d1, {"init": "nowhere"}, "nowhere: no model in it"),
  ],
)
def test_what_cannot_start_from_a_model_is_told(home, method, change, message):
  with pytest.raises(UserError, match=message) as told:
    opened(starting(home, method, **change))
  assert len(str(told.value).splitlines()) == 1


@pytest.mark.parametrize(
  ("slices", "message"),
  [
    (
      train_slices(size=90),
      "sees slices of 80 px, this run's have 90; set --config.data.image_size",
    ),
    (train_slices(field_um=300.0), "show 300; set --config.data.field_um=160"),
    (train_slices(field_um=None), "do not tell their pixel size; give pixel_um"),
  ],
)
def test_slices_of_another_scale_are_told(home, slices, message):
  with pytest.raises(UserError, match=message):
    opened(starting(home), slices)


def test_a_model_of_unknown_scale_is_told_and_taken(home, tmp_path):
  model = bundle_lib.load(home / "run")
  silent = dataclasses.replace(model.description, field_um=None)
  bundle_lib.save(tmp_path / "model", dataclasses.replace(model, description=silent))
  said = []
  assert opened(starting(home, init=str(tmp_path)), say=said.append)
  assert "whether this run's stacks fit it cannot be checked" in said[0]


@pytest.mark.parametrize(
  ("change", "message"),
  [
    ({"head.hidden": 9}, "hidden = 8, this run's 9; set --config.head.hidden=8"),
    ({"head.half_widths": (0, 3)}, r"half_widths = \(1,\), this run's \(3,\)"),
    ({"head.cell": "lstm"}, "cell = gru, this run's lstm"),
    ({"head.bidirectional": False}, "set --config.head.bidirectional=True"),
    ({"head.likelihood": "boundaries"}, "set --config.head.likelihood=slices"),
    ({"head.feedback": "none"}, "set --config.head.feedback="),
    ({"head.attention": "none"}, "set --config.head.attention=toeplitz"),
    ({"head.pca_components": 8}, "leave config.head.pca_components empty"),
  ],
)
def test_heads_of_another_architecture_are_told_before_anything_trains(home, change, message):
  config = starting(home, **change)
  lengths = np.repeat(np.arange(1), 71)
  stacks = Slices(
    np.zeros((71, 80, 80), np.uint8), lengths, lengths, lengths, ("a",), ("a",), 160.0
  )
  spec = head_config.spec(config, {"train": stacks, "validation": stacks})
  start = opened(config)
  with pytest.raises(UserError, match=message):
    initial.check_heads(start, config, spec)


def test_feedback_of_another_kind_has_the_same_weights(home):
  config = starting(home, **{"head.feedback": "scheduled"})
  lengths = np.repeat(np.arange(1), 71)
  stacks = Slices(
    np.zeros((71, 80, 80), np.uint8), lengths, lengths, lengths, ("a",), ("a",), 160.0
  )
  spec = head_config.spec(config, {"train": stacks, "validation": stacks})
  initial.check_heads(opened(config), config, spec)
