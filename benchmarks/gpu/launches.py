"""What a compiled GPU program launches, read from its optimised HLO."""

from __future__ import annotations

import collections
import dataclasses
import re

# What costs no kernel: names and addresses of memory.
_FREE = {
  "parameter",
  "constant",
  "get-tuple-element",
  "tuple",
  "bitcast",
  "after-all",
  "partition-id",
  "replica-id",
  "opt-barrier",
}
_COLLECTIVES = ("all-reduce", "all-gather", "all-to-all", "collective-permute", "reduce-scatter")
_HOST = ("infeed", "outfeed", "send", "recv", "SendToHost", "RecvFromHost", "python_callback")
_TYPE = r"(f64|f32|f16|bf16|s8|u8|s32)\["


@dataclasses.dataclass
class Launches:
  """Counts of one call, loops multiplied by their turns where XLA knows them.

  Attributes:
    kernels: launched in all, copies included.
    kinds: the same by kind; library calls by their name.
    turns: of all loops.
    loops: by name of the loop: its turns (None: unknown), kernels a turn, and whether XLA may make its
      turn a CUDA graph, which needs kernels and matrix products alone.
    convolutions: by type and layout of their result.
    collectives: by kind, each instruction once.
    host: instructions that talk to the host, each once.
    partitions: devices that the program is divided over.
  """

  kernels: int
  kinds: dict[str, int]
  turns: int
  loops: list[dict]
  convolutions: dict[str, int]
  collectives: dict[str, int]
  host: int
  partitions: int


def read(text: str) -> Launches:
  """Counts what `compiled.as_text()` launches."""
  computations, entry = _computations(text)
  loops: list[dict] = []
  counted: dict[str, collections.Counter] = {}

  def count(name: str) -> collections.Counter:
    if name in counted:
      return counted[name]
    total = collections.Counter()
    for kind, rest in computations[name]:
      if kind in _FREE or kind.endswith("-done"):
        continue
      if kind == "while":
        body = re.search(r"body=%?([\w.\-]+)", rest)[1]
        known = re.search(r"known_trip_count[^0-9]*(\d+)", rest)
        inside = count(body)
        turns = int(known[1]) if known else 1
        for key, value in inside.items():
          total[key] += value * turns
        total["turns"] += turns
        loops.append(
          {
            "turns": int(known[1]) if known else None,
            "kernels": inside["kernels"],
            "graph": not any("Convolution" in key or "custom-call" in key for key in inside)
            or all(_in_graphs(key) for key in inside if "custom-call" in key),
          }
        )
      elif kind == "call":
        total += count(re.search(r"to_apply=%?([\w.\-]+)", rest)[1])
      elif kind == "conditional":
        branches = re.findall(r"%([\w.\-]+)", rest.partition("branch_computations={")[2])
        total += max((count(b) for b in branches if b in computations), key=lambda c: c["kernels"])
      else:
        target = re.search(r'custom_call_target="([^"]+)"', rest)
        total["kernels"] += 1
        total[f"custom-call {target[1]}" if target else kind] += 1
    counted[name] = total
    return total

  total = count(entry)
  everything = [(kind, rest) for lines in computations.values() for kind, rest in lines]
  kinds = {k: v for k, v in total.items() if k not in ("kernels", "turns")}
  return Launches(
    kernels=total["kernels"],
    kinds=dict(sorted(kinds.items(), key=lambda item: -item[1])),
    turns=total["turns"],
    loops=loops,
    convolutions=_convolutions(text),
    collectives=dict(
      collections.Counter(
        kind.removesuffix("-start")
        for kind, _ in everything
        if kind.removesuffix("-start") in _COLLECTIVES
      )
    ),
    host=sum(kind in _HOST or any(f'"{h}' in rest for h in _HOST) for kind, rest in everything),
    partitions=int((re.search(r"num_partitions=(\d+)", text.partition("\n")[0]) or [0, 1])[1]),
  )


def _in_graphs(kind: str) -> bool:
  return "cublas" in kind or "mosaic_gpu" in kind


def _convolutions(text: str) -> dict[str, int]:
  """Calls of cuDNN by the type of what they read and the layout of their operands."""
  found = collections.Counter()
  for line in text.splitlines():
    if "__cudnn$conv" not in line and " convolution(" not in line:
      continue
    types = re.findall(_TYPE, line.partition("(")[2])
    labels = re.search(r"dim_labels=(\S+?)[,\s]", line + " ")
    first = types[0] if types else re.search(_TYPE, line)[1]
    found[f"{first} {labels[1] if labels else '?'}"] += 1
  return dict(found)


def _computations(text: str) -> tuple[dict[str, list[tuple[str, str]]], str]:
  """Name → instructions (kind, rest of the line), and the name of the entry."""
  found: dict[str, list[tuple[str, str]]] = {}
  entry, current = "", None
  for line in text.splitlines():
    if not line.startswith(" ") and line.rstrip().endswith("{") and "->" in line:
      head = re.match(r"(ENTRY )?%?([\w.\-]+)", line)
      current = found.setdefault(head[2], [])
      entry = head[2] if head[1] else entry
    elif line.startswith("}"):
      current = None
    elif current is not None and (made := re.match(r"\s+(?:ROOT )?%?[\w.\-]+ = (.*)", line)):
      rest = _after_type(made[1])
      name = re.match(r"([\w\-]+)\(", rest)
      current.append((name[1] if name else "?", rest))
  return found, entry


def _after_type(text: str) -> str:
  """Leaves out an instruction's type, which may be a tuple of tuples."""
  if not text.startswith("("):
    return text.partition(" ")[2]
  depth = 0
  for i, letter in enumerate(text):
    depth += (letter == "(") - (letter == ")")
    if depth == 0:
      return text[i + 1 :].strip()
  return text
