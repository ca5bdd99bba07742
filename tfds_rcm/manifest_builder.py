"""The TFDS builder of every study that a manifest describes."""

from __future__ import annotations

from collections.abc import Iterator
import pathlib
import shutil
from typing import Any

import tensorflow_datasets as tfds

from tfds_rcm import check, features, splits, staging
from tfds_rcm.study import Job, Plan, make_record


class ManifestBuilder(tfds.core.GeneratorBasedBuilder, skip_registration=True):
  """Streams a study's stacks into TFDS; subclasses say which study.

  Stacks are decoded by all cores and staged one by one beside the dataset, so memory
  does not grow with their number and an interrupted run goes on where it was. With
  `beam_runner` in TFDS's DownloadConfig and `use_beam`, workers of Apache Beam decode them
  instead, without staging.
  """

  VERSION = tfds.core.Version("1.0.0")
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
      workers: processes, see `staging.staged`.
      use_beam: decode by Apache Beam.
      file_format: TFDS's.
      **kwargs: TFDS's own arguments.
    """
    self._plan = plan
    self._workers = workers
    self._use_beam = use_beam
    super().__init__(file_format=file_format, **kwargs)

  @property
  def staging_dir(self) -> pathlib.Path:
    """Where finished stacks wait for the rest."""
    return pathlib.Path(self._data_dir_root) / self.name / "staging"

  def prepare(self, download_config: tfds.download.DownloadConfig | None = None) -> bool:
    """Writes the dataset unless it is there, made of the same files, labels and splits.

    Beside the records lie splits.csv, with which it was made, and report.txt.

    Returns:
      False if there was nothing to do.

    Raises:
      UserError: if a stack cannot be read; no dataset is left then, finished stacks are.
    """
    plan = self._plan
    folder = pathlib.Path(self.data_path)
    stamp = folder / "fingerprint.txt"
    if stamp.is_file() and stamp.read_text() == plan.fingerprint:
      return False
    if not plan.options.splits.exists():
      splits.write(plan.options.splits, [s.for_split for s in plan.stacks], plan.split_of)
    replaced = folder.with_name(f"replaced.{folder.name}")
    for leftover in (*folder.parent.glob(f"incomplete.*{folder.name}"), replaced):  # a killed run's
      shutil.rmtree(leftover, ignore_errors=True)
    if folder.exists():
      folder.rename(replaced)
    try:
      self._write(download_config)
    except BaseException:
      if replaced.exists():
        replaced.rename(folder)
      raise
    shutil.rmtree(replaced, ignore_errors=True)
    splits.write(folder / "splits.csv", [s.for_split for s in plan.stacks], plan.split_of)
    (folder / "report.txt").write_text(check.report(plan) + "\n", encoding="utf-8")
    stamp.write_text(plan.fingerprint)
    shutil.rmtree(self.staging_dir, ignore_errors=True)
    return True

  def _write(self, download_config: tfds.download.DownloadConfig | None) -> None:
    # A builder made while an older dataset was there describes that one.
    fresh = type(self)(
      plan=self._plan, workers=self._workers, use_beam=self._use_beam, data_dir=self._data_dir_root
    )
    fresh.download_and_prepare(download_config=download_config)

  def _info(self) -> tfds.core.DatasetInfo:
    return tfds.core.DatasetInfo(
      builder=self,
      description=self.DESCRIPTION,
      homepage=self.HOMEPAGE or None,
      features=features.stack_features(),
    )

  def _split_generators(self, dl_manager: tfds.download.DownloadManager) -> dict[str, Any]:
    del dl_manager
    used = set(self._plan.split_of.values())
    return {s: self._generate_examples(s) for s in splits.SPLITS if s in used}

  def _generate_examples(self, split: str) -> Any:
    jobs = list(self._plan.jobs(split))
    if self._use_beam:
      beam = tfds.core.lazy_imports.apache_beam
      return beam.Create([job for _, job in jobs]) | beam.Map(_example)
    return self._stream(jobs)

  def _stream(self, jobs: list[tuple[str, Job]]) -> Iterator[tuple[str, dict[str, Any]]]:
    for fields in staging.staged(self.staging_dir, jobs, make_record, workers=self._workers):
      yield fields["stack_id"], features.stack_record(**fields)


def _example(job: Job) -> tuple[str, dict[str, Any]]:
  return job.stack.entry.stack_id, features.stack_record(**make_record(job))
