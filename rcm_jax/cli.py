"""`rcm COMMAND …`: the programs of both packages under one name.

`rcm predict …` is `python -m rcm_jax.predict …`, and so on: the same options, output and exit code.
"""

from __future__ import annotations

from collections.abc import Sequence
import runpy
import sys

from tfds_rcm.errors import nearest

# Command → its module, and what it does. None is imported before it is asked for.
COMMANDS = {
  "prepare": ("tfds_rcm.prepare", "write a dataset: simulated stacks, or your own study"),
  "label": ("tfds_rcm.label", "label a study's stacks on a local page"),
  "agreement": ("tfds_rcm.agreement", "say how far the readers of a study agree"),
  "train": ("rcm_jax.main", "train and evaluate one configuration"),
  "evaluate": ("rcm_jax.evaluate", "make tables of any number of runs"),
  "predict": ("rcm_jax.predict", "read stacks with a trained model"),
  "predict-study": ("rcm_jax.predict_study", "read all stacks of a study, on many machines"),
  "validate": ("rcm_jax.validate", "hold a trained model against a labelled dataset"),
  "recalibrate": ("rcm_jax.recalibrate", "fit a trained model's probabilities to another clinic"),
  "export": ("rcm_jax.export", "write a trained model for other programs"),
}


def usage() -> str:
  """Returns what `rcm --help` prints."""
  width = max(map(len, COMMANDS))
  lines = [f"  {name:{width}}  {what}" for name, (_, what) in COMMANDS.items()]
  return "\n".join(
    [
      "usage: rcm COMMAND [options]",
      "",
      "Skin strata in stacks of reflectance confocal microscopy. Research software; not a medical device.",
      "",
      *lines,
      "",
      "rcm COMMAND --help tells a command's options; rcm --version the version.",
    ]
  )


def main(argv: Sequence[str] | None = None) -> int:
  """Runs a command as `python -m` runs its module; returns the exit code where that returns."""
  name, *rest = (sys.argv[1:] if argv is None else argv) or ["--help"]
  if name in ("-h", "--help", "help"):
    print(usage())
    return 0
  if name == "--version":
    from rcm_jax import __version__

    print(f"rcm {__version__}")
    return 0
  if name not in COMMANDS:
    print(f"error: rcm has no command '{name}'{nearest(name, COMMANDS)}", file=sys.stderr)
    return 1
  sys.argv[1:] = rest
  runpy.run_module(COMMANDS[name][0], run_name="__main__", alter_sys=True)
  return 0
