"""Checkpoints: round trip, damage, and another number of devices."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rcm_jax.runtime import checkpoints as checkpoints_lib
from rcm_jax.runtime import stage_cache


def state(n: float):
  return {"a": jnp.arange(5.0) * n, "b": [jnp.ones((3, 2), jnp.int32), np.full((), n, np.float32)]}


def assert_equal(a, b):
  jax.tree.map(np.testing.assert_array_equal, a, b)


def test_newest_of_the_kept_steps_comes_back(tmp_path):
  with checkpoints_lib.Checkpoints(tmp_path, keep=2) as checkpoints:
    assert checkpoints.restore(state(0)) is None
    for step in range(1, 5):
      checkpoints.save(step, state(step))
  assert sorted(p.name for p in tmp_path.iterdir()) == ["3", "4"]
  assert all((tmp_path / step / stage_cache.SEAL).exists() for step in ("3", "4"))
  with checkpoints_lib.Checkpoints(tmp_path) as checkpoints:
    step, restored = checkpoints.restore(state(0))
  assert step == 4
  assert_equal(restored, state(4))


def files(directory):
  return [path for path in directory.rglob("*") if path.is_file()]


def empty(directory):
  for path in files(directory):
    path.write_bytes(b"")


def fill_with_x(directory):
  for path in files(directory):
    path.write_bytes(b"xx")


def flip_one_bit(directory):
  path = max(files(directory), key=lambda path: path.stat().st_size)
  content = bytearray(path.read_bytes())
  content[len(content) // 2] ^= 1
  path.write_bytes(content)


@pytest.mark.parametrize("damage", [empty, fill_with_x, flip_one_bit])
def test_a_damaged_checkpoint_falls_back_to_the_one_before(tmp_path, damage):
  with checkpoints_lib.Checkpoints(tmp_path) as checkpoints:
    for step in (1, 2):
      checkpoints.save(step, state(step))
  damage(tmp_path / "2")
  with checkpoints_lib.Checkpoints(tmp_path) as checkpoints:
    with pytest.warns(UserWarning, match=r"step 2 cannot be read .*moved to .*damaged/step_2_0"):
      step, restored = checkpoints.restore(state(0))
    assert step == 1
    assert files(tmp_path / "damaged" / "step_2_0")
    assert_equal(restored, state(1))
    checkpoints.save(2, state(7))
  with checkpoints_lib.Checkpoints(tmp_path) as checkpoints:
    assert_equal(checkpoints.restore(state(0))[1], state(7))


def test_a_tree_round_trips(tmp_path):
  checkpoints_lib.save_tree(tmp_path / "tree", state(3))
  assert_equal(checkpoints_lib.load_tree(tmp_path / "tree", state(0)), state(3))


def test_a_clock_that_is_set_does_not_end_a_save(tmp_path, jumping_clock):
  with checkpoints_lib.Checkpoints(tmp_path) as checkpoints:
    for step in range(4):
      checkpoints.save(step, state(step))
  checkpoints_lib.save_tree(tmp_path / "tree", state(4))
  with checkpoints_lib.Checkpoints(tmp_path) as checkpoints:
    assert_equal(checkpoints.restore(state(0))[1], state(3))
  assert_equal(checkpoints_lib.load_tree(tmp_path / "tree", state(0)), state(4))
