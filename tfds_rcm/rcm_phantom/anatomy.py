"""Who is imaged, and where: patient → site → stack, each stack's anatomy as numbers.

Traits vary between patients and, more strongly, between one patient's stacks: 50 to 74 % of the
variance of epidermal thickness lies within a site (1491 stacks of 39 subjects). Numbers without a
source are choices.
"""

from __future__ import annotations

import dataclasses

import numpy as np

from tfds_rcm.rcm_phantom import spec
from tfds_rcm.study.splits import SPLITS

WITHIN_PATIENT = 0.7  # share of a trait's variance, of the 0.50 to 0.74 measured
LESIONS = ("none", "nevus", "melanoma")


@dataclasses.dataclass(frozen=True)
class Anatomy:
  """One stack's tissue. Lengths in µm, contents in [0, 1] where nothing else is said.

  Attributes:
    stack_id: "p003_s1": patient and stack.
    patient_id: "p003".
    split: one of SPLITS.
    site: a key of `spec.SITES`.
    lesion: one of LESIONS.
    entropy: seed of everything that is drawn for this stack later, see `generator`.
    melanin: 0 in the fairest skin, 1 in the darkest.
    corneum_um: stratum corneum.
    epidermis_um: whole epidermis, mean over the field.
    papilla_height_um: tips of dermal papillae above the ridges' bottoms.
    papilla_spacing_um: mean distance of neighbors.
    undulation_um: standard deviation of the junction's slow undulation.
    furrow_depth_um: where furrows are deepest.
    furrow_width_um: full width.
    furrow_spacing_um: mean distance of neighboring furrows.
    disarray: of the cells' arrangement.
    nests_mm2: nests of melanocytes at the junction, per mm² of skin.
    nest_radius_um: mean of the nests.
    pagetoid: share of the epidermis' cells that are bright, round and out of place.
    edged: how brightly basal cells rim the papillae: 1 in healthy skin, near 0 where rings are lost.
    dendrites: number of dendritic cells in the lower epidermis.
    collagen: contrast and density of fibers.
    cell_scale: size of keratinocytes relative to the textbook.
    cell_contrast: how sharply keratinocytes are drawn.
    basal_contrast: how bright basal cells are, melanin apart.
    overlong: the one stack that goes far deeper than the others.
  """

  stack_id: str
  patient_id: str
  split: str
  site: str
  lesion: str
  entropy: tuple[int, ...]
  melanin: float
  corneum_um: float
  epidermis_um: float
  papilla_height_um: float
  papilla_spacing_um: float
  undulation_um: float
  furrow_depth_um: float
  furrow_width_um: float
  furrow_spacing_um: float
  disarray: float
  nests_mm2: float
  nest_radius_um: float
  pagetoid: float
  edged: float
  dendrites: int
  collagen: float
  cell_scale: float
  cell_contrast: float
  basal_contrast: float
  overlong: bool

  def generator(self, purpose: str) -> np.random.Generator:
    """Returns the stack's own random numbers for one purpose, independent of all others."""
    return np.random.default_rng([*self.entropy, *purpose.encode()])


def draw_anatomies(phantom: spec.Phantom) -> list[Anatomy]:
  """Draws all stacks of a phantom, split by split, patients never shared between splits."""
  anatomies, patient = [], 0
  for split, count in zip(SPLITS, phantom.stacks):
    missing = count
    while missing:
      stacks = _draw_patient(phantom, split, patient)[:missing]
      anatomies += stacks
      missing -= len(stacks)
      patient += 1
  if phantom.overlong_stack and anatomies[0].split == "train":
    anatomies[0] = dataclasses.replace(anatomies[0], overlong=True)
  return anatomies


def _draw_patient(phantom: spec.Phantom, split: str, patient: int) -> list[Anatomy]:
  """Draws a patient and as many stacks as the patient gives."""
  rng = np.random.default_rng([phantom.seed, patient])
  # Fitzpatrick type to melanin: a choice, linear with some spread inside a type.
  lightest, darkest = phantom.skin_types
  skin_type = rng.integers(lightest, darkest, endpoint=True)
  melanin = float(np.clip((skin_type - 1 + rng.uniform(-0.4, 0.4)) / 5, 0, 1))
  age = rng.uniform(20, 80)
  own = rng.standard_normal(_Traits.COUNT)
  fewest, most = phantom.stacks_per_patient
  stacks = rng.integers(fewest, most, endpoint=True)
  return [_draw_stack(phantom, split, patient, index, melanin, age, own) for index in range(stacks)]


def _draw_stack(
  phantom: spec.Phantom,
  split: str,
  patient: int,
  index: int,
  melanin: float,
  age: float,
  patient_traits: np.ndarray,
) -> Anatomy:
  entropy = (phantom.seed, patient, index)
  rng = np.random.default_rng(entropy)
  site = phantom.sites[rng.integers(len(phantom.sites))]
  traits = _Traits(patient_traits, rng.standard_normal(_Traits.COUNT))
  corneum, epidermis = spec.SITES[site]
  lesion = "none"
  if rng.uniform() < phantom.lesion_fraction:
    lesion = LESIONS[rng.choice([1, 2], p=[0.7, 0.3])]
  tissue = _draw_lesion(lesion, np.random.default_rng([*entropy, *b"lesion"]))
  # Papillae: 84 per mm² at the lower back by RCM and by histology (10.1159/000543491), which is 117
  # µm between neighbors; heights of textbooks; fewer and lower with age.
  aging = (age - 20) / 60
  return Anatomy(
    stack_id=f"p{patient:03d}_s{index}",
    patient_id=f"p{patient:03d}",
    split=split,
    site=site,
    lesion=lesion,
    entropy=entropy,
    melanin=float(np.clip(melanin + (0.25 if lesion != "none" else 0.0), 0, 1)),
    corneum_um=traits.draw(*corneum, low=6.0, high=40.0),
    # Published deviations are between people's means: the share that is not within one person.
    epidermis_um=traits.draw(
      epidermis[0] + 10.0, epidermis[1] / np.sqrt(1 - WITHIN_PATIENT), low=32.0, high=160.0
    )
    + (8 if lesion == "nevus" else 0),
    papilla_height_um=traits.draw(73 - 12 * aging, 15.0, low=20.0, high=100.0) * tissue.height,
    papilla_spacing_um=traits.draw(110 + 14 * aging, 9.0, low=80.0, high=150.0) * tissue.spacing,
    undulation_um=traits.draw(7.5, 2.0, low=1.0, high=13.0),
    furrow_depth_um=traits.draw(32.0, 14.0, low=6.0, high=75.0),
    furrow_width_um=traits.draw(42.0, 11.0, low=18.0, high=75.0),
    furrow_spacing_um=traits.draw(230.0, 60.0, low=120.0, high=400.0),
    disarray=tissue.disarray,
    nests_mm2=tissue.nests_mm2,
    nest_radius_um=tissue.nest_radius_um,
    pagetoid=tissue.pagetoid,
    edged=tissue.edged,
    dendrites=tissue.dendrites,
    collagen=traits.draw(1.0, 0.2, low=0.5, high=1.5),
    cell_scale=traits.draw(1.0, 0.08, low=0.8, high=1.25),
    cell_contrast=traits.draw(1.0, 0.25, low=0.4, high=1.6),
    basal_contrast=traits.draw(1.0, 0.22, low=0.6, high=1.6),
    overlong=False,
  )


@dataclasses.dataclass(frozen=True)
class _Lesion:
  """What a lesion makes of the tissue; the defaults are healthy skin."""

  disarray: float
  height: float = 1.0  # of papillae, relative
  spacing: float = 1.0
  nests_mm2: float = 0.0
  nest_radius_um: float = 20.0
  pagetoid: float = 0.0
  edged: float = 1.0
  dendrites: int = 0


def _draw_lesion(lesion: str, rng: np.random.Generator) -> _Lesion:
  """Draws the pattern of a lesion as readers describe it (Scope 2007; strengths are choices).

  Nevi: rings (small, packed, brightly edged papillae), clods (large nests close together) or a
  meshwork (junctional nests between the papillae). Melanoma: a disarranged honeycomb with bright
  cells at all levels, papillae without edges, nests of irregular size, dendritic cells.
  """
  if lesion == "nevus":
    pattern = rng.choice(["ring", "clod", "mesh"])
    if pattern == "ring":
      return _Lesion(rng.uniform(0, 0.25), 1.0, 0.82, rng.uniform(0, 25), 16.0, edged=1.7)
    if pattern == "clod":
      return _Lesion(rng.uniform(0, 0.3), 0.8, 1.0, rng.uniform(90, 180), 32.0, edged=1.2)
    return _Lesion(rng.uniform(0, 0.3), 0.9, 1.05, rng.uniform(60, 130), 21.0, edged=1.4)
  if lesion == "melanoma":
    return _Lesion(
      disarray=rng.uniform(0.5, 1.0),
      height=rng.uniform(0.4, 0.8),
      nests_mm2=rng.uniform(10, 70),
      nest_radius_um=rng.uniform(20, 38),
      pagetoid=rng.uniform(0.04, 0.14),
      edged=rng.uniform(0.0, 0.5),
      dendrites=int(rng.integers(3, 9)),
    )
  return _Lesion(rng.uniform(0, 0.25))


class _Traits:
  """Hands out traits in a fixed order, each from its patient's and its stack's normal variate."""

  COUNT = 16

  def __init__(self, patient: np.ndarray, stack: np.ndarray):
    self._normals = iter(np.sqrt(1 - WITHIN_PATIENT) * patient + np.sqrt(WITHIN_PATIENT) * stack)

  def draw(self, mean: float, sd: float, *, low: float, high: float) -> float:
    return float(np.clip(mean + sd * next(self._normals), low, high))
