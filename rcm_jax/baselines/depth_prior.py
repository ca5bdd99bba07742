"""What a stratum can be told by without an image: where a slice lies in its stack.

Not in the paper. Whatever method sees a whole stack knows the depth of its slices and where the
stack ends, so this is the floor that its accuracy stands on.
"""

from __future__ import annotations

from jaxtyping import Float, Int
import numpy as np
from sklearn.ensemble import HistGradientBoostingClassifier
from threadpoolctl import threadpool_limits

from tfds_rcm.errors import UserError

# What each of the two methods sees, by its name.
INPUTS = {"depth_alone": False, "depth_and_end": True}


def features(
  depth_um: Float[np.ndarray, " slices"], stack: Int[np.ndarray, " slices"], *, end: bool
) -> Float[np.ndarray, "slices F"]:
  """Returns each slice's depth in µm, and how far above its stack's last slice it lies.

  Args:
    depth_um: of slices, stack after stack.
    stack: index of each slice's stack.
    end: whether the second is seen, too.
  """
  columns = [depth_um]
  if end:
    last = np.full(stack.max() + 1, -np.inf)
    np.maximum.at(last, stack, depth_um)
    columns.append(last[stack] - depth_um)
  return np.stack(columns, axis=1)


def fit(
  seen: Float[np.ndarray, "slices F"],
  labels: Int[np.ndarray, " slices"],
  *,
  seed: int,
  num_strata: int = 3,
) -> HistGradientBoostingClassifier:
  """Boosts small trees on training slices.

  Args:
    seen: see `features`.
    labels: strata.
    seed: of the boosting.
    num_strata: that the labels tell apart; the paper's are 3.

  Raises:
    UserError: a stratum is missing.
  """
  missing = set(range(num_strata)) - set(np.unique(labels).tolist())
  if missing:
    raise UserError(f"training: no slice of stratum {min(missing)}; every stratum needs some")
  # Small and few: two columns hold little to learn.
  model = HistGradientBoostingClassifier(max_leaf_nodes=8, max_iter=60, random_state=seed)
  with threadpool_limits(1):  # several threads add up in no fixed order
    return model.fit(seen, labels)
