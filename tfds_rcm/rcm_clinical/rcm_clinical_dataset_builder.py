"""The dataset rcm_clinical: your own stacks."""

from __future__ import annotations

from tfds_rcm.study.builder import ManifestBuilder


class Builder(ManifestBuilder):
  """Stacks of a clinic or a laboratory, listed in a manifest (docs/data.md)."""

  DESCRIPTION = (
    "Stacks of reflectance confocal microscopy images of skin with a stratum for each slice, from "
    "a folder and a manifest."
  )
