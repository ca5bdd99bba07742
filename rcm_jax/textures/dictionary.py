"""A dictionary of image patches, learned without labels (Hames et al. 2016)."""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jaxtyping import Float, UInt8
import numpy as np

from rcm_jax.arrays import ArrayLike
from rcm_jax.textures import textons
from tfds_rcm.errors import UserError

PATCH = 7  # pixels a side
NORM_REGULARIZER = (
  1.0  # gray levels added to a patch's norm; the authors' code has 1.0 when learning
)
_PATCHES_PER_SLICE = 10
_KEPT_ENERGY = 0.95
_WHITENING_REGULARIZER = 0.1
_KMEANS_ITERATIONS = 10


def normalize(
  patches: Float[np.ndarray, "patches pixels"], regularizer: float
) -> Float[np.ndarray, "patches pixels"]:
  """Subtracts each patch's mean and divides it by its norm plus the regulariser."""
  patches = patches - patches.mean(1, keepdims=True)
  return patches / (np.linalg.norm(patches, axis=1, keepdims=True) + regularizer)


def whitening(
  patches: Float[np.ndarray, "patches pixels"],
) -> Float[np.ndarray, "rank pixels"]:
  """Whitening on the eigenvectors that keep 95 % of the energy, as rows.

  With eigenvectors V and eigenvalues D of the covariance, the authors' ZCA
  matrix is `V diag((D + 0.1)^-1/2) Vᵀ`. These rows leave out the rotation by the
  first V, which no dot product between whitened patches notices. Patches are
  not centred by the mean patch before they are whitened, as in their code.

  Args:
    patches: normalised patches.

  Returns:
    Rows that take a patch to its whitened coordinates. Each sums to zero, as
    the patches do.
  """
  eigenvalues, vectors = np.linalg.eigh(np.cov(patches, rowvar=False, dtype=np.float64))
  eigenvalues, vectors = eigenvalues[::-1], vectors[:, ::-1]
  rank = 1 + int(np.argmax(np.cumsum(eigenvalues) >= _KEPT_ENERGY * eigenvalues.sum()))
  rows = vectors[:, :rank].T / np.sqrt(eigenvalues[:rank, None] + _WHITENING_REGULARIZER)
  return rows - rows.mean(1, keepdims=True)


def spherical_kmeans(
  points: Float[np.ndarray, "points rank"],
  count: int,
  rng: np.random.Generator,
  *,
  iterations: int = _KMEANS_ITERATIONS,
) -> tuple[Float[np.ndarray, "W rank"], Float[np.ndarray, " iterations"]]:
  """Clusters directions: unit centres, assignment by the largest dot product.

  Centres start at random points; an empty cluster starts again at one.

  Args:
    points: vectors of any length; a longer one weighs more.
    count: number of clusters.
    rng: source of the starting points.
    iterations: assignments and updates.

  Returns:
    Centres of norm one, and before each update the objective: minus the mean
    dot product of the points with their centres. It never rises.
  """
  lengths = np.linalg.norm(points, axis=1)
  usable = np.flatnonzero(lengths > 0)
  if len(usable) == 0:
    raise UserError("training slices are flat: no patch of them has any contrast; check the images")
  draw = lambda n: points[rng.choice(usable, n, replace=n > len(usable))].astype(np.float64)
  unit = lambda v: v / np.linalg.norm(v, axis=1, keepdims=True)
  columns = jnp.asarray(points, jnp.float32).T
  assign = jax.jit(textons.largest_dot)

  centers, objective = unit(draw(count)), []
  for _ in range(iterations):
    nearest = np.asarray(assign(columns, centers.astype(np.float32)))
    objective.append(-np.mean(np.einsum("pr,pr->p", points, centers[nearest])))
    # Summed on the host in float64: scatters on an accelerator do not repeat bit for bit.
    sums = np.stack([np.bincount(nearest, column, count) for column in points.T], 1)
    empty = np.linalg.norm(sums, axis=1) == 0
    sums[empty] = draw(int(empty.sum()))
    centers = unit(sums)
  return centers.astype(np.float32), np.asarray(objective)


def learn_words(
  slices: UInt8[ArrayLike, "slices h w"], *, count: int, factor: int, seed: int
) -> tuple[Float[np.ndarray, "rank 7 7"], Float[np.ndarray, "W rank"]]:
  """Learns a dictionary without labels.

  Args:
    slices: gray levels of training slices.
    count: W.
    factor: down-sampling of the slices.
    seed: of the random patches and of k-means.

  Returns:
    Whitening filters, and words in whitened coordinates.
  """
  patches, basis = whitened_patches(slices, factor, seed, NORM_REGULARIZER)
  return basis, spherical_kmeans(patches, count, np.random.default_rng(seed))[0]


def whitened_patches(
  slices: UInt8[ArrayLike, "slices h w"], factor: int, seed: int, regularizer: float
) -> tuple[Float[np.ndarray, "patches rank"], Float[np.ndarray, "rank 7 7"]]:
  """Draws random patches; returns them whitened, and the whitening as filters."""
  rng = np.random.default_rng(seed)
  patches = textons.random_patches(slices, _PATCHES_PER_SLICE, PATCH, rng, factor=factor)
  patches = normalize(patches.reshape(-1, PATCH * PATCH), regularizer)
  rows = whitening(patches)
  return patches @ rows.T, rows.reshape(-1, PATCH, PATCH).astype(np.float32)
