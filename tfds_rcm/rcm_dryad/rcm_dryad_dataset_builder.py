"""The dataset rcm_dryad: the stacks of Hames et al. 2016."""

from __future__ import annotations

from tfds_rcm.study.builder import ManifestBuilder


class Builder(ManifestBuilder):
  """308 stacks of 54 volunteers (PLoS ONE, 10.1371/journal.pone.0153208).

  The layout of the archive could not be checked by the authors of this program: see
  `convert`, which makes the manifest.
  """

  DESCRIPTION = (
    "Stacks of reflectance confocal microscopy images of healthy skin by Hames et al. 2016, as "
    "converted from the archive at Dryad."
  )
  HOMEPAGE = "https://doi.org/10.5061/dryad.rg58m"
