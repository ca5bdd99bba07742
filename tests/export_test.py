"""Exported models say what the model says, also to programs that know nothing of this one."""

from __future__ import annotations

import json
import os
import pathlib
import subprocess
import sys

import bundles
from flax import nnx
import jax
import numpy as np
import pytest
from safetensors import safe_open

from rcm_jax import anatomy, export
from rcm_jax.exporters import files, stablehlo
from rcm_jax.inference import bundle, description

ROOT = pathlib.Path(__file__).resolve().parent.parent

# A program of its own: reads arrays, runs the artefact, writes what it found.
CONSUMER = """
import pathlib, sys
import jax
import numpy as np
folder = pathlib.Path(sys.argv[1])
model = jax.export.deserialize(bytearray((folder / "model.stablehlo").read_bytes()))
given = np.load(folder / "given.npz")
found = jax.jit(model.call)(given["slices"], given["depth_um"], given["mask"])
np.savez(folder / "found.npz", **found)
ours = [name for name in sys.modules if name.split(".")[0] in ("rcm_jax", "tfds_rcm", "flax")]
assert not ours, ours
"""


def strata_of(on_textures):
  return anatomy.WITH_CORNEUM if on_textures else anatomy.PAPER


@pytest.fixture(
  scope="module",
  params=[False, pytest.param(True, marks=pytest.mark.slow)],
  ids=["cnn", "views of four strata"],
)
def on_textures(request):
  return request.param


@pytest.fixture(scope="module")
def exported(tmp_path_factory, on_textures):
  """A model that sees three slices at once, exported by the command line."""
  root = tmp_path_factory.mktemp("export")
  made = bundles.made(3, on_textures, strata_of(on_textures))
  bundle.save(root / "run" / "model", made)
  # In a process of its own, since the sizes of a program for any stack are no `int`, which the
  # checks that tests run under insist on.
  command = [sys.executable, "-m", "rcm_jax.export", "--format=stablehlo"]
  command += [f"--checkpoint={root / 'run'}", f"--out={root / 'out'}"]
  done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
  assert done.returncode == 0, done.stderr
  assert done.stdout.startswith(str(root / "out" / "model.stablehlo"))
  return root


def test_a_fresh_process_finds_what_predict_finds(exported, on_textures):
  out = exported / "out"
  stack = bundles.slices(7)
  counts = (7, 4)  # two stacks, the second one padded
  depth = np.tile(3 * np.arange(7, dtype=np.float32), (2, 1))
  mask = np.arange(7) < np.array(counts)[:, None]
  np.savez(out / "given.npz", slices=np.stack([stack, stack]), depth_um=depth, mask=mask)
  environment = {**os.environ, "PYTHONPATH": ""}
  command = [sys.executable, "-c", CONSUMER, str(out)]
  done = subprocess.run(command, cwd=out, env=environment, capture_output=True, text=True)
  assert done.returncode == 0, done.stderr
  found = np.load(out / "found.npz")
  for i, count in enumerate(counts):
    ours = bundles.reader(3, on_textures, strata_of(on_textures)).predict(
      stack[:count], depth[i, :count].astype(np.float64)
    )
    for name in ("strata", "most_probable_strata"):
      np.testing.assert_array_equal(found[name][i, :count], getattr(ours.interpretation, name))
    np.testing.assert_allclose(
      found["probabilities"][i, :count], ours.interpretation.probabilities, atol=1e-4
    )
    np.testing.assert_allclose(
      found["boundary_um"][i], ours.interpretation.boundary_um[:, 1], atol=1e-3
    )
    np.testing.assert_allclose(
      found["interval_um"][i], ours.interpretation.boundary_um[:, [0, 2]], atol=1e-3
    )
    np.testing.assert_allclose(found["in_stack"][i], ours.interpretation.in_stack, atol=1e-4)


def example(folder, slices):
  np.save(folder / "slices.npy", slices)
  command = [sys.executable, str(ROOT / "examples" / "read_stack.py")]
  command += [str(folder / "out" / "model.stablehlo"), str(folder / "slices.npy"), "3"]
  return subprocess.run(command, cwd=folder, capture_output=True, text=True)


def test_a_stack_that_is_too_long_is_refused_in_a_line(exported, on_textures):
  if on_textures:
    pytest.skip("one model is enough")
  done = example(exported, np.repeat(bundles.slices(1), stablehlo.MAX_SLICES + 1, axis=0))
  assert done.returncode == 1
  assert done.stderr == "error: 257 slices are more than this model takes; leave slices out\n"
  assert not done.stdout


def test_the_example_reads_a_stack(exported, on_textures):
  done = example(exported, bundles.slices(4))
  assert done.returncode == 0, done.stderr
  lines = done.stdout.splitlines()
  strata = strata_of(on_textures)
  assert len(lines) == 4 + len(strata.boundaries)
  assert lines[3].split()[:4] == ["slice", "3", "9.0", "µm"]
  assert [line.split(":")[0].replace("-", "_") for line in lines[4:]] == list(strata.boundaries)
  reader = bundles.reader(3, on_textures, strata)
  said = reader.predict(bundles.slices(4), 3.0 * np.arange(4)).boundaries
  assert ["not in this stack" in line for line in lines[4:]] == [not b.shown for b in said]


def test_the_program_is_for_cpu_and_cuda_and_any_size(exported):
  model = jax.export.deserialize(bytearray((exported / "out" / "model.stablehlo").read_bytes()))
  assert model.platforms == ("cpu", "cuda")
  stacks, slices, height, width = model.in_avals[0].shape
  assert (height, width) == (bundles.SIZE, bundles.SIZE)
  assert not isinstance(stacks, int)
  assert not isinstance(slices, int)


@pytest.mark.parametrize("on_textures", [False, True])
def test_safetensors_holds_every_weight_and_its_description(tmp_path, on_textures):
  made = bundles.made(1, on_textures)
  path = files.export(made, "safetensors", tmp_path)
  again = files.export(made, "safetensors", tmp_path / "again")
  assert path.read_bytes() == again.read_bytes()
  with safe_open(path, "numpy") as file:
    [(key, text)] = file.metadata().items()
    assert key == "bundle"
    assert description.Description.from_json(text) == made.description
    weights = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
  kernel = made.network.blocks["mixed8"]["branch3x3_1"].conv.kernel[...]
  np.testing.assert_array_equal(weights["cnn.blocks.mixed8.branch3x3_1.conv.kernel"], kernel)
  np.testing.assert_array_equal(
    weights["heads.encoder.recurrent_kernel"], made.heads["encoder"]["recurrent_kernel"][...]
  )
  count = lambda tree: sum(leaf.size for leaf in jax.tree.leaves(tree))
  state = nnx.state(made.network, nnx.Any(nnx.Param, nnx.BatchStat))
  assert sum(w.size for w in weights.values()) == count(state) + count(
    (made.heads, made.encoders, made.view_heads)
  )


def test_the_card_says_what_one_must_know(exported, on_textures):
  card = (exported / "out" / files.CARD).read_text()
  assert ("- 11 kinds of patches of 7 px, gray levels\n" in card) == on_textures
  assert description.RESEARCH_USE in card
  assert "simulated stacks" in card
  assert "| train | 3 | 3 | 30 |" in card
  assert "| accuracy | 0.875 |" in card
  assert "| dej dermis mae (µm) | – |" in card
  assert "90%" in card


def test_a_model_that_is_not_there_is_told_in_one_line(tmp_path, capsys):
  assert export.main([f"--checkpoint={tmp_path}", f"--out={tmp_path / 'out'}"]) == 1
  [line] = capsys.readouterr().err.splitlines()
  assert line.startswith(f"error: {tmp_path}: no model in it")
  assert not (tmp_path / "out").exists()


def test_the_description_is_json_for_any_reader():
  fields = json.loads(bundles.DESCRIPTION.to_json())
  assert fields["strata"] == ["epidermis", "dej", "dermis"]
  assert fields["calibration"]["coverage"] == 0.9
