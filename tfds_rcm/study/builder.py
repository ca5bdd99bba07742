"""The TFDS builder of every study that a manifest describes."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
import functools
import itertools
import os
import pathlib
import shutil
from typing import Any

import tensorflow_datasets as tfds

from tfds_rcm import disk, staging
from tfds_rcm import record as record_lib
from tfds_rcm.shards import is_whole_shard, write_shard
from tfds_rcm.study import check_report
from tfds_rcm.study import splits as splits_lib
from tfds_rcm.study.plan import Job, Plan, make_record

_MAX_STACKS_PER_SHARD = 4  # some 70 MB each; what an interrupted process has to do again
_MIN_SHARDS = 64  # so that small studies keep all cores busy, too


class ManifestBuilder(tfds.core.ShardBasedBuilder, skip_registration=True):
  """Streams a study's stacks into TFDS, shard by shard; subclasses say which study.

  All cores decode stacks and write shards, which wait beside the dataset until all are there:
  memory does not grow with their number, and an interrupted run goes on where it was. With
  `use_beam`, and a `beam_runner` in TFDS's DownloadConfig, workers of Apache Beam decode
  them instead, without staging.
  """

  VERSION = tfds.core.Version("2.0.0")
  DESCRIPTION = ""
  HOMEPAGE = ""

  def __init__(
    self,
    *,
    plan: Plan | None = None,
    workers: int | None = None,
    use_beam: bool = False,
    file_format: str = "array_record",
    **kwargs: Any,
  ):
    """Makes a builder.

    Args:
      plan: the study; None to read a dataset that is already prepared.
      workers: processes, see `staging.finished`.
      use_beam: decode by Apache Beam.
      file_format: TFDS's.
      **kwargs: TFDS's own arguments.
    """
    self._plan = plan
    self._workers = workers
    self._use_beam = use_beam
    self._finished: Iterator[pathlib.Path] = iter(())
    super().__init__(file_format=file_format, **kwargs)

  @property
  def staging_dir(self) -> pathlib.Path:
    """Where finished shards wait for the rest."""
    return pathlib.Path(self._data_dir_root) / self.name / "staging"

  def prepare(self, download_config: tfds.download.DownloadConfig | None = None) -> bool:
    """Writes the dataset unless it is there, made of the same files, labels and splits.

    Beside the records lie splits.csv, with which it was made, and report.txt.

    Returns:
      False if there was nothing to do.

    Raises:
      UserError: if a stack cannot be read; no dataset is left then, finished shards are.
    """
    plan = self._plan
    folder = pathlib.Path(self.data_path)
    stamp = folder / "fingerprint.txt"
    if stamp.is_file() and stamp.read_text() == plan.fingerprint:
      return False
    if not plan.options.splits.exists():
      splits_lib.write(plan.options.splits, [s.for_split for s in plan.stacks], plan.split_of)
    replaced = folder.with_name(f"replaced.{folder.name}")
    for leftover in folder.parent.glob(f"incomplete.*{folder.name}"):  # a killed run's
      shutil.rmtree(leftover, ignore_errors=True)
    if replaced.exists() and stamp.is_file():
      shutil.rmtree(replaced)
    elif replaced.exists():  # the run that was to replace it was killed
      shutil.rmtree(folder, ignore_errors=True)
      replaced.rename(folder)
    if folder.exists():
      folder.rename(replaced)
    try:
      with disk.failures_told(folder):
        self._write(download_config)
        splits_lib.write(folder / "splits.csv", [s.for_split for s in plan.stacks], plan.split_of)
        report = check_report.report(plan) + "\n"
        disk.write_whole(folder / "report.txt", report.encode())
        disk.write_whole(stamp, plan.fingerprint.encode())  # the last one: now all is there
    except BaseException:
      shutil.rmtree(folder, ignore_errors=True)
      if replaced.exists():
        replaced.rename(folder)
      raise
    shutil.rmtree(replaced, ignore_errors=True)
    shutil.rmtree(self.staging_dir, ignore_errors=True)
    return True

  def _write(self, download_config: tfds.download.DownloadConfig | None) -> None:
    # A builder made while an older dataset was there describes that one.
    fresh = type(self)(
      plan=self._plan, workers=self._workers, use_beam=self._use_beam, data_dir=self._data_dir_root
    )
    fresh.download_and_prepare(download_config=download_config)

  def _info(self) -> tfds.core.DatasetInfo:
    # A prepared dataset's own features.json tells how its slices are stored.
    described = None
    if self._plan:
      described = record_lib.stack_features(png=self._plan.options.compress, about=True)
    return record_lib.LocalInfo(
      builder=self,
      description=self.DESCRIPTION,
      homepage=self.HOMEPAGE or None,
      features=described,
    )

  def _shard_iterators_per_split(
    self, dl_manager: tfds.download.DownloadManager
  ) -> dict[str, list[Any]]:
    del dl_manager
    shards = {}
    for split in splits_lib.SPLITS:
      if jobs := tuple(self._plan.jobs(split)):
        size = min(_MAX_STACKS_PER_SHARD, -(-len(jobs) // _MIN_SHARDS))
        shards[split] = [jobs[start : start + size] for start in range(0, len(jobs), size)]
    if not self._use_beam:
      # TFDS asks for the shards in this order: one set of processes serves them all.
      every = itertools.chain.from_iterable(shards.values())
      named = ((staging.fingerprint([job.key for job in shard]), shard) for shard in every)
      self._finished = staging.finished(
        self.staging_dir, named, _make_shard, _is_whole, workers=self._workers
      )
    examples = _decode if self._use_beam else _names
    return {
      split: [functools.partial(examples, shard) for shard in of_split]
      for split, of_split in shards.items()
    }

  def _example_writer(self) -> tfds.core.ExampleWriter:
    if self._use_beam:
      return record_lib.StableWriter(file_format=self.info.file_format)
    return _Linker(self)


class _Linker(tfds.core.ExampleWriter):
  """Puts finished shards where TFDS would write them; they stay staged, too, until all are there."""

  def __init__(self, builder: ManifestBuilder):
    super().__init__(file_format=builder.info.file_format)
    self._builder = builder

  def write(self, path: Any, examples: Any) -> None:
    del examples  # in the shard already
    staged = next(self._builder._finished)
    try:
      os.link(staged, path)
    except OSError:  # not every file system has links
      shutil.copyfile(staged, path)


def _make_shard(jobs: Sequence[Job], path: pathlib.Path) -> None:
  write_shard(path, (example for _, example in _decode(jobs)))


def _is_whole(jobs: Sequence[Job], path: pathlib.Path) -> bool:
  return is_whole_shard(path, len(jobs))


def _names(jobs: Sequence[Job]) -> Iterator[tuple[str, None]]:
  """What TFDS counts the examples of a shard by."""
  return ((job.stack.entry.stack_id, None) for job in jobs)


def _decode(jobs: Sequence[Job]) -> Iterator[tuple[str, dict[str, Any]]]:
  for job in jobs:
    yield job.stack.entry.stack_id, record_lib.stack_record(**make_record(job))
