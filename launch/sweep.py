r"""Sweeps over any field of a config, folded into as few programs as possible.

A sweep is a list of points, and a point says which config file and what to change in it:

    {"config": "configs/toeplitz_d1.py:demo", "head.hidden": 32, "seeds": 0}

Points that differ only in what members of one program may differ in (seed, half-width, learning
rate, L1, dropout) become one job; the rest become separate jobs. On the command line:

    python -m launch.sweep --config=configs/toeplitz_d1.py --workdir=runs/hidden \
      --grid head.hidden=32,64,128 --grid head.half_widths=0,1,3 --grid seeds=0,1,2 [--dry-run]
"""

from __future__ import annotations

if __name__ == "__main__":  # before what takes seconds to import
  from tfds_rcm import interrupts

  interrupts.install("launch.sweep")

import argparse
import ast
import builtins
from collections.abc import Iterable, Iterator, Mapping, Sequence
import dataclasses
import itertools
import math
from pathlib import Path
import re
import runpy
from typing import Any

from ml_collections import ConfigDict

from launch.runners import cost, dispatch
from launch.runners import job as job_lib
from rcm_jax.run import config_files, methods, renamed
from tfds_rcm.errors import UserError, nearest

Point = dict[str, Any]
Sweep = list[Point]

# Fields whose tuples are the members of one program, and the name of one entry.
FOLDED = {
  "seeds": "seed",
  "head.half_widths": "half_width",
  "head.learning_rates": "learning_rate",
  "head.l1s": "l1",
  "head.dropouts": "dropout",
  "head.mae_weights": "mae_weight",
}


def grid(fields: Mapping[str, Iterable[Any]]) -> Sweep:
  """Returns every combination of the fields' values, the last field varying fastest."""
  return [dict(builtins.zip(fields, values)) for values in itertools.product(*fields.values())]


def product(*sweeps: Sweep) -> Sweep:
  """Returns every combination of one point of each sweep; later sweeps win where both speak."""
  return [_merge(points) for points in itertools.product(*sweeps)]


def zip(*sweeps: Sweep) -> Sweep:
  """Returns the first points of all sweeps as one point, then the second ones, and so on.

  Raises:
    UserError: the sweeps differ in length.
  """
  if len({len(sweep) for sweep in sweeps}) > 1:
    raise UserError(
      f"zip: the sweeps have {', '.join(str(len(s)) for s in sweeps)} points; "
      "give all the same number"
    )
  return [_merge(points) for points in builtins.zip(*sweeps)]


def chain(*sweeps: Sweep) -> Sweep:
  """Returns the points of all sweeps, one sweep after the other."""
  return list(itertools.chain(*sweeps))


def _merge(points: Iterable[Point]) -> Point:
  return {name: value for point in points for name, value in point.items()}


def load(config: str) -> ConfigDict:
  """Loads `FILE.py[:PRESET]`, or a configuration that ships by its name.

  Raises:
    UserError: there is no such file or preset.
  """
  path, _, preset = config_files.find(config).partition(":")
  try:
    loaded = runpy.run_path(path)["get_config"](*([preset] if preset else []))
  except ValueError as error:
    raise UserError(f"{config}: {error}") from error
  renamed.modernize(loaded)
  return loaded


def _modern(point: Point) -> Point:
  """Returns a point by the fields' new names."""
  return {renamed.RENAMED.get(name, name): value for name, value in point.items()}


def resolve(point: Point) -> dict[str, Any]:
  """Returns all fields of a point's config by their dotted names, changed as the point says.

  One value given to a field that holds a tuple becomes a tuple of one.

  Raises:
    UserError: a field does not exist, or a value has another type than the field.
  """
  if "config" not in point:
    raise UserError(f"the point {point} names no config file; add a field 'config'")
  config = load(point["config"])
  known = dict(_flatten(config))
  for name, value in _modern(point).items():
    if name == "config":
      continue
    if name not in known:
      raise UserError(f"{point['config']} has no field '{name}'{nearest(name, known)}")
    try:
      if isinstance(known[name], tuple):
        value = _entries(value, known[name])
      config.update_from_flattened_dict({name: value})
    except (TypeError, ValueError) as error:
      raise UserError(
        f"field '{name}' is {known[name]!r} by default and cannot be {value!r}; give the same type"
      ) from error
  return dict(_flatten(config))


def _entries(value: Any, like: tuple) -> tuple:
  values = tuple(value) if isinstance(value, (tuple, list)) else (value,)
  converted = tuple(map(type(like[0]), values)) if like else values
  if not values or converted != values:
    raise TypeError(f"{values} are not like {like}")
  return converted


def _flatten(config: ConfigDict, prefix: str = "") -> Iterator[tuple[str, Any]]:
  for name, value in config.items():
    if isinstance(value, ConfigDict):
      yield from _flatten(value, f"{prefix}{name}.")
    else:
      yield f"{prefix}{name}", value


def fold(points: Sweep) -> list[job_lib.Job]:
  """Returns the jobs that train all points, each training once.

  Raises:
    UserError: see `resolve`.
  """
  groups: dict[str, tuple[Point, dict[tuple, None]]] = {}
  for point in map(_modern, points):
    fields = resolve(point)
    trainings = itertools.product(*(fields.pop(name) for name in FOLDED))
    del fields["name"]  # of a group's first point; a half-width in it is each member's own
    groups.setdefault(repr(fields), (point, {}))[1].update(dict.fromkeys(trainings))
  found = [_job(first, box) for first, trainings in groups.values() for box in _boxes(trainings)]
  return _in_order(found)


def _boxes(trainings: Iterable[tuple]) -> list[dict[str, tuple]]:
  """Covers trainings, a value per folded field each, by as few products of values as it can.

  Boxes that differ in one field only are joined, one field after the other.
  """
  boxes = [tuple((value,) for value in training) for training in trainings]
  for i in range(len(FOLDED)):
    joined: dict[tuple, tuple] = {}
    for box in boxes:
      rest = box[:i] + box[i + 1 :]
      joined[rest] = joined.get(rest, ()) + box[i]
    boxes = [(*rest[:i], values, *rest[i:]) for rest, values in joined.items()]
  return [dict(builtins.zip(FOLDED, map(tuple, map(sorted, box)))) for box in boxes]


def _job(point: Point, box: dict[str, tuple]) -> job_lib.Job:
  config = point["config"]
  default = resolve({"config": config})
  fields = {**resolve(point), **box}
  changed = {name: value for name, value in fields.items() if value != default[name]}
  # Rows of several jobs meet in one table. A run tells its members apart by half-width and by what
  # else they differ in; what they share is told here.
  by_run = {"seeds", "head.half_widths", *(name for name in FOLDED if len(box[name]) > 1)}
  shared = {name: value for name, value in changed.items() if name not in by_run}
  if shared and "name" not in point:
    fields["name"] = changed["name"] = "_".join([default["name"], *_labels(shared)])
  stem, _, preset = Path(config).name.partition(":")
  labels = _labels({name: value for name, value in changed.items() if name != "name"})
  return job_lib.Job(
    name=",".join(filter(None, [Path(stem).stem, preset, *labels])),
    config=config,
    overrides=changed,
    fields=fields,
    members=math.prod(map(len, box.values()))
    if methods.METHODS[fields["pipeline"]].trains_members
    else 1,
  )


def _labels(fields: Mapping[str, Any]) -> list[str]:
  """Returns `name=value` for each field, fit for a file's name."""
  labels = []
  for name, value in fields.items():
    values = value if isinstance(value, tuple) else (value,)
    short = FOLDED[name] if name in FOLDED and len(values) == 1 else name.removeprefix("head.")
    text = re.sub(r"[^A-Za-z0-9.+-]+", "-", "+".join(map(str, values)))
    labels.append(f"{short}={text}")
  return labels


def _in_order(found: Sequence[job_lib.Job]) -> list[job_lib.Job]:
  """Lets jobs wait for the one that makes the features which all need: the quickest to end.

  Those that others wait for come first.
  """

  def features(job):
    shared = methods.METHODS[job.fields["pipeline"]].shared
    return (
      repr([v for name, v in job.fields.items() if name.startswith(shared)]) if shared else None
    )

  def work(job):  # what it does besides
    return cost.seconds(dataclasses.replace(job, after="another"), "cpu")

  leaders: dict[str, job_lib.Job] = {}
  for job in found:
    key = features(job)
    if key is not None and (key not in leaders or work(job) < work(leaders[key])):
      leaders[key] = job
  ordered = [
    dataclasses.replace(job, after=leader.name)
    if (leader := leaders.get(features(job), job)) is not job
    else job
    for job in found
  ]
  awaited = {job.after for job in ordered}
  return sorted(ordered, key=lambda job: job.name not in awaited)


def values_of(text: str) -> tuple[str, tuple[Any, ...]]:
  """Parses `field=value,value` of a command line; a value is a Python literal, or else a string."""
  name, equals, values = text.partition("=")
  if not (name and equals and values):
    raise argparse.ArgumentTypeError(f"'{text}' is not FIELD=VALUE,VALUE,…")
  try:
    found = ast.literal_eval(values)
  except (ValueError, SyntaxError):
    found = tuple(values.split(","))
  return name, found if isinstance(found, tuple) else (found,)


def main(argv: Sequence[str] | None = None) -> None:
  """Runs the sweep that the command line describes."""
  parser = argparse.ArgumentParser(
    prog="python -m launch.sweep", description=__doc__.split("\n")[0]
  )
  parser.add_argument("--config", help="config file or name, and behind a colon its preset")
  parser.add_argument(
    "--grid",
    type=values_of,
    action="append",
    default=[],
    metavar="FIELD=V,V,…",
    help="every combination with all other options",
  )
  parser.add_argument(
    "--zip",
    type=values_of,
    action="append",
    default=[],
    metavar="FIELD=V,V,…",
    help="first values together, then the second ones, …",
  )
  parser.add_argument(
    "--sweep",
    help="Python file whose get_sweep() returns a list of points, made "
    "of the functions of this module",
  )
  job_lib.add_arguments(parser)
  args = parser.parse_args(argv)
  with job_lib.told_in_one_line("launch.sweep"):
    start = [{"config": args.config}] if args.config else [{}]
    file = runpy.run_path(args.sweep)["get_sweep"]() if args.sweep else [{}]
    zipped = zip(*(grid({name: values}) for name, values in args.zip)) if args.zip else [{}]
    points = product(start, file, zipped, grid(dict(args.grid)))
    dispatch.launch(fold(points), args)


if __name__ == "__main__":
  main()
