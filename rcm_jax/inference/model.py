"""A trained model as others use it: read from a folder, then given stacks."""

from __future__ import annotations

from collections.abc import Callable
import os
import pathlib
from typing import Any

from rcm_jax.inference import bundle as bundle_lib
from rcm_jax.inference.description import Description
from rcm_jax.inference.predictor import Prediction, Predictor, StreamingPredictor
from tfds_rcm import stack_io
from tfds_rcm.errors import UserError


class Model:
  """A trained model that reads stacks; `load` makes it.

  Args:
    bundle: the model's parts.
  """

  def __init__(self, bundle: bundle_lib.Bundle):
    self._predictor = Predictor(bundle)

  @property
  def description(self) -> Description:
    """What the model is, what it was trained on and how well it did."""
    return self._predictor.bundle.description

  def __repr__(self) -> str:
    said = self.description
    return f"<Model {said.method}, {len(said.seeds)} members, trained on {said.training.dataset}>"

  def predict(
    self,
    stack: stack_io.Stack | Any,
    depth_um: Any = None,
    *,
    pixel_um: float | int | None = None,
    value_range: stack_io.Range | None = None,
    advance: Callable[[int, int], None] = lambda done, total: None,
  ) -> Prediction:
    """Finds the strata of a stack and the depths of its boundaries.

    Args:
      stack: of `read_stack`; or gray levels, uint8 [T, height, width], shallow first, or of another
        type with a `value_range`.
      depth_um: depth of each slice in µm, [T]; a `Stack` has its own.
      pixel_um: side of a pixel in µm; a `Stack` has its own, None where nobody knows.
      value_range: values that become 0 and 255.
      advance: called with the slices seen and the slices in all.

    Returns:
      Strata, boundaries with intervals, depths for mosaics and warnings.

    Raises:
      UserError: slices that the model cannot see, or too many of them; depths that are not one
        rising number a slice; a field smaller than half of the model's.

    Examples:
      >>> model = rcm_jax.load("runs/toeplitz_d1")
      >>> found = model.predict(rcm_jax.read_stack("stack.npy", step_um=3.0))
      >>> [boundary.name for boundary in found.boundaries]
      ['epidermis_dej', 'dej_dermis']
      >>> found.interpretation.strata.shape
      (5,)
      >>> found.depth_um.tolist()
      [0.0, 3.0, 6.0, 9.0, 12.0]

      Arrays do as well, with the slices' depths:

      >>> slices = np.load("stack.npy")
      >>> again = model.predict(slices, 3.0 * np.arange(len(slices)))
      >>> bool((again.interpretation.strata == found.interpretation.strata).all())
      True
    """
    if isinstance(stack, stack_io.Stack):
      if depth_um is not None:
        raise UserError("depth_um: given beside a Stack, which has its own; leave one of them out")
      slices, depth_um = stack.slices, stack.depth_um
      pixel_um = stack.pixel_um if pixel_um is None else pixel_um
    elif depth_um is None:
      raise UserError("depth_um: missing; give the depth of each slice in µm, or a Stack")
    else:
      slices = stack
    return self._predictor.predict(slices, depth_um, advance, value_range, pixel_um)

  def stream(
    self, *, pixel_um: float | int | None = None, value_range: stack_io.Range | None = None
  ) -> StreamingPredictor:
    """Begins a stack whose slices come one at a time, while it is acquired.

    All programs are compiled here, so that the first answer takes no longer than the others.

    Args:
      pixel_um: side of a pixel in µm; None where nobody knows.
      value_range: values that become 0 and 255; needed unless slices are of 8 bit.

    Returns:
      What takes slices by `add(image, depth_um)` and answers each with a prediction of the stack so
      far; `clear()` begins the next stack.

    Examples:
      >>> stream = rcm_jax.load("runs/toeplitz_d1").stream()
      >>> for image, depth_um in zip(np.load("stack.npy"), (0.0, 3.0, 6.0)):
      ...   so_far = stream.add(image, depth_um)
      >>> len(so_far.depth_um)
      3
    """
    return StreamingPredictor(self._predictor, value_range, pixel_um)


def load(path: str | os.PathLike[str]) -> Model:
  """Reads a trained model.

  Args:
    path: a run's work directory, or its folder `model`, which can be copied elsewhere.

  Raises:
    UserError: there is no model, or it is damaged or of another format.

  Examples:
    >>> rcm_jax.load("runs/toeplitz_d1")
    <Model toeplitz_d1, 2 members, trained on rcm_phantom/demo>
  """
  return Model(bundle_lib.load(pathlib.Path(path)))
