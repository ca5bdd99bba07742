"""What the study varies besides the method: one sweep a question."""

from __future__ import annotations

from collections.abc import Callable

from launch import sweep

_SEEDS = range(3)
_WITHOUT_D = ("full_sequence", "ordered")
_NAMED = {"name": ["toeplitz_d1"]}  # where the dataset tells the settings apart already


def _toeplitz(preset: str, half_width: int = 1) -> sweep.Point:
  return {"config": f"configs/toeplitz_d1.py:{preset}", "head.half_widths": half_width}


def _vary(preset: str, fields: dict) -> sweep.Sweep:
  return sweep.product([_toeplitz(preset)], sweep.grid({**fields, "seeds": _SEEDS}))


def feedback(preset: str, source: str) -> sweep.Sweep:
  """The decoder's feedback in training: none, its own classes, the readers', or a mixture."""
  del source
  return _vary(preset, {"head.feedback": ["none", "own", "teacher", "scheduled"]})


def boundary(preset: str, source: str) -> sweep.Sweep:
  """Weights that reach beyond the stack: lost, as in the paper, or shared out among the others."""
  del source
  return _vary(preset, {"head.edge_mode": ["zero", "renormalize"], "head.half_widths": [1, 3, 7]})


def half_width(preset: str, source: str) -> sweep.Sweep:
  """Every half-width from 0 to 15."""
  del source
  return _vary(preset, {"head.half_widths": range(16)})


def encoder(preset: str, source: str) -> sweep.Sweep:
  """Recurrent cells, in one direction and in both, over the whole stack and over three slices."""
  del source
  recurrent = {"head.cell": ["gru", "rnn", "lstm"], "head.bidirectional": [True, False]}
  files = ("full_sequence", "partial_sequence")
  return sweep.grid(
    {"config": [f"configs/{name}.py:{preset}" for name in files], **recurrent, "seeds": _SEEDS}
  )


def position(preset: str, source: str) -> sweep.Sweep:
  """No position to learn from: training sees crops in depth, anew each epoch."""
  del source
  heads = [_toeplitz(preset), *({"config": f"configs/{name}.py:{preset}"} for name in _WITHOUT_D)]
  return sweep.product(heads, sweep.grid({"head.shortest_crop": [1.0, 0.5], "seeds": _SEEDS}))


def regularization(preset: str, source: str) -> sweep.Sweep:
  """L1 on the recurrent weights × dropout of the recurrent connections; L1 as Keras reduces it."""
  del source
  ours = _vary(preset, {"head.l1s": [0.0, 0.05, 0.5], "head.dropouts": [0.0, 0.1, 0.3]})
  as_keras = {"head.l1_reduction": ["sum"], "head.l1s": [0.05], "head.dropouts": [0.0, 0.1, 0.3]}
  return [*ours, *_vary(preset, as_keras)]


def training_stacks(preset: str, source: str) -> sweep.Sweep:
  """Fewer stacks to train on, for the CNN and the heads alike."""
  del source
  return _vary(preset, {"data.train_stacks": [30, 61, 122], **_NAMED})


def seeds(preset: str, source: str) -> sweep.Sweep:
  """More seeds: how far means of them lie apart, and what ensembles gain."""
  del source
  return sweep.product([_toeplitz(preset)], sweep.grid({"seeds": range(20)}))


def test_domain(preset: str, source: str) -> sweep.Sweep:
  """Models of the whole training data on other depth steps, instruments and skin types.

  All on the same 60 stacks' worth of new patients, read by other readers; the first as they are.
  """
  shifts = (
    "",
    "+depth_step_um=1.5",
    "+depth_step_um=5",
    "+section_um=8",
    "+noise=2",
    "+texture_contrast=0.6",
    "+skin_types=1,2",
    "+skin_types=5,6",
  )
  tested = [(f"{_others(source)}{shift}",) for shift in shifts]
  return _vary(preset, {"data.sources": [(source,)], "data.test_sources": tested, **_NAMED})


def training_domain(preset: str, source: str) -> sweep.Sweep:
  """Models of light skin, or of the buttock alone, on new patients like those and unlike them."""
  points = [
    {
      "data.sources": (f"{source}+stacks=100,30,1+{seen}",),
      "data.test_sources": (f"{_others(source)}+{tested}",),
    }
    for seen, unseen in (
      ("skin_types=1,3", "skin_types=4,6"),
      ("sites=buttock", "sites=forearm,leg"),
    )
    for tested in (seen, unseen)
  ]
  return sweep.product([_toeplitz(preset)], points, sweep.grid({**_NAMED, "seeds": _SEEDS}))


def _others(source: str) -> str:
  return f"{source}+stacks=1,1,60+seed=1000"  # a seed that no other phantom of the study has


# Question → points, given a preset of the configs and the dataset; in the order that they run in.
ABLATIONS: dict[str, Callable[[str, str], sweep.Sweep]] = {
  "feedback": feedback,
  "boundary": boundary,
  "encoder": encoder,
  "position": position,
  "half_width": half_width,
  "test_domain": test_domain,
  "training_stacks": training_stacks,
  "regularization": regularization,
  "training_domain": training_domain,
  "seeds": seeds,
}
