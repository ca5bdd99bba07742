"""The dataset rcm_phantom: simulated RCM stacks with the strata that two readers see in them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
import dataclasses
import functools
import pathlib
from typing import Any

import tensorflow_datasets as tfds

from tfds_rcm import record as record_lib
from tfds_rcm.rcm_phantom import anatomy as anatomy_lib
from tfds_rcm.rcm_phantom import spec, stacks

# TFDS holds a shard in memory, some 30 MB of it at the paper's size.
_STACKS_PER_SHARD = 8


@dataclasses.dataclass(eq=False, kw_only=True)
class PhantomConfig(tfds.core.BuilderConfig):
  """A phantom under the name that `spec.named` understands."""

  phantom: spec.Phantom


def make_config(name: str) -> PhantomConfig:
  """Returns the configuration of a preset or of a variation of one, such as "demo+seed=1"."""
  return PhantomConfig(name=name, phantom=spec.named(name))


class Builder(tfds.core.ShardBasedBuilder):
  """Renders stacks and writes them shard by shard.

  TFDS's other way, by examples, keeps a gigabyte of them in memory and needs TensorFlow beyond.
  """

  VERSION = tfds.core.Version(spec.VERSION)
  SUPPORTED_VERSIONS = [tfds.core.Version(version) for version in spec.OLD_VERSIONS]  # noqa: RUF012
  BUILDER_CONFIGS = [make_config(name) for name in spec.PRESETS]  # noqa: RUF012

  def __init__(
    self,
    *,
    progress: stacks.Progress | None = None,
    file_format: str = "array_record",
    **kwargs: Any,
  ):
    """Makes a builder.

    Args:
      progress: called with stacks written and stacks in all.
      file_format: TFDS's.
      **kwargs: TFDS's own arguments; `config` may be any name that `spec.named` understands, and
        of an older version, such as "demo:1.1.0", where that lies prepared.
    """
    config = kwargs.get("config")
    if isinstance(config, str) and ":" in config:
      kwargs["config"], _, kwargs["version"] = config.partition(":")
    self._progress = progress or (lambda done, total: None)
    super().__init__(file_format=file_format, **kwargs)

  def _create_builder_config(
    self, builder_config: str | PhantomConfig | None, version: Any
  ) -> PhantomConfig:
    if isinstance(builder_config, str) and builder_config not in spec.PRESETS:
      return make_config(builder_config)
    return super()._create_builder_config(builder_config, version)

  @property
  def staging_dir(self) -> pathlib.Path:
    """Where rendered stacks wait for the rest."""
    return pathlib.Path(self._data_dir_root) / self.name / "staging" / self.builder_config.name

  def _info(self) -> tfds.core.DatasetInfo:
    return record_lib.LocalInfo(
      builder=self,
      description=(
        "Simulated stacks of reflectance confocal microscopy images of skin, with a stratum for "
        "each slice. No figure measured on it says anything about patients."
      ),
      features=record_lib.stack_features(),
    )

  def _shard_iterators_per_split(
    self, dl_manager: tfds.download.DownloadManager
  ) -> dict[str, list[Any]]:
    del dl_manager
    phantom = self.builder_config.phantom
    anatomies = anatomy_lib.draw_anatomies(phantom)
    shards: dict[str, list[Any]] = {}
    for split in anatomy_lib.SPLITS:
      indices = [i for i, anatomy in enumerate(anatomies) if anatomy.split == split]
      if indices:
        shards[split] = [
          functools.partial(self._generate, anatomies, indices[start : start + _STACKS_PER_SHARD])
          for start in range(0, len(indices), _STACKS_PER_SHARD)
        ]
    return shards

  def _generate(
    self, anatomies: Sequence[anatomy_lib.Anatomy], indices: Sequence[int]
  ) -> Iterator[tuple[str, dict[str, Any]]]:
    phantom = self.builder_config.phantom
    for index in indices:
      self._progress(index, len(anatomies))
      fields = stacks.staged_fields(self.staging_dir, phantom, anatomies[index])
      yield fields["stack_id"], record_lib.stack_record(**fields)
      self._progress(index + 1, len(anatomies))

  def _example_writer(self) -> record_lib.StableWriter:
    return record_lib.StableWriter(file_format=self.info.file_format)
