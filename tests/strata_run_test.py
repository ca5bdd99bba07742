"""A whole run of four strata: trained, kept, read back, shown and streamed."""

from __future__ import annotations

import dataclasses
import json
import math
import pathlib

import bundles
import decision_rule
import jsonschema
from main_runs import SMALL, results
import numpy as np
import pytest

from rcm_jax.anatomy import PAPER, WITH_CORNEUM
from rcm_jax.configs import ordered, ordered_4
from rcm_jax.data import slices as slices_lib
from rcm_jax.inference import bundle, description, html_report, interpretation, stack_files
from rcm_jax.inference.predictor import Predictor, StreamingPredictor
from rcm_jax.run import pipeline

SCHEMA = json.loads(
  pathlib.Path(html_report.__file__).with_name("prediction.schema.json").read_text()
)

pytestmark = pytest.mark.slow  # all read one run


@pytest.fixture(scope="module")
def home(tmp_path_factory):
  home = tmp_path_factory.mktemp("home")
  config = ordered_4.get_config()
  config.update_from_flattened_dict(SMALL)
  config.data.data_dir = str(home / "data")
  pipeline.run(config, home / "run", home / "cache")
  return home


@pytest.fixture(scope="module")
def reader(home):
  return Predictor(bundle.load(home / "run"))


def test_the_config_is_the_ordered_one_with_four_strata():
  four, three = (module.get_config().to_dict() for module in (ordered_4, ordered))
  assert four.pop("name") == "ordered_4"
  assert three.pop("name") == "ordered"
  assert four["data"].pop("strata") == 4
  assert three["data"].pop("strata") == 3
  assert four == three


def test_results_tell_four_strata(home):
  read = results(home / "run")
  assert read["dataset"]["strata"] == list(WITH_CORNEUM.names)
  assert read["dataset"]["name"].endswith(", 4 strata")
  for row in read["rows"]:
    assert set(row["sensitivity"]) == set(WITH_CORNEUM.names)
    assert set(row["boundary_mae_um"]) == set(WITH_CORNEUM.boundaries)
    if row["ordered"]:
      assert row["inconsistent"]["total"] == 0
  header = (home / "run" / "predictions.csv").read_text().split("\n", 1)[0]
  assert header.endswith("predicted,p_stratum_corneum,p_epidermis,p_dej,p_dermis")


def test_every_test_stack_gets_one_answer_of_four_strata(home, reader):
  test = slices_lib.load_slices(next(home.glob("cache/decode-*")))["test"]
  assert test.strata == WITH_CORNEUM == reader.bundle.description.strata
  for stack in range(len(test.stack_id)):
    rows = test.rows(stack)
    slices, depth = np.array(test.slices[rows]), test.depth_um[rows].astype(np.float64)
    said = reader.predict(slices, depth, pixel_um=2.0)
    decision_rule.assert_holds(said.interpretation, said.boundaries, said.plan, depth, WITH_CORNEUM)
    corneum, viable = said.thickness
    lower, upper, _ = said.boundaries
    assert corneum.thickness_um == lower.depth_um
    if viable.thickness_um is not None:
      assert viable.thickness_um == upper.depth_um - lower.depth_um
    result = stack_files.result_of(
      said,
      reader.bundle.description,
      stack_id="s",
      source="/s",
      slice_names=[str(t) for t in range(len(depth))],
      pixel_um=2.0,
    )
    jsonschema.validate(result, SCHEMA)
    page = html_report.render(result, slices)
    assert "stratum corneum–epidermis" in page
    assert "viable epidermis" in page
  stream = StreamingPredictor(reader, pixel_um=2.0)
  for image, um in zip(slices, depth, strict=True):
    last = stream.add(image, um)
  assert [b.slice for b in last.boundaries] == [b.slice for b in said.boundaries]
  assert [t.thickness_um for t in last.thickness] == [t.thickness_um for t in said.thickness]


def test_thickness_is_told_as_far_as_the_stack_shows_the_strata():
  of = lambda shown, at=0.0: interpretation.Boundary(
    "b", shown, 0.9, *((at, at - 4, at + 5, 1) if shown else (None,) * 4)
  )
  inner = np.array([[30.0, 41.0, 60.0]])
  told = lambda *found: interpretation.thicknesses(found, inner, WITH_CORNEUM)
  corneum, viable = told(of(True, 3.0), of(True, 44.0), of(False))
  assert dataclasses.astuple(corneum) == ("stratum_corneum", 3.0, 0.0, 8.0)
  assert dataclasses.astuple(viable) == ("epidermis", 41.0, 30.0, 60.0)
  assert [t.thickness_um for t in told(of(False), of(True, 9.0), of(True, 30.0))] == [None, None]
  inner[:] = [0.0, 41.0, math.inf]
  assert told(of(True, 3.0), of(True, 44.0), of(False))[1].low_um is None
  assert interpretation.thicknesses([of(True), of(True)], np.zeros((0, 3)), PAPER) == []


def test_a_bundle_tells_its_strata_and_all_of_it_must_fit_them(home):
  path = home / "run" / "model" / bundle.DESCRIPTION
  fields = json.loads(path.read_text())
  assert fields["strata"] == list(WITH_CORNEUM.names)
  read = description.Description.from_json
  assert read(json.dumps(fields)).to_json() == path.read_text()
  for change, message in (
    ({"strata": list(PAPER.names)}, r"head\.num_strata: 4 where its 3 strata need 3"),
    ({"strata": ["skin"]}, "its strata are skin, not epidermis, dej, dermis or"),
    (
      {"calibration": {**fields["calibration"], "margin_um": [1.0, 2.0]}},
      r"calibration\.margin_um: 2 where its 4 strata need 3",
    ),
    (
      {"calibration": {**fields["calibration"], "thickness_margin_um": []}},
      r"calibration\.thickness_margin_um: 0 where its 4 strata need 1",
    ),
  ):
    with pytest.raises(ValueError, match=message):
      read(json.dumps({**fields, **change}))


def test_a_larger_field_shows_how_far_its_parts_differ():
  slices = bundles.slices(9, size=2 * bundles.SIZE)
  made = bundles.made(1, True, WITH_CORNEUM)
  described = dataclasses.replace(made.description, field_um=3.0 * bundles.SIZE)
  reader = Predictor(dataclasses.replace(made, description=described))
  pages = []
  for view, pixel_um in ((slices, 3.0), (slices[:, :80, :80], 3.0)):
    said = reader.predict(view, 3.0 * np.arange(9), pixel_um=pixel_um)
    said = dataclasses.replace(
      said, boundaries=[dataclasses.replace(b, lateral_um=12.34) for b in said.boundaries]
    )
    names = [str(t) for t in range(9)]
    result = stack_files.result_of(
      said, described, stack_id="s", source="/s", slice_names=names, pixel_um=pixel_um
    )
    pages.append((said.tiles, html_report.render(result, view)))
  (many, shown), (one, hidden) = pages
  assert (many, one) == (4, 1)
  assert "over the field, µm" in shown
  assert shown.count('<td class="number">12.3</td>') == 3
  assert "over the field, µm" not in hidden
