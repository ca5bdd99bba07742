from __future__ import annotations

import dataclasses
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tfds_rcm.rcm_phantom import anatomy as anatomy_lib
from tfds_rcm.rcm_phantom import annotators, noise, preview, render, scene, spec
from tfds_rcm.rcm_phantom import optics as optics_lib

PHANTOM = dataclasses.replace(
  spec.PRESETS["demo"], stacks=(8, 2, 2), size_px=48, pixel_um=1.7, artifact_rate=0.0
)


def rendered(phantom, index, *, slices=None):
  anatomy = anatomy_lib.draw_anatomies(phantom)[index]
  plan = annotators.plan_stack(phantom, anatomy)
  if slices is not None:
    plan = dataclasses.replace(plan, depth_um=plan.depth_um[:slices], labels=plan.labels[:slices])
  return np.stack(list(render.render_stack(phantom, anatomy, plan))), anatomy, plan


@pytest.fixture(scope="module")
def still():
  """A stack without motion or noise, and its plan."""
  quiet = dataclasses.replace(PHANTOM, noise=0.0, motion_um=0.0)
  return rendered(quiet, 2)


def test_slices_are_gray_images_that_use_the_range():
  slices, _, plan = rendered(PHANTOM, 0)
  assert slices.shape == (len(plan), 48, 48)
  assert slices.dtype == np.uint8
  assert np.all(slices[plan.start_um + plan.depth_um > 12].std(axis=(1, 2)) > 4)
  assert 20 < slices.mean() < 150


def test_same_seed_same_bits_and_other_seed_other_tissue():
  first, *_ = rendered(PHANTOM, 2, slices=4)
  again, *_ = rendered(PHANTOM, 2, slices=4)
  other, *_ = rendered(dataclasses.replace(PHANTOM, seed=1), 2, slices=4)
  np.testing.assert_array_equal(first, again)
  assert np.mean(first != other) > 0.5


def test_a_slice_does_not_depend_on_how_many_are_rendered_with_it():
  whole, *_ = rendered(PHANTOM, 2)
  # Exposures are drawn for the whole stack, so only the renderer sees fewer.
  anatomy = anatomy_lib.draw_anatomies(PHANTOM)[2]
  plan = annotators.plan_stack(PHANTOM, anatomy)
  exposures = scene.make_exposures(PHANTOM, anatomy, plan)
  chunk = render._render_chunk(
    scene.make_tissue(PHANTOM, anatomy),
    scene.make_optics(PHANTOM, anatomy),
    jax.tree.map(lambda field: np.repeat(field[7:8], render._CHUNK, axis=0), exposures),
    size_px=PHANTOM.size_px,
    pixel_um=PHANTOM.pixel_um,
    together=1,
  )
  np.testing.assert_array_equal(np.asarray(chunk)[0], whole[7])


def test_neighbors_are_views_of_one_volume(still):
  slices, *_ = still
  flat = slices.reshape(len(slices), -1).astype(float)
  flat -= flat.mean(1, keepdims=True)
  flat /= np.linalg.norm(flat, axis=1, keepdims=True)
  correlation = flat @ flat.T
  by_distance = [np.mean(np.diagonal(correlation, k)) for k in (1, 2, 5, 12)]
  assert by_distance[0] > 0.5
  assert all(a > b + 0.02 for a, b in itertools.pairwise(by_distance))


def test_motion_moves_the_view_and_nothing_else():
  still = dataclasses.replace(PHANTOM, noise=0.0)
  anatomy = anatomy_lib.draw_anatomies(still)[1]
  plan = annotators.plan_stack(still, anatomy)
  tissue = scene.make_tissue(still, anatomy)
  flat = dataclasses.replace(
    scene.make_optics(still, anatomy), vignette=np.zeros(3, np.float32), compensation=np.float32(0)
  )
  exposures = jax.tree.map(lambda f: f[:6], scene.make_exposures(still, anatomy, plan))
  moved = np.array([[0, 0], [0, 5], [3, 0], [-4, 2], [7, -6], [0, 0]], np.int32)

  def same_slice(field):
    return np.repeat(field[4:5], 6, axis=0)

  exposures = dataclasses.replace(jax.tree.map(same_slice, exposures), shift_px=moved)
  views = np.asarray(
    render._render_chunk(tissue, flat, exposures, size_px=48, pixel_um=still.pixel_um, together=1)
  ).astype(int)
  inner = slice(14, 34)  # away from edges, where blurring repeats the border
  for view, (down, right) in zip(views, moved):
    back = np.roll(view, (down, right), (0, 1))
    assert np.abs(back - views[0])[inner, inner].max() <= 2
  assert np.abs(views[1] - views[0]).max() > 10


def test_motion_stays_within_reach():
  phantom = dataclasses.replace(PHANTOM, motion_um=6.0)
  for anatomy in anatomy_lib.draw_anatomies(phantom):
    exposures = scene.make_exposures(phantom, anatomy, annotators.plan_stack(phantom, anatomy))
    assert np.abs(exposures.shift_px).max() <= 6.0 / phantom.pixel_um + 0.5
    assert np.abs(exposures.shift_px).max() < scene.margin_px(phantom)


def test_dermis_is_smoother_than_epidermis(still):
  def fine(images):
    images = images.astype(float)
    return np.mean(np.abs(np.diff(images, axis=2))) / images.std()

  slices, _, plan = still
  assert fine(slices[plan.labels == 3]) < fine(slices[plan.labels == 1])


def test_texture_contrast_is_a_knob():
  spread = []
  for contrast in (0.3, 1.0):
    phantom = dataclasses.replace(PHANTOM, noise=0.0, texture_contrast=contrast)
    slices, _, plan = rendered(phantom, 1)
    viable = slices[plan.labels == 1].astype(float)
    spread.append(np.mean(viable.std(axis=(1, 2)) / viable.mean(axis=(1, 2))))
  assert spread[0] < 0.75 * spread[1]


def test_stacks_of_a_patient_look_more_alike_than_others():
  phantom = dataclasses.replace(PHANTOM, stacks=(10, 0, 0), stacks_per_patient=(2, 2), noise=0.0)
  anatomies = anatomy_lib.draw_anatomies(phantom)
  melanin = np.array([anatomy.melanin for anatomy in anatomies]).reshape(-1, 2)
  assert np.mean(np.abs(np.diff(melanin))) < np.mean(np.abs(melanin[:, :1] - melanin[:, 0]))


def test_lesions_add_bright_nests():
  base = dataclasses.replace(PHANTOM, noise=0.0)
  anatomy = anatomy_lib.draw_anatomies(base)[1]
  plan = annotators.plan_stack(base, anatomy)
  bare = scene.make_tissue(base, anatomy)
  exposures = scene.make_exposures(base, anatomy, plan)
  nearest = len(plan) // 2
  one = jax.tree.map(lambda f: np.repeat(f[nearest : nearest + 1], 6, axis=0), exposures)
  one = dataclasses.replace(one, shift_px=np.zeros((6, 2), np.int32))
  margin = scene.margin_px(base)
  with_nest = np.array(bare.maps)
  with_nest[10] = exposures.depth_um[nearest]
  with_nest[11, margin + 15 : margin + 32, margin + 15 : margin + 32] = 12.0
  optics = dataclasses.replace(scene.make_optics(base, anatomy), compensation=np.float32(0))
  seen, without = (
    np.asarray(
      render._render_chunk(t, optics, one, size_px=48, pixel_um=base.pixel_um, together=1)
    )[0].astype(int)
    for t in (dataclasses.replace(bare, maps=with_nest), bare)
  )
  where = slice(18, 29)
  assert seen[where, where].mean() > 1.3 * without[where, where].mean()
  # Elsewhere only scattered light comes from it.
  assert seen[:6, :6].mean() < 1.15 * without[:6, :6].mean()


def test_lesions_have_their_patterns():
  phantom = dataclasses.replace(PHANTOM, stacks=(150, 1, 1), lesion_fraction=1.0)
  anatomies = anatomy_lib.draw_anatomies(phantom)
  nevi = [a for a in anatomies if a.lesion == "nevus"]
  melanomas = [a for a in anatomies if a.lesion == "melanoma"]
  assert min(a.edged for a in nevi) > 1 > max(a.edged for a in melanomas)  # rings, or none
  assert min(a.pagetoid for a in melanomas) > max(a.pagetoid for a in nevi)
  assert min(a.disarray for a in melanomas) > max(a.disarray for a in nevi)
  assert max(a.nests_mm2 for a in nevi) > 90  # clods


def test_a_wide_bubble_casts_a_deep_shadow_and_a_narrow_one_does_not():
  def light(radius_px, depth_um):
    fields = scene.make_exposures(PHANTOM, *planned(PHANTOM, 0))
    one = jax.tree.map(lambda f: jnp.asarray(f[0]), fields)
    bubble = jnp.zeros((scene.MAX_BUBBLES, 3)).at[0].set(jnp.array([50.0, 50.0, radius_px]))
    one = dataclasses.replace(one, depth_um=jnp.float32(depth_um), bubbles=bubble)
    return np.asarray(optics_lib._occlude(jnp.ones((100, 100)), one, 2.0))

  assert light(40.0, 80.0)[50, 50] < 0.2
  assert light(4.0, 80.0)[50, 50] > 0.6
  assert light(4.0, 2.0)[50, 52] < 0.5  # just below the window, both are dark
  assert light(40.0, 80.0)[2, 2] > 0.95


def planned(phantom, index):
  anatomy = anatomy_lib.draw_anatomies(phantom)[index]
  return anatomy, annotators.plan_stack(phantom, anatomy)


def test_speckle_is_multiplicative_and_its_grains_grow_with_depth():
  phantom = dataclasses.replace(PHANTOM, noise=1.0)
  optics = jax.tree.map(jnp.asarray, scene.make_optics(phantom, planned(phantom, 0)[0]))
  optics = dataclasses.replace(optics, speckle=jnp.float32(1))
  fields = scene.make_exposures(phantom, *planned(phantom, 0))
  one = jax.tree.map(lambda f: jnp.asarray(f[0]), fields)

  def grains(depth_um):
    exposure = dataclasses.replace(one, depth_um=jnp.float32(depth_um))
    return np.asarray(optics_lib._speckle(jnp.full((256, 256), 2.0), optics, exposure, 0.5))

  def neighbors(image):
    return np.corrcoef(image[:, 1:].ravel(), image[:, :-1].ravel())[0, 1]

  shallow, deep = grains(0.0), grains(120.0)
  assert shallow.mean() == pytest.approx(2.0, rel=0.05)
  # Fully developed, but for the share that a pixel averages away: deviation about the mean.
  assert 0.6 < shallow.std() / shallow.mean() < 1.1
  assert neighbors(deep) > neighbors(shallow) + 0.05
  np.testing.assert_allclose(
    np.asarray(optics_lib._speckle(jnp.full((256, 256), 6.0), optics, one, 0.5)),
    3 * np.asarray(optics_lib._speckle(jnp.full((256, 256), 2.0), optics, one, 0.5)),
    rtol=1e-5,
  )


def test_wanted_slices_are_those_of_the_whole_stack():
  whole, anatomy, plan = rendered(PHANTOM, 1)
  some = np.stack(list(render.render_stack(PHANTOM, anatomy, plan, [3, 9, 4])))
  np.testing.assert_array_equal(some, whole[[3, 9, 4]])


def test_cells_fill_space_evenly_and_know_their_neighbors():
  axis = np.arange(0, 12, 0.05, dtype=np.float32)
  x, y = np.meshgrid(axis, axis)
  first, second, identity = (
    np.asarray(field)
    for field in noise.cells(*map(jnp.asarray, (x, y, 0.3 + 0 * x)), jnp.uint32(5))
  )
  assert np.all(first <= second)
  assert first.max() < 1.1  # no voids
  # Along a row, another cell is entered just where the two nearest centers are equally far.
  entered = identity[:, 1:] != identity[:, :-1]
  assert (second - first)[:, 1:][entered].max() < 0.15
  assert (second - first)[:, 1:][~entered].mean() > 0.2


def test_value_noise_is_continuous_and_bounded():
  axis = np.arange(0, 20, 0.01, dtype=np.float32)
  values = np.asarray(
    noise.value_noise(*map(jnp.asarray, (axis, 0 * axis, 0 * axis)), jnp.uint32(9))
  )
  assert np.all((values >= 0) & (values <= 1))
  assert np.abs(np.diff(values)).max() < 0.03
  assert values.std() > 0.1


def test_contact_sheet_marks_every_slice(tmp_path):
  slices = [np.full((16, 16), 100, np.uint8)] * 5
  page = preview.contact_sheet(slices, np.array([0, 1, 2, 3, 3]), np.arange(5) * 3.0, "title")
  colors = {tuple(color) for color in np.asarray(page).reshape(-1, 3)}
  assert {tuple(color) for color in preview._COLORS} <= colors
  preview.save_sheet(page, tmp_path / "made" / "sheet.png")
  assert (tmp_path / "made" / "sheet.png").stat().st_size > 0
