"""What a phantom dataset is made of: its size, its people, its instrument, its readers."""

from __future__ import annotations

import ast
import dataclasses

from tfds_rcm.errors import UserError

# Raised whenever a phantom's images or labels change.
VERSION = "2.0.0"
# What made older versions: a git revision. Their data sets are read where they lie, and old figures
# are reproduced by that revision alone, which has the methods that belong to them, too.
OLD_VERSIONS = {"1.1.0": "e5abef8"}

# Phantoms of these seeds may be looked at, and every choice is made on them.
DEVELOPMENT_SEEDS = (0, 1)
# Phantoms of these seeds are evaluated on once and never looked at before. Whoever changes a method
# after that takes five others.
EVALUATION_SEEDS = (2101, 2102, 2103, 2104, 2105)

# Site: (stratum corneum, whole epidermis) as ((mean, SD), (mean, SD)) in µm. Forearm, shoulder and
# buttock: Sandby-Møller 2003; leg: the mean of 11 sites by OCT (10.1111/srt.12021), whose SD of 23
# is over sites, too. SDs are between people; one person's places differ more, see anatomy.py.
SITES = {
  "forearm": ((18.3, 4.9), (56.6, 11.5)),
  "shoulder": ((11.0, 2.2), (70.3, 13.6)),
  "buttock": ((14.9, 3.4), (81.5, 15.7)),
  "leg": ((14.1, 1.8), (68.6, 14.5)),
}


@dataclasses.dataclass(frozen=True)
class Phantom:
  """Everything that determines a phantom dataset, besides this package's code.

  Whoever studies a domain shift makes two phantoms that differ in one field.
  Figures without a source are choices.

  Attributes:
    stacks: stacks in train, validation and test.
    stacks_per_patient: fewest and most stacks that one patient gives.
    size_px: side of the square image.
    pixel_um: µm a pixel.
    depth_step_um: distance between slices; 3 in the paper, 1.5 to 5 elsewhere.
    max_depth_um: deepest slice that an ordinary stack reaches, 70 steps of 3 µm.
    overlong_stack: whether one training stack goes on to 100 steps of 3 µm, as in the paper.
    section_um: thickness of the optical section, 3 to 5 in the literature.
    skin_types: lightest and darkest Fitzpatrick type, 1 to 6.
    sites: where stacks are taken, keys of SITES.
    lesion_fraction: share of stacks taken in a nevus or a melanoma.
    texture_contrast: how much cells, fibers and the basal layer stand out. A knob of difficulty.
    reader_disagreement: scale of the readers' errors of depth. The other knob of difficulty.
    noise: scale of speckle and detector noise.
    motion_um: largest lateral displacement in a stack (Rajadhyaksha 1999: within 25 µm).
    artifact_rate: how often slices carry bubbles, steps of brightness or motion bands, relative
      to this module's choice.
    seed: same phantom, same seed, same bytes.
  """

  stacks: tuple[int, int, int]
  stacks_per_patient: tuple[int, int]
  size_px: int
  pixel_um: float
  depth_step_um: float = 3.0
  max_depth_um: float = 210.0
  overlong_stack: bool = False
  section_um: float = 4.0
  skin_types: tuple[int, int] = (1, 6)
  sites: tuple[str, ...] = tuple(SITES)
  lesion_fraction: float = 0.25
  texture_contrast: float = 1.0
  reader_disagreement: float = 1.0
  noise: float = 1.0
  motion_um: float = 25.0
  artifact_rate: float = 1.0
  seed: int = 0

  def __post_init__(self):
    """Checks the fields.

    Raises:
      UserError: a field out of range.
    """
    fewest, most = self.stacks_per_patient
    lightest, darkest = self.skin_types
    rules = {
      "stacks": len(self.stacks) == 3 and min(self.stacks) >= 0 and sum(self.stacks) > 0,
      "stacks_per_patient": 1 <= fewest <= most,
      "size_px": self.size_px >= 16,
      "pixel_um": self.pixel_um > 0 and self.size_px * self.pixel_um <= 500.5,
      "depth_step_um": self.depth_step_um > 0,
      "skin_types": 1 <= lightest <= darkest <= 6,
      "sites": len(self.sites) > 0 and set(self.sites) <= set(SITES),
      "lesion_fraction": 0 <= self.lesion_fraction <= 1,
      "motion_um": 0 <= self.motion_um <= 25,
    }
    for name, kept in rules.items():
      if not kept:
        raise UserError(f"phantom: {name}={getattr(self, name)} is out of range, see spec.Phantom")


# A field of 192 µm: a few papillae, the smallest in which the strata can still be named; in pixels
# that just resolve cells.
_SMALL = {
  "size_px": 80,
  "pixel_um": 2.4,
  # Difficulty, chosen on validation stacks of seed 0 with Hames' classifier and the CNN alone, half of
  # the training stacks: 83.1 and 80.2 %, where 1, 1 and 1 gave 77.9 and 74.3 %.
  "texture_contrast": 1.4,
  "noise": 0.7,
  "reader_disagreement": 0.7,
}

PRESETS = {
  "demo": Phantom(stacks=(32, 8, 20), stacks_per_patient=(1, 4), **_SMALL),
  # The paper's numbers of stacks.
  "paper_small": Phantom(
    stacks=(245, 61, 198), stacks_per_patient=(1, 8), overlong_stack=True, **_SMALL
  ),
  # The same with Inception-V3's own input size on the full 500 µm field.
  "paper": Phantom(
    stacks=(245, 61, 198),
    stacks_per_patient=(1, 8),
    size_px=299,
    pixel_um=500 / 299,
    overlong_stack=True,
  ),
}


def with_seed(name: str, seed: int) -> str:
  """Returns the name of the same phantom with another seed."""
  plain, colon, version = name.partition(":")
  return f"{plain}+seed={seed}{colon}{version}" if seed else name


def named(name: str) -> Phantom:
  """Understands "PRESET" and "PRESET+FIELD=VALUE+FIELD=VALUE", such as "paper+skin_types=5,6".

  Raises:
    UserError: an unknown preset or field, or a value of the wrong kind.
  """
  plain, _, version = name.partition(":")
  if version in OLD_VERSIONS:
    raise UserError(
      f"phantom '{name}': version {version} can be read, not made; to make '{plain}' as it was, run"
      f" `git checkout {OLD_VERSIONS[version]}` and prepare it there"
    )
  preset, *changes = name.split("+")
  if preset not in PRESETS:
    raise UserError(f"phantom '{name}': no preset '{preset}'; known are {', '.join(PRESETS)}")
  base = PRESETS[preset]
  fields = {field.name: getattr(base, field.name) for field in dataclasses.fields(base)}
  for change in changes:
    field, _, text = change.partition("=")
    if field not in fields:
      raise UserError(f"phantom '{name}': no field '{field}'; known are {', '.join(fields)}")
    fields[field] = _parsed(name, field, text, fields[field])
  return Phantom(**fields)


def _parsed(name: str, field: str, text: str, like: object) -> object:
  """Reads a value of the same kind as the one that it replaces."""
  if field == "sites":
    return tuple(text.split(","))
  try:
    value = ast.literal_eval(text)
  except (ValueError, SyntaxError):
    value = None
  if isinstance(like, float) and type(value) is int:
    value = float(value)
  if type(value) is not type(like) or (isinstance(like, tuple) and len(value) != len(like)):
    raise UserError(f"phantom '{name}': {field}={text}; expected something like {field}={like}")
  return value
