"""The ONNX graph says what the model says, for every kind of head and in a program without JAX."""

from __future__ import annotations

import builtins
import dataclasses
import functools
import os
import pathlib
import subprocess
import sys

import bundles
from flax import nnx
import jax
import jax.numpy as jnp
import numpy as np
import onnx
import onnxruntime
from onnxruntime.capi.onnxruntime_pybind11_state import Fail
import pytest

from rcm_jax import anatomy, export
from rcm_jax.decoding import monotone_model
from rcm_jax.decoding.intervals import Calibration
from rcm_jax.exporters import files
from rcm_jax.exporters.onnx import decoding as onnx_decoding
from rcm_jax.exporters.onnx import graph, head
from rcm_jax.exporters.onnx import textures as onnx_textures
from rcm_jax.heads.attention import AttentionSpec
from rcm_jax.inference import bundle, interpretation
from rcm_jax.textures import encoder as texture_encoder

ROOT = pathlib.Path(__file__).resolve().parent.parent
LENGTHS = (1, 2, 7, 40)
LONGEST = 30
NAMES = onnx_decoding.Outputs._fields

# A program of its own: reads arrays, runs the artefact, writes what it found.
CONSUMER = """
import sys
import numpy as np
import onnxruntime
from onnxruntime.capi.onnxruntime_pybind11_state import Fail
model = onnxruntime.InferenceSession("model.onnx", providers=["CPUExecutionProvider"])
names = [output.name for output in model.get_outputs()]
for count in sys.argv[1:]:
  given = dict(np.load(f"given{count}.npz"))
  np.savez(f"found{count}.npz", **dict(zip(names, model.run(None, given), strict=True)))
theirs = {"jax", "rcm_jax", "tfds_rcm", "flax", "onnx"} & {name.split(".")[0] for name in sys.modules}
assert not theirs, theirs
"""


def session(made: graph.Graph, inputs, outputs):
  model = made.model("tested", inputs, outputs)
  onnx.checker.check_model(model, full_check=True)
  return onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])


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
  root = tmp_path_factory.mktemp("onnx")
  made = bundles.made(3, on_textures, strata_of(on_textures))
  bundle.save(root / "run" / "model", made)
  arguments = [f"--checkpoint={root / 'run'}", "--format=onnx", f"--out={root / 'out'}"]
  assert export.main(arguments) == 0
  return root / "out"


def assert_same(found, ours):
  for name in ("strata", "most_probable_strata"):
    np.testing.assert_array_equal(found[name], getattr(ours, name))
  np.testing.assert_allclose(found["probabilities"], ours.probabilities, atol=1e-4)
  np.testing.assert_allclose(found["boundary_um"], ours.boundary_um[:, 1], atol=1e-3)
  np.testing.assert_allclose(found["interval_um"], ours.boundary_um[:, ::2], atol=1e-3)
  np.testing.assert_allclose(found["in_stack"], ours.in_stack, atol=1e-4)


def test_a_process_without_jax_finds_what_predict_finds(exported, on_textures):
  depth = {n: np.cumsum(np.linspace(2, 4, n, dtype=np.float32)) for n in LENGTHS}
  for n in LENGTHS:
    np.savez(exported / f"given{n}.npz", slices=bundles.slices(n), depth_um=depth[n])
  command = [sys.executable, "-c", CONSUMER, *map(str, LENGTHS)]
  environment = {**os.environ, "PYTHONPATH": ""}
  done = subprocess.run(command, cwd=exported, env=environment, capture_output=True, text=True)
  assert done.returncode == 0, done.stderr
  for n in LENGTHS:
    found = np.load(exported / f"found{n}.npz")
    assert tuple(found) == NAMES
    reader = bundles.reader(3, on_textures, strata_of(on_textures))
    assert_same(found, reader.predict(bundles.slices(n), depth[n]).interpretation)


def test_the_example_reads_a_stack(exported, on_textures):
  source = (ROOT / "examples" / "read_stack_onnx.py").read_text()
  assert len(source.splitlines()) - source.split('"""')[1].count("\n") <= 25
  np.save(exported / "slices.npy", bundles.slices(4))
  command = [sys.executable, str(ROOT / "examples" / "read_stack_onnx.py"), "model.onnx"]
  done = subprocess.run([*command, "slices.npy", "3"], cwd=exported, capture_output=True, text=True)
  assert done.returncode == 0, done.stderr
  lines = done.stdout.splitlines()
  strata = strata_of(on_textures)
  assert len(lines) == 4 + len(strata.boundaries)
  assert lines[3].split()[:4] == ["slice", "3", "9.0", "µm"]
  assert [line.split(":")[0].replace("-", "_") for line in lines[4:]] == list(strata.boundaries)
  reader = bundles.reader(3, on_textures, strata)
  said = reader.predict(bundles.slices(4), 3.0 * np.arange(4)).boundaries
  assert ["not in this stack" in line for line in lines[4:]] == [not b.shown for b in said]


def test_the_file_tells_what_it_is(exported, on_textures):
  model = onnx.load(exported / "model.onnx")
  description = bundles.made(3, on_textures, strata_of(on_textures)).description
  assert {p.key: p.value for p in model.metadata_props} == {"bundle": description.to_json()}
  assert "not a medical device" in model.doc_string
  assert (exported / files.CARD).exists()
  sizes = {
    i.name: [d.dim_param or d.dim_value for d in i.type.tensor_type.shape.dim]
    for i in model.graph.input
  }
  assert sizes == {"slices": ["slices", bundles.SIZE, bundles.SIZE], "depth_um": ["slices"]}


HEADS = {
  "toeplitz": {},
  "toeplitz, renormalized": {"attention": AttentionSpec("toeplitz", 3, "renormalize")},
  "one direction, no attention": {"bidirectional": False, "attention": AttentionSpec()},
  "rnn": {"cell": "rnn", "feedback": "none"},
  "lstm": {"cell": "lstm"},
  "windows": {"window": 5, "attention": AttentionSpec()},
  "windows of an lstm in one direction": {"window": 3, "cell": "lstm", "bidirectional": False},
  "additive": {"attention": AttentionSpec("additive", units=4), "decoder": "gru"},
  "location": {
    "attention": AttentionSpec("location", units=4),
    "decoder": "gru",
    "feedback": "teacher",
  },
}


def exact_scores(spec, params, x, count, trials=8, multiple=16.0):
  """Scores in float64, and how far float32 may be from them.

  Rounding errs as inputs and weights would that are wrong in their last digit. What such errors do
  here, at this head's condition, is tried; `multiple` is for there being many roundings.
  """
  rng = np.random.default_rng(1)
  eps = float(np.finfo(np.float32).eps)
  wide = lambda leaf: np.asarray(leaf, np.float64)
  nudged = lambda leaf: wide(leaf) * (1 + eps * rng.choice([-1.0, 1.0], size=np.shape(leaf)))
  with jax.enable_x64(True):
    score = jax.jit(
      lambda p, x: bundles.head_of(spec, p).unary_scores(x, jnp.arange(20) < count, half_width=1)[
        :count
      ]
    )
    exact = np.asarray(score(jax.tree.map(wide, params), wide(x)))
    assert exact.dtype == np.float64
    tried = [score(jax.tree.map(nudged, params), nudged(x)) for _ in range(trials)]
  spread = max(np.abs(np.asarray(found) - exact).max() for found in tried)
  return exact, multiple * max(spread, eps * np.abs(exact).max())


@pytest.mark.parametrize("name", HEADS)
def test_every_head_gives_the_same_scores(name):
  spec = dataclasses.replace(bundles.HEAD, num_features=5, max_slices=20, **HEADS[name])
  params = jax.tree.map(lambda leaf: leaf[0], bundles.heads_of(spec, (3,)))
  # Biases and taps start from zero, which would hide mistakes.
  rng = np.random.default_rng(0)
  params = jax.tree.map(lambda leaf: leaf + rng.normal(size=leaf.shape).astype("f"), params)
  made = graph.Graph()
  features = made.input("features")
  values = nnx.to_pure_dict(jax.tree.map(np.asarray, params))
  found = head.unary_scores(spec, values, 1, features)
  run = session(
    made,
    {"features": (np.float32, ("slices", 5))},
    {"evidence": (np.float32, ("slices", 3), found)},
  )
  x = rng.normal(size=(20, 5)).astype(np.float32)
  for count in (1, 2, 4, 20):
    expected, allowed = exact_scores(spec, params, x, count)
    [given] = run.run(None, {"features": x[:count]})
    scores = jax.jit(bundles.head_of(spec, params).unary_scores)
    ours = scores(x, np.arange(20) < count, half_width=1)
    assert np.abs(given - expected).max() <= allowed
    assert np.abs(ours[:count] - expected).max() <= allowed
    assert allowed < 1e-2 * np.abs(expected).max()  # far below what a mistake would make
  if spec.limit is not None:
    with pytest.raises(Fail, match="mismatch"):
      run.run(None, {"features": np.zeros((21, 5), np.float32)})


@pytest.mark.parametrize(
  ("spec", "most"),
  [
    (texture_encoder.TextureSpec(7, 30, 1, 4, 0), 1 << 14),
    (texture_encoder.TextureSpec(7, 30, 1, 4, 0), 500),
    (texture_encoder.TextureSpec(7, 30, 3, 4, 1), 1 << 14),
    (texture_encoder.TextureSpec(7, 30, 2, 4, 2), 200),
    (texture_encoder.TextureSpec(1, 10, 2, 3, 0), 1),
  ],
)
def test_textures_are_the_same(monkeypatch, spec, most):
  monkeypatch.setattr(texture_encoder, "MAX_PATCHES", most)
  encoder = bundles.encoder_of(spec)
  stack = bundles.slices(5, size=50)
  stack[3] = 77  # flat
  made = graph.Graph()
  found = onnx_textures.features(encoder, spec.downsampling, made.input("slices"), (50, 50))
  run = session(
    made,
    {"slices": (np.uint8, ("slices", 50, 50))},
    {"features": (np.float32, ("slices", spec.components), found)},
  )
  [features] = run.run(None, {"slices": stack})
  expected = texture_encoder.encode(encoder, stack, spec.downsampling)
  np.testing.assert_allclose(features, expected, rtol=1e-5, atol=1e-5)
  assert np.ptp(features, axis=0).min() > 0.1


@functools.cache
def decoder(calibration: Calibration, members: int):
  made = graph.Graph()
  strata = len(calibration.margin_um) + 1
  evidence = made.input("evidence")
  each = [evidence.rows(m, m + 1).squeeze(0) for m in range(members)]
  found = onnx_decoding.decode(each, made.input("depth_um"), calibration)
  return session(
    made,
    {
      "evidence": (np.float32, (members, "slices", strata)),
      "depth_um": (np.float32, ("slices",)),
    },
    onnx_decoding.outputs(found, strata),
  )


@functools.partial(jax.jit, static_argnums=3)
def reference(evidence, depth_um, mask, calibration):
  if calibration.boundary_temperature is None:
    evidence = jax.vmap(monotone_model.log_marginals, (0, None))(evidence, mask)
  return interpretation.interpret(jax.nn.softmax(evidence).mean(0), depth_um, mask, calibration)


CALIBRATIONS = {
  "slices": Calibration(1.3, (2.0, 3.0), 0.9, 4.0),
  "narrow": Calibration(0.8, (-50.0, 3.0), 0.5, 1.0),
  "no intervals": Calibration(1.0, (np.inf, np.inf), 0.9, 1.0),
  "ordered": Calibration(1.3, (2.0, 3.0), 0.9, None),
  "two strata": Calibration(1.3, (2.0,), 0.9, None),
  "four strata": Calibration(1.3, (2.0, 3.0, 1.0), 0.9, None),
  "slices of five strata": Calibration(1.3, (2.0, 3.0, 1.0, 4.0), 0.9, 4.0),
}


@pytest.mark.parametrize("name", CALIBRATIONS)
def test_decoding_is_the_same(name):
  calibration = CALIBRATIONS[name]
  run = decoder(calibration, 2)
  rng = np.random.default_rng(0)
  strata = len(calibration.margin_um) + 1
  for count in (1, 2, 3, LONGEST):
    for scale in (0.3, 3.0, 30.0):
      evidence = scale * rng.normal(size=(2, count, strata)).astype(np.float32)
      order = np.arange(strata) - strata * np.linspace(-0.3, 1, count)[:, None]
      evidence -= (scale * order**2).astype(np.float32)
      check(run, evidence, calibration, 5 + np.cumsum(rng.uniform(1, 6, count)))


def check(run, evidence, calibration, depth_um):
  count = len(depth_um)
  depth_um = depth_um.astype(np.float32)
  padding = LONGEST - count
  padded = np.pad(evidence, ((0, 0), (0, padding), (0, 0))), np.pad(depth_um, (0, padding))
  ours = jax.device_get(reference(*padded, np.arange(LONGEST) < count, calibration))
  ours = ours._replace(
    strata=ours.strata[:count],
    probabilities=ours.probabilities[:count],
    most_probable_strata=ours.most_probable_strata[:count],
  )
  found = run.run(None, {"evidence": evidence, "depth_um": depth_um})
  assert_same(dict(zip(NAMES, found, strict=True)), ours)


@pytest.mark.parametrize("name", ["slices", "slices of five strata"])
def test_of_equal_labellings_the_same_one_is_taken(name):
  calibration = CALIBRATIONS[name]
  run = decoder(calibration, 1)
  places = np.arange(len(calibration.margin_um) + 1)
  sure = np.array([5, 0, 0, 5, 0, 0, 0, 5])  # the others may be anything
  for strata in (
    [0] * 8,
    [0, 9, 9, 1, 9, 9, 9, 2],
    [9] * 8,
    [9, 9, 9, 1, 9, 9, 9, 1],
    [2] + [9] * 7,
  ):
    wanted = np.array(strata)
    evidence = np.where(places == wanted[:, None], sure.max(), 0).astype(np.float32)
    check(run, evidence[None], calibration, np.arange(8.0))


def test_without_onnx_one_line_says_how_to_get_it(tmp_path, capsys, monkeypatch):
  for name in [name for name in sys.modules if name.startswith("rcm_jax.exporters.onnx")]:
    monkeypatch.delitem(sys.modules, name)
  real = builtins.__import__

  def without(name, *rest):
    if name.split(".")[0] == "onnx":
      raise ModuleNotFoundError("No module named 'onnx'", name="onnx")
    return real(name, *rest)

  made = bundles.made()
  bundle.save(tmp_path / "model", made)
  monkeypatch.setattr(builtins, "__import__", without)
  out = tmp_path / "out"
  assert export.main([f"--checkpoint={tmp_path}", "--format=onnx", f"--out={out}"]) == 1
  [line] = capsys.readouterr().err.splitlines()
  assert "pip install onnx" in line
  assert not out.exists()
