"""Tables 1-3 of the paper, as data: what our own figures are set beside.

Bozkurt et al., "Skin strata delineation in reflectance confocal microscopy
images using recurrent convolutional networks with attention", Scientific
Reports 11 (2021), measured on its test split: 198 of 504 stacks.
"""

from __future__ import annotations

import dataclasses

MEASURED_ON = "paper's 504 stacks"
MEDIAN_ERROR_UM = (5, 6)  # epidermis-DEJ and DEJ-dermis, in the text
INPUTS = ("whole stack", "partial stack", "single image")


@dataclasses.dataclass(frozen=True)
class PaperRow:
  """One method of the paper; None where a table leaves it out.

  Attributes:
    name: as Table 1 prints it.
    input: what it sees, Table 1's blocks.
    accuracy: percent.
    sensitivity: percent, of epidermis, DEJ, dermis.
    specificity: percent, of epidermis, DEJ, dermis.
    inconsistent: Table 2's four counts, in the order of `anatomy.PAPER.transitions`.
    boundary_mae_um: Table 3's errors in µm, epidermis-DEJ and DEJ-dermis.
  """

  name: str
  input: str
  accuracy: float
  sensitivity: tuple[float, float, float]
  specificity: tuple[float, float, float]
  inconsistent: tuple[int, int, int, int] | None = None
  boundary_mae_um: tuple[float, float] | None = None


_WHOLE, _PARTIAL, _SINGLE = INPUTS

# Keys are the names of the config files, which are the methods' names in results.json.
METHODS = {
  "toeplitz_d1": PaperRow(
    "Toeplitz Att. (D = 1)",
    _WHOLE,
    88.07,
    (93.41, 85.04, 82.66),
    (96.35, 89.71, 96.07),
    (1, 1, 0, 1),
    (5.76, 9.24),
  ),
  "toeplitz_d7": PaperRow(
    "Toeplitz Att. (D = 7)",
    _WHOLE,
    87.59,
    (92.84, 84.18, 82.89),
    (95.87, 89.38, 96.08),
    (0, 5, 1, 1),
    (6.79, 8.87),
  ),
  "toeplitz_d0": PaperRow(
    "Toeplitz Att. (D = 0)",
    _WHOLE,
    87.57,
    (91.63, 83.97, 84.94),
    (96.89, 89.40, 95.29),
    (0, 18, 0, 0),
    (6.94, 9.34),
  ),
  "toeplitz_d3": PaperRow(
    "Toeplitz Att. (D = 3)",
    _WHOLE,
    87.13,
    (91.65, 83.48, 83.89),
    (96.08, 89.23, 95.44),
    (0, 7, 2, 0),
    (7.83, 9.10),
  ),
  "toeplitz_d2": PaperRow(
    "Toeplitz Att. (D = 2)",
    _WHOLE,
    86.65,
    (91.44, 82.27, 83.95),
    (96.08, 88.91, 95.07),
    (0, 22, 0, 0),
    (7.47, 9.70),
  ),
  "toeplitz_d5": PaperRow(
    "Toeplitz Att. (D = 5)",
    _WHOLE,
    86.63,
    (91.94, 83.06, 81.87),
    (95.79, 88.84, 95.35),
    (0, 1, 3, 0),
    (7.16, 9.71),
  ),
  "global_attention": PaperRow(
    "Global Att.",
    _WHOLE,
    86.27,
    (92.95, 81.98, 80.43),
    (95.30, 88.55, 95.48),
    (0, 0, 0, 0),
    (7.23, 10.65),
  ),
  "full_sequence": PaperRow(
    "Full-Seq. (Bidir. GRU)",
    _WHOLE,
    87.97,
    (93.95, 83.22, 84.16),
    (95.82, 90.54, 95.51),
    (0, 4, 0, 3),
    (6.86, 9.29),
  ),
  "partial_sequence": PaperRow(
    "Partial-Seq. (Bidir. GRU)",
    _PARTIAL,
    87.52,
    (94.14, 82.54, 83.33),
    (94.78, 90.83, 95.44),
  ),
  "iv3_context": PaperRow(
    "IV3-Context",
    _PARTIAL,
    86.95,
    (92.00, 83.52, 82.64),
    (95.61, 89.24, 95.56),
  ),
  "inception_v3": PaperRow(
    "Inception-V3",
    _SINGLE,
    84.87,
    (88.83, 84.66, 78.18),
    (95.84, 85.73, 96.23),
    (3, 25, 8, 32),
    (9.82, 10.59),
  ),
  "hames": PaperRow(
    "Hames et al.",
    _SINGLE,
    84.48,
    (88.87, 80.93, 81.85),
    (93.81, 87.81, 94.78),
    (14, 59, 11, 56),
    (11.40, 11.72),
  ),
  "kaur": PaperRow(
    "Kaur et al.",
    _SINGLE,
    72.12,
    (82.44, 62.75, 66.09),
    (89.48, 79.35, 89.18),
    (12, 133, 12, 44),
    (18.20, 19.45),
  ),
}


# Learned Toeplitz weights by half-width, shallow to deep, as read off a published figure of the
# authors that shows one stack of 27 slices: approximate.
TOEPLITZ_WEIGHTS = {
  1: (0.142, 0.657, 0.201),
  7: (0.002, 0.003, 0.010, 0.020, 0.051, 0.066, 0.112, 0.127, 0.128, 0.122, 0.104, 0.086, 0.070,
      0.054, 0.046),
}  # fmt: skip


_NOT_THE_PAPERS = {"depth_alone": "Depth alone", "depth_and_end": "Depth and the stack's end"}
_REGULARISED = "_regularised"


def display_name(method: str) -> str:
  """Returns the paper's name of a method; a method that the paper lacks mostly keeps its own."""
  if method.endswith(_REGULARISED):
    return f"{display_name(method.removesuffix(_REGULARISED))}, regularised"
  return METHODS[method].name if method in METHODS else _NOT_THE_PAPERS.get(method, method)


def block_order(sees: str) -> int:
  """Returns the place of Table 1's block of this input; unknown ones come last."""
  return INPUTS.index(sees) if sees in INPUTS else len(INPUTS)
