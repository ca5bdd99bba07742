"""Fields of the configuration that had another name, accepted with a line that tells the new one."""

from __future__ import annotations

from collections.abc import Iterator

import ml_collections

RENAMED = {  # since version 0.1
  "model": "pipeline",
  "method": "name",
  "head.boundary": "head.edge_mode",
  "head.average": "head.ema_decay",
  "head.components": "head.pca_components",
}


def told(old: str) -> str:
  """Returns the line that tells a field's new name."""
  return f"config.{old} is now config.{RENAMED[old]}; the old name goes with the next version"


def argument(given: str) -> str:
  """Returns a command-line argument with the field's new name."""
  option, equals, value = given.partition("=")
  prefix, dot, name = option.partition(".")
  if prefix.lstrip("-") != "config" or name not in RENAMED:
    return given
  return f"{prefix}{dot}{RENAMED[name]}{equals}{value}"


def modernize(config: ml_collections.ConfigDict) -> list[str]:
  """Gives a configuration's fields their new names; returns those that had old ones."""
  found = [old for old in RENAMED if old in _names(config)]
  with config.unlocked():
    for old in found:
      *parents, last = old.split(".")
      holder = config
      for parent in parents:
        holder = holder[parent]
      value = holder[last]
      del holder[last]
      config.update_from_flattened_dict({RENAMED[old]: value})
  return found


def _names(config: ml_collections.ConfigDict, prefix: str = "") -> Iterator[str]:
  for name, value in config.items():
    if isinstance(value, ml_collections.ConfigDict):
      yield from _names(value, f"{prefix}{name}.")
    else:
      yield f"{prefix}{name}"
