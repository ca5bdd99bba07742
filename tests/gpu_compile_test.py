"""Programs compiled for a described H100: what must hold before any of them runs on one."""

from __future__ import annotations

import argparse

import jax
import pytest

from benchmarks import gpu_compile
from benchmarks.gpu import described, launches, programs

# Kernels a training step of heads, which a GPU waits for: about a tenth more than there were.
HEAD_KERNELS = {"toeplitz, feedback": 85, "full sequence": 55, "ordered": 140}
HEAD_TURNS = 2  # of loops over slices, a step; validation has some, an epoch's 62 steps none
COMPILES = pytest.mark.skipif(bool(described.missing()), reason=described.missing() or "")

TEXT = """\
HloModule m, is_scheduled=true, num_partitions=8

%body (p: (s32[], f32[8])) -> (s32[], f32[8]) {
  %p = (s32[], f32[8]{0}) parameter(0)
  %a = f32[8]{0} fusion(%p), kind=kLoop, calls=%f
  %b = (f32[8]{0}, s8[4]{0}) custom-call(%a), custom_call_target="__cublas$gemm"
  ROOT %t = (s32[], f32[8]{0}) tuple(%p, %a)
}

%condition (p: (s32[], f32[8])) -> pred[] {
  %q = (s32[], f32[8]{0}) parameter(0)
  ROOT %c = pred[] compare(%q, %q), direction=LT
}

ENTRY %main (x: f32[8]) -> f32[8] {
  %x = f32[8]{0} parameter(0)
  %s = (s32[], f32[8]{0}) tuple(%x, %x)
  %w = (s32[], f32[8]{0}) while(%s), condition=%condition, body=%body, backend_config={"known_trip_count":{"n":"5"}}
  %v = (bf16[4,2,2,8]{3,2,1,0}, u8[0]{0}) CONVOLUTION
  ROOT %r = f32[8]{0} all-reduce(%x), to_apply=%f
}
""".replace(
  "CONVOLUTION",
  "custom-call(bf16[4,2,2,3]{3,2,1,0} %x, bf16[8,3,3,3]{3,2,1,0} %x), window={size=3x3}, "
  'dim_labels=b01f_o01i->b01f, custom_call_target="__cudnn$convForward"',
)


def test_launches_are_counted_through_loops():
  found = launches.read(TEXT)
  assert found.kernels == 5 * 2 + 2
  assert found.turns == 5
  assert found.loops == [{"turns": 5, "kernels": 2, "graph": True}]
  assert found.convolutions == {"bf16 b01f_o01i->b01f": 1}
  assert found.collectives == {"all-reduce": 1}
  assert found.kinds["custom-call __cublas$gemm"] == 5
  assert found.host == 0
  assert found.partitions == 8
  assert launches.read(TEXT.replace(", num_partitions=8", "")).partitions == 1


def test_names_of_programs_tell_them_apart():
  names = [(p.name, p.devices) for p in programs.programs()]
  assert len(set(names)) == len(names)


def test_rows_of_other_programs_stay_and_those_of_another_precision_go(tmp_path):
  options = argparse.Namespace(card="h100", precision="highest")
  first, second = programs.programs()[:2]
  rows = {
    (p.name, p.devices): {"program": p.name, "gpus": p.devices, "error": "E: no | bar"}
    for p in (second, first)
  }
  gpu_compile.write(tmp_path, rows, options)
  found = gpu_compile.read(tmp_path, options)
  assert found == rows
  assert list(found) == [(first.name, 1), (second.name, 1)]
  assert "no / bar" in (tmp_path / "compiled.md").read_text()
  options.precision = "default"
  assert gpu_compile.read(tmp_path, options) == {}


@pytest.mark.skipif(not described.missing(), reason="the CUDA plugin is there")
def test_what_is_missing_is_said_in_a_line():
  with pytest.raises(SystemExit, match="make gpu-compile"):
    gpu_compile.main([])


@pytest.fixture
def highest():
  with jax.default_matmul_precision("highest"):
    yield


def examined(name: str, devices: int = 1) -> dict:
  program = next(p for p in programs.programs() if p.name == name and p.devices == devices)
  row = gpu_compile.examine(program)
  assert "error" not in row, row["error"]
  assert row["host"] == 0
  assert row["partitions"] == devices
  return row


@COMPILES
@pytest.mark.usefixtures("highest")
@pytest.mark.parametrize(
  ("kind", "devices"),
  [("toeplitz, feedback", 1), ("toeplitz, feedback", 8), ("full sequence", 1), ("ordered", 1)],
)
def test_a_training_step_of_heads_is_few_kernels(kind, devices):
  row = examined(f"heads: {kind}; 120 members", devices)
  assert row["kernels_a_step"] <= HEAD_KERNELS[kind]
  assert row["turns_a_step"] <= HEAD_TURNS
  assert row["collectives"] == {}
  # The state before gives its memory to the state after; the data come as an argument.
  assert row["aliased_bytes"] > 0
  assert row["argument_bytes"] > programs.STACKS * 71 * 256 * 4


@COMPILES
@pytest.mark.parametrize("devices", [1, 8])
def test_a_step_of_the_cnn_convolves_in_bfloat16_nhwc(devices):
  row = examined("CNN step, 299 px, batch 32", devices)
  assert row["convolutions"]
  assert all(name.startswith("bf16 b01f") for name in row["convolutions"]), row["convolutions"]
  assert row["collectives"] == ({} if devices == 1 else {"all-reduce": 1})
  assert row["aliased_bytes"] > 2e8  # parameters and two moments of Adam, float32


@COMPILES
def test_extraction_convolves_in_bfloat16_nhwc():
  row = examined("extraction, 299 px, batch 256", 1)
  assert all(name.startswith("bf16 b01f") for name in row["convolutions"]), row["convolutions"]
