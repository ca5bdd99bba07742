"""Random fields by hashing: cells and fibers.

They are evaluated at every voxel, so they are written to be one pass of arithmetic without tables:
hashing a lattice point costs less than fetching it.
"""

from __future__ import annotations

from collections.abc import Callable
import itertools

import jax.numpy as jnp
from jaxtyping import Array, Float, UInt32


def hash_bits(value: UInt32[Array, "..."]) -> UInt32[Array, "..."]:
  """Scrambles 32 bits (the construction of Wellons' `lowbias32`)."""
  value = (value ^ (value >> 16)) * jnp.uint32(0x7FEB352D)
  value = (value ^ (value >> 15)) * jnp.uint32(0x846CA68B)
  return value ^ (value >> 16)


def _lattice(
  point: tuple[Array, Array, Array], salt: Array
) -> tuple[list[Array], Callable[[tuple[int, int, int]], Array]]:
  """Splits a point into its lattice cell's fractions and a hash of the cell's neighbors."""
  floors = [jnp.floor(p) for p in point]
  primes = (0x9E3779B1, 0x85EBCA77, 0xC2B2AE3D)
  keys = [
    f.astype(jnp.int32).astype(jnp.uint32) * jnp.uint32(prime) for f, prime in zip(floors, primes)
  ]

  def neighbor(offset: tuple[int, int, int]) -> Array:
    parts = [
      key + jnp.uint32((prime * step) % 2**32) for key, prime, step in zip(keys, primes, offset)
    ]
    return hash_bits((parts[0] ^ parts[1] ^ parts[2]) + salt)

  return [p - f for p, f in zip(point, floors)], neighbor


def cells(
  x: Float[Array, "..."],
  y: Float[Array, "..."],
  z: Float[Array, "..."],
  salt: UInt32[Array, "..."],
) -> tuple[Float[Array, "..."], Float[Array, "..."], UInt32[Array, "..."]]:
  """Cellular noise: one random center in each lattice cell, cells are the points nearest to it.

  The lattice is hexagonal laterally: on a square one, rows of cells would show.

  Returns:
    Distance to the nearest center, to the second nearest, and the nearest cell's hash.
  """
  row = y * (2 / 3**0.5)
  fractions, neighbor = _lattice((x - 0.5 * row, row, z), salt)
  nearest = second = jnp.full_like(x, 9.0)
  identity = jnp.zeros_like(salt, shape=x.shape)
  for offset in itertools.product((-1, 0, 1), repeat=3):
    bits = neighbor(offset)
    # Centers keep off the faces of their cells: more even cells, and none beyond these 27 matters.
    along, across, vertical = (
      ((bits >> (10 * axis)) & 1023).astype(jnp.float32) * (0.7 / 1023)
      + (0.15 + offset[axis] - fractions[axis])
      for axis in range(3)
    )
    square = (along + 0.5 * across) ** 2 + 0.75 * across**2 + vertical**2
    second = jnp.minimum(second, jnp.maximum(nearest, square))
    identity = jnp.where(square < nearest, bits, identity)
    nearest = jnp.minimum(nearest, square)
  return jnp.sqrt(nearest), jnp.sqrt(second), identity


def value_noise(
  x: Float[Array, "..."],
  y: Float[Array, "..."],
  z: Float[Array, "..."],
  salt: UInt32[Array, "..."],
) -> Float[Array, "..."]:
  """Smooth noise in [0, 1]: random values on the unit lattice, cubic weights between."""
  fractions, neighbor = _lattice((x, y, z), salt)
  weights = [f * f * (3 - 2 * f) for f in fractions]
  total = 0.0
  for offset in itertools.product((0, 1), repeat=3):
    weight = 1.0
    for axis in range(3):
      weight *= weights[axis] if offset[axis] else 1 - weights[axis]
    total += weight * unit(neighbor(offset))
  return total


def unit(bits: UInt32[Array, "..."], shift: int = 8) -> Float[Array, "..."]:
  """Maps 16 of the 32 bits, from bit `shift` on, to [0, 1)."""
  return ((bits >> shift) & 0xFFFF).astype(jnp.float32) * (1 / 65536)


def normal(bits: UInt32[Array, "..."]) -> Float[Array, "..."]:
  """Maps 32 bits to about a standard normal: the sum of four bytes, tails cut at 3.5."""
  total = sum(((bits >> shift) & 255).astype(jnp.float32) for shift in (0, 8, 16, 24))
  return (total - 510.0) * (1 / 147.8)
