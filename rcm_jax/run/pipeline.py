"""One run from sources to tables, each stage from its cache where it was done before.

sources → decode → train_cnn → extract → train_heads → evaluate
└───────── hames, kaur ─────────┘
"""

from __future__ import annotations

from collections.abc import Sequence
import json
import os
import pathlib
import shutil
import subprocess
import tempfile
from typing import Any

import jax
from jax.experimental.compilation_cache import compilation_cache
import ml_collections
import numpy as np

from rcm_jax import anatomy
from rcm_jax.cnn import inception
from rcm_jax.data import feature_file, records
from rcm_jax.data import scale as scale_lib
from rcm_jax.data import slices as slices_lib
from rcm_jax.evaluation import results
from rcm_jax.reporting import console_table, plots
from rcm_jax.run import cnn_stages, initial, methods, renamed, stages
from rcm_jax.runtime import devices, files, stage_cache, versions
from rcm_jax.runtime.metric_writer import Writer
from tfds_rcm import prepare
from tfds_rcm.errors import UserError, check_one_of

PRECISIONS = ("highest", "high", "default")  # of float32 products on a GPU
_DATA_DIR = "data.data_dir"
# What runs did before there was a choice. (None need not be listed.)
_LATER_KEYS = {
  "data.strata": 3,
  "data.train_tiles": 1,
  "features.engine": "xla",
  "features.memory_gb": 8.0,
  "head.forget_bias": 0.0,
  "head.l1_reduction": "mean",
  "head.shortest_crop": 1.0,
  "precision": "highest",
}


def run(config: ml_collections.ConfigDict, workdir: pathlib.Path, cache_dir: pathlib.Path) -> None:
  """Trains and evaluates one configuration, or goes on where it was interrupted.

  Args:
    config: see `configs/base.py`.
    workdir: gets results.json, predictions.csv, figures and metrics.
    cache_dir: holds the stages' results for all runs that share them.

  Raises:
    UserError: the configuration, the data or a directory cannot be worked with.
  """
  check_one_of("config.pipeline", config.pipeline, methods.METHODS)
  check_one_of("config.precision", config.precision, PRECISIONS)
  check_one_of("config.features.engine", config.features.engine, cnn_stages.ENGINES)
  if config.data.strata not in anatomy.COUNTS:
    raise UserError(
      f"config.data.strata: {config.data.strata} is none of {', '.join(map(str, anatomy.COUNTS))}"
    )
  jax.config.update("jax_default_matmul_precision", config.precision)
  if not devices.is_first():  # it computes with the first one, and leaves the results to it
    with tempfile.TemporaryDirectory() as elsewhere:
      _run(config, pathlib.Path(elsewhere), cache_dir)
    return
  with stage_cache.locked(workdir, wait=False):
    _run(config, workdir, cache_dir)


def _run(config: ml_collections.ConfigDict, workdir: pathlib.Path, cache_dir: pathlib.Path) -> None:
  start = initial.load(config)
  about = _claim(workdir, config)
  try:
    cache_dir.mkdir(parents=True, exist_ok=True)
  except OSError as error:
    raise UserError(
      f"{cache_dir}: cannot be written ({error.strerror}); choose another --cache_dir"
    ) from error
  if not os.environ.get("JAX_COMPILATION_CACHE_DIR"):  # whoever says so shares one between caches
    jax.config.update("jax_compilation_cache_dir", str(cache_dir / "xla"))
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 1.0)
  if jax.process_count() > 1:
    compilation_cache.reset_cache()  # they have compiled before, when there was none
  writer = Writer(workdir)
  try:
    if config.features.file:
      known, source = _from_file(config)
      encoder, num_features = known.method, known.num_features
      name, sources, splits, scale = known.dataset, known.sources, known.splits, known.scale
      tested = source
    else:
      name, sources = stages.dataset_name(config.data), tuple(config.data.sources)
      encoder, num_features = None, inception.NUM_FEATURES
      source, tested, splits = _decode_all(config.data, workdir, cache_dir, writer)
      scale = splits["test"].scale
      _note_corneum(splits, writer)
    if start:
      initial.check(start, config, splits, encoder, writer.console.print)
    this = stages.Run(
      config=config,
      workdir=workdir,
      cache_dir=cache_dir,
      writer=writer,
      source=source,
      tested=tested,
      splits=splits,
      about=about,
      dataset=name,
      sources=sources,
      start=start,
      num_features=num_features,
    )
    result = methods.METHODS[config.pipeline](this)
  finally:
    writer.close()
  if not devices.is_first():
    return
  dataset = {
    "name": name,
    "stacks": {name: len(split.stack_id) for name, split in splits.items()},
    "slices": {name: len(split) for name, split in splits.items()},
    "image_size": scale.image_size or None,  # older files of features do not tell
    "field_um": scale.field_um,
    "strata": splits["train"].strata.names,
  }
  rows = results.write_run(
    workdir,
    dataset,
    result.predictions,
    versions=versions.installed(),
    train_seconds=result.seconds,
  )
  plots.boundary_error_histograms(result.predictions, workdir / "figures/boundary_errors.png")
  plots.strata_ribbon(result.predictions, workdir / "figures/strata.png")
  title = f"{dataset['stacks']['test']} test stacks of {dataset['name']}"
  console_table.print_table(rows, title)
  writer.console.print(f"results.json, predictions.csv and figures are in {workdir}")


def _from_file(
  config: ml_collections.ConfigDict,
) -> tuple[feature_file.FeatureFile, str]:
  """Returns what a file of features holds, and a name for its content."""
  path = config.features.file
  if config.pipeline != "head":
    raise UserError(
      f"config.features.file: {path}: the model '{config.pipeline}' needs images; leave the file out"
    )
  if config.data.test_sources or config.data.train_stacks is not None:
    raise UserError(
      f"config.features.file: {path}: it has its own stacks; leave out config.data.test_sources and "
      "config.data.train_stacks"
    )
  known = feature_file.load(path)
  strata = known.splits["train"].strata
  if len(strata) != config.data.strata:
    raise UserError(
      f"config.features.file: {path}: its labels tell {len(strata)} strata apart, not "
      f"{config.data.strata}; set config.data.strata={len(strata)}"
    )
  return known, f"features-{files.file_digest(pathlib.Path(path))[:12]}"


def _decode_all(
  wanted: ml_collections.ConfigDict,
  workdir: pathlib.Path,
  cache_dir: pathlib.Path,
  writer: Writer,
) -> tuple[str, str, dict[str, slices_lib.Slices]]:
  """Returns names of the decoded data for training and for testing, and its splits."""
  decoded = _decode(wanted.sources, wanted, workdir, cache_dir, writer)
  splits = slices_lib.load_slices(decoded)
  source = tested = decoded.name
  if wanted.train_stacks is not None:
    splits["train"] = splits["train"].first(wanted.train_stacks)
    source = f"{source}, {wanted.train_stacks} stacks"
  if wanted.test_sources:
    other = _decode(wanted.test_sources, wanted, workdir, cache_dir, writer)
    tested, splits["test"] = other.name, slices_lib.load_slices(other)["test"]
    expected, size = (splits[name].slices.shape[1:] for name in ("train", "test"))
    if size != expected:
      raise UserError(
        f"config.data.test_sources: slices of {size} pixels, those of the training data have "
        f"{expected}; set config.data.image_size to bring all to one size"
      )
    trained, seen = (splits[name].field_um for name in ("train", "test"))
    if (trained is None) != (seen is None) or (seen and not scale_lib.same_field(seen, trained)):
      raise UserError(
        f"config.data.test_sources: a field of {seen} µm, that of the training data is {trained} µm; "
        "set config.data.field_um and image_size to bring both to one scale"
      )
  return source, tested, splits


def _note_corneum(splits: dict[str, slices_lib.Slices], writer: Writer) -> None:
  """Says how stacks without corneum are understood."""
  if splits["train"].strata != anatomy.WITH_CORNEUM:
    return
  stacks = sum(len(split.stack_id) for split in splits.values())
  shown = sum(len(np.unique(split.stack[split.labels == 0])) for split in splits.values())
  if shown < stacks:
    writer.console.print(
      f"{stacks - shown} of {stacks} stacks have no slice labelled stratum_corneum: they count as "
      "beginning below it, and its boundary is not scored in them"
    )


def _decode(
  sources: Sequence[str],
  wanted: ml_collections.ConfigDict,
  workdir: pathlib.Path,
  cache_dir: pathlib.Path,
  writer: Writer,
) -> pathlib.Path:
  for source in sources:
    name, _, preset = source.partition("/")
    if name == "rcm_phantom" and devices.is_first():  # the embedded default makes itself
      with writer.progress(source) as advance:
        prepare.prepare_phantom(preset or "demo", wanted.data_dir, progress=advance)
  devices.wait_for_all("datasets are prepared")
  builders = [records.open_builder(source, wanted.data_dir) for source in sources]
  for builder in builders:  # who was in which split belongs to the results
    divided = pathlib.Path(builder.data_dir) / "splits.csv"
    if divided.exists():
      shutil.copyfile(divided, workdir / f"splits_{builder.name}.csv")
  spec = {
    "sources": [records.fingerprint(builder) for builder in builders],
    "image_size": wanted.image_size,
    "field_um": wanted.field_um,
    "train_tiles": wanted.train_tiles,
  }
  strata = anatomy.of_count(wanted.strata)
  if strata != anatomy.PAPER:  # as every cache that was written before there was a choice
    spec["strata"] = strata.names
  return stages.stage(
    cache_dir,
    writer,
    "decode",
    spec,
    lambda directory, advance: records.decode(
      builders,
      directory,
      image_size=wanted.image_size,
      field_um=wanted.field_um,
      train_tiles=wanted.train_tiles,
      strata=strata,
      advance=advance,
    ),
  )


def _claim(workdir: pathlib.Path, config: ml_collections.ConfigDict) -> dict[str, Any]:
  """Writes config.json, or refuses a directory that has metrics or results of another one."""
  path = workdir / "config.json"
  mine = json.loads(config.to_json_best_effort())
  used = any((workdir / name).exists() for name in ("metrics.jsonl", "results.json"))
  if used and path.exists():
    try:
      theirs = ml_collections.ConfigDict(json.loads(path.read_text())["config"])
      renamed.modernize(theirs)
      theirs = json.loads(theirs.to_json_best_effort())
    except (ValueError, KeyError, TypeError) as error:
      raise UserError(
        f"{path}: not a run's configuration ({error}); choose another --workdir"
      ) from error
    _complete(theirs, mine)
    for key, (old, new) in _differences(theirs, mine).items():
      if key == _DATA_DIR:  # data may move; what they are is in the names of the caches
        continue
      raise UserError(
        f"{workdir}: holds a run with config.{key} = {old}, not {new}; choose another --workdir"
      )
  written = {"config": mine, "versions": versions.installed(), "git_revision": _git_revision()}
  files.write_text(path, json.dumps(written, indent=2))
  return written


def _complete(theirs: dict[str, Any], mine: dict[str, Any]) -> None:
  """Adds to an older run's configuration what it did before there was a choice."""
  for key, value in _LATER_KEYS.items():
    *groups, name = key.split(".")
    holder = theirs
    for group in groups:
      holder = holder.setdefault(group, {})
    holder.setdefault(name, value)
  unchanged = {**mine["augmentation"]["photometry"], "share": 0.0}
  theirs.setdefault("augmentation", {}).setdefault("photometry", unchanged)


def _differences(old: Any, new: Any, prefix: str = "") -> dict[str, tuple[Any, Any]]:
  if isinstance(old, dict) and isinstance(new, dict):
    found = {}
    for key in sorted(old.keys() | new.keys()):
      found |= _differences(old.get(key), new.get(key), f"{prefix}.{key}" if prefix else key)
    return found
  return {} if old == new else {prefix: (old, new)}


def _git_revision() -> str | None:
  command = ["git", "describe", "--always", "--dirty", "--abbrev=40"]
  here = pathlib.Path(__file__).resolve().parents[2]
  if not (here / ".git").exists():  # installed: a repository around it is somebody else's
    return None
  try:
    done = subprocess.run(command, cwd=here, capture_output=True, text=True, check=True)
  except (OSError, subprocess.CalledProcessError):
    return None
  return done.stdout.strip()
