from __future__ import annotations

import collections
import dataclasses

import numpy as np
import pytest

from rcm_jax.baselines import depth_prior
from tfds_rcm.errors import UserError
from tfds_rcm.rcm_phantom import anatomy as anatomy_lib
from tfds_rcm.rcm_phantom import annotators, relief, spec, waves

PAPER = spec.PRESETS["paper"]


@pytest.fixture(scope="module")
def paper():
  anatomies = anatomy_lib.draw_anatomies(PAPER)
  return anatomies, [annotators.plan_stack(PAPER, anatomy) for anatomy in anatomies]


def mixture(plans):
  counts = np.bincount(np.concatenate([plan.labels for plan in plans]), minlength=4)
  return np.array([counts[0] + counts[1], counts[2], counts[3]]) / counts.sum()


def test_paper_preset_has_the_papers_stacks_lengths_and_classes(paper):
  anatomies, plans = paper
  assert collections.Counter(a.split for a in anatomies) == {
    "train": 245,
    "validation": 61,
    "test": 198,
  }
  lengths = sorted(len(plan) for plan in plans)
  assert lengths[-1] == 101
  assert lengths[-2] == 71
  assert anatomies[np.argmax([len(plan) for plan in plans])].split == "train"
  assert sum(lengths) == pytest.approx(21412, rel=0.03)
  np.testing.assert_allclose(mixture(plans), (0.44, 0.34, 0.22), atol=0.025)


def test_demo_preset_has_like_classes():
  demo = spec.PRESETS["demo"]
  plans = [annotators.plan_stack(demo, a) for a in anatomy_lib.draw_anatomies(demo)]
  assert len(plans) == 60
  assert np.mean([len(plan) for plan in plans]) == pytest.approx(42, abs=3)
  np.testing.assert_allclose(mixture(plans), (0.44, 0.34, 0.22), atol=0.05)


@pytest.mark.parametrize("preset", spec.PRESETS)
def test_no_patient_is_in_two_splits_and_stack_ids_are_unique(preset):
  anatomies = anatomy_lib.draw_anatomies(spec.PRESETS[preset])
  splits = collections.defaultdict(set)
  for anatomy in anatomies:
    splits[anatomy.patient_id].add(anatomy.split)
  assert all(len(found) == 1 for found in splits.values())
  assert len({anatomy.stack_id for anatomy in anatomies}) == len(anatomies)
  assert len(splits) < len(anatomies)  # some give several


def test_stacks_of_a_patient_are_alike_but_vary_more_than_patients_do(paper):
  anatomies, _ = paper
  groups = collections.defaultdict(list)
  for anatomy in anatomies:
    groups[anatomy.patient_id].append(
      [anatomy.cell_contrast, anatomy.collagen, anatomy.furrow_spacing_um, anatomy.cell_scale]
    )
  # Shares of variance by one-way analysis; choice: 0.7 within patients (0.50 to 0.74 measured).
  groups = [np.array(g) for g in groups.values() if len(g) > 1]
  within = np.mean([g.var(0, ddof=1) for g in groups], 0)
  total = np.concatenate(groups).var(0, ddof=1)
  share = within / total
  assert np.all(share < 0.95)
  assert 0.55 < share.mean() < 0.85


def test_labels_step_down_through_the_strata_and_rarely_back(paper):
  _, plans = paper
  steps = np.concatenate([np.diff(plan.labels) for plan in plans])
  assert np.mean(steps < 0) < 0.005
  assert np.mean([plan.labels[0] < 2 for plan in plans]) > 0.95  # some begin below
  assert all(np.all(np.diff(plan.depth_um) == PAPER.depth_step_um) for plan in plans)


def test_readers_without_error_follow_the_geometry_and_errors_grow_with_the_knob(paper):
  anatomies, plans = paper
  anatomies, plans = anatomies[:30], plans[:30]
  agreement = {}
  for scale in (0.0, 1.0, 3.0):
    phantom = dataclasses.replace(PAPER, reader_disagreement=scale)
    agreement[scale] = []
    for anatomy in anatomies:
      plan = annotators.plan_stack(phantom, anatomy)
      profile = annotators.stratum_profile(phantom, anatomy)
      depth = plan.start_um + plan.depth_um
      epidermis, dermis = (
        np.interp(depth, np.arange(len(share)), share)
        for share in (profile.epidermis, profile.dermis)
      )
      largest = np.argmax([epidermis, 1 - epidermis - dermis, dermis], axis=0)
      agreement[scale].append(np.mean(largest == np.maximum(plan.labels - 1, 0)))
  assert np.min(agreement[0.0]) == 1.0
  assert 0.85 < np.mean(agreement[1.0]) < 0.98
  assert np.mean(agreement[3.0]) < np.mean(agreement[1.0])


def true_depths(phantom, anatomy):
  """Depths at which half the field has left the epidermis, and entered the dermis."""
  profile = annotators.stratum_profile(phantom, anatomy)
  axis = np.arange(len(profile.dermis))
  return np.interp(-0.5, -profile.epidermis, axis), np.interp(0.5, profile.dermis, axis)


def test_stacks_start_and_end_where_they_like(paper):
  anatomies, plans = paper
  depths = np.array([true_depths(PAPER, anatomy) for anatomy in anatomies[:250]])
  for ends in ([p.start_um for p in plans[:250]], [p.depth_um[-1] for p in plans[:250]]):
    for column in depths.T:
      # 250 pairs that have nothing to do with each other correlate by less in 99.9 % of cases.
      assert abs(np.corrcoef(ends, column)[0, 1]) < 0.21
  assert depths.std(0).min() > 18  # so that depth alone does not tell the stratum


@pytest.mark.parametrize("end", [False, True])
def test_depth_tells_no_more_than_the_weakest_method_of_the_paper(paper, end):
  def of_split(split):
    plans = [plan for anatomy, plan in zip(*paper) if anatomy.split == split]
    stack = np.concatenate([np.full(len(plan), i) for i, plan in enumerate(plans)])
    depth_um = np.concatenate([plan.depth_um for plan in plans])
    labels = np.concatenate([np.maximum(plan.labels - 1, 0) for plan in plans])
    return depth_prior.features(depth_um, stack, end=end), labels

  model = depth_prior.fit(*of_split("train"), seed=0)
  assert 0.5 < model.score(*of_split("validation")) <= 0.7212  # Kaur's method, paper's Table 1


def test_papillae_are_as_many_as_were_counted(paper):
  spacing = np.array([a.papilla_spacing_um for a in paper[0] if a.lesion == "none"])
  # 84 per mm² by RCM and by histology (10.1159/000543491), on a hexagonal lattice.
  assert np.mean(1e6 / (np.sqrt(0.75) * spacing**2)) == pytest.approx(84, abs=6)


def test_errors_are_shared_by_readers_and_along_a_stack(paper):
  anatomies = [a for a in paper[0] if a.lesion == "none"][:120]
  plans = [annotators.plan_stack(PAPER, a) for a in anatomies]
  errors, apart, crossings = [], [], []
  for anatomy, plan in zip(anatomies, plans):
    both = annotators.reader_labels(PAPER, anatomy, plan)
    apart.append(np.mean(both[0] != both[1]))
    crossings.append(np.sum(np.diff(both, axis=1) < 0))
    found = plan.start_um + PAPER.depth_step_um * np.sum(both < 2, axis=1)
    if np.all((both == 2).any(axis=1) & (both[:, :1] < 2).any(axis=1)):
      errors.append(found - true_depths(PAPER, anatomy)[0])
  errors = np.array(errors)
  assert 0.2 < np.corrcoef(errors.T)[0, 1] < 0.8
  assert 3 < errors.std() < 10
  assert 0.04 < np.mean(apart) < 0.16
  assert np.mean(crossings) < 1  # a reader draws boundaries, not slices


def test_lesions_are_harder_to_read(paper):
  right = {}
  for lesion in ("none", "melanoma"):
    right[lesion] = []
    for anatomy in [a for a in paper[0] if a.lesion == "none"][:60]:
      healthy = dataclasses.replace(anatomy, lesion=lesion)
      plan = annotators.plan_stack(PAPER, healthy)
      still = annotators.plan_stack(dataclasses.replace(PAPER, reader_disagreement=0.0), healthy)
      right[lesion].append(np.mean(plan.labels == still.labels))
  assert np.mean(right["melanoma"]) < np.mean(right["none"]) - 0.01


def test_development_and_evaluation_phantoms_are_apart():
  assert len(set(spec.EVALUATION_SEEDS)) == 5
  assert not set(spec.EVALUATION_SEEDS) & set(spec.DEVELOPMENT_SEEDS)


def test_layers_lie_in_order_everywhere(paper):
  axis = np.linspace(0, 500, 60)
  for anatomy in paper[0][:12]:
    maps = relief.make_relief(anatomy, axis, axis)
    assert np.all(maps.surface >= 0)
    assert np.all(maps.corneum > 0)
    assert np.all(maps.junction > maps.surface + maps.corneum)
    assert np.all(maps.ridge - maps.junction < 1.6 * anatomy.papilla_height_um)


def test_relief_does_not_depend_on_the_grid(paper):
  anatomy = paper[0][0]
  fine, coarse = np.arange(0, 120, 1.5), np.arange(0, 120, 6.0)
  dense = relief.make_relief(anatomy, fine, fine)
  sparse = relief.make_relief(anatomy, coarse, coarse)
  for field in dataclasses.fields(relief.Relief):
    np.testing.assert_allclose(
      getattr(dense, field.name)[::4, ::4], getattr(sparse, field.name), atol=1e-9
    )


def test_waves_have_unit_variance_and_the_asked_wavelength():
  rng = np.random.default_rng(0)
  axis = np.arange(0, 3000, 5.0)
  field = waves.evaluate(waves.draw(rng, 100.0, count=200), axis, axis)
  assert field.std() == pytest.approx(1, abs=0.15)
  crossings = np.mean(np.diff(np.sign(field), axis=1) != 0) / 5.0  # per µm
  assert 1 / 200 < crossings < 1 / 30


def test_step_of_depth_changes_the_number_of_slices_not_the_tissue():
  base = spec.PRESETS["demo"]
  fine = dataclasses.replace(base, depth_step_um=1.5)
  anatomy, same = anatomy_lib.draw_anatomies(base)[3], anatomy_lib.draw_anatomies(fine)[3]
  assert anatomy == same
  coarse_plan, fine_plan = (
    annotators.plan_stack(base, anatomy),
    annotators.plan_stack(fine, anatomy),
  )
  assert abs(len(fine_plan) - 2 * len(coarse_plan)) <= 2
  assert fine_plan.depth_um[-1] == pytest.approx(coarse_plan.depth_um[-1], abs=3)


@pytest.mark.parametrize(
  ("field", "value", "check"),
  [
    ("skin_types", (1, 1), lambda a: a.melanin < 0.35),
    ("sites", ("buttock",), lambda a: a.site == "buttock"),
    ("lesion_fraction", 1.0, lambda a: a.lesion != "none"),
    (
      "lesion_fraction",
      0.0,
      lambda a: a.lesion == "none" and a.nests_mm2 == a.pagetoid == a.dendrites == 0,
    ),
  ],
)
def test_knobs_of_domain_shift(field, value, check):
  phantom = dataclasses.replace(spec.PRESETS["demo"], **{field: value})
  assert all(check(anatomy) for anatomy in anatomy_lib.draw_anatomies(phantom))


def test_named_phantoms():
  assert spec.named("demo") == spec.PRESETS["demo"]
  varied = spec.named("paper+skin_types=5,6+depth_step_um=5+sites=leg,buttock+seed=3")
  assert varied == dataclasses.replace(
    PAPER, skin_types=(5, 6), depth_step_um=5.0, sites=("leg", "buttock"), seed=3
  )
  assert spec.named(spec.with_seed("demo", 2)).seed == 2


@pytest.mark.parametrize(
  ("name", "what"),
  [
    ("dema", "no preset 'dema'"),
    ("demo+sed=1", "no field 'sed'"),
    ("demo+seed=x", "seed=x"),
    ("demo+skin_types=1", "skin_types=1"),
    ("demo+skin_types=3,9", "out of range"),
    ("demo+sites=nose", "out of range"),
    ("demo:1.1.0", "git checkout e5abef8"),
  ],
)
def test_bad_names_are_told_in_one_line(name, what):
  with pytest.raises(UserError, match=what) as error:
    spec.named(name)
  assert "\n" not in str(error.value)
