"""Reflectance of skin at a point: what each layer looks like to a confocal microscope.

    corneum     flat bright plates, 45 µm across
    granulosum  large dark cells in a bright network (honeycomb), dark nuclei
    spinosum    the same, smaller with depth
    basal       small bright cells (cobblestone), the brighter the more melanin
    dermis      dark papillae with capillaries, then fibers of collagen

All lengths in µm. Reflectance is relative, about 0.5 in spinosum. Numbers without a source are
choices.
"""

from __future__ import annotations

import jax.numpy as jnp
from jaxtyping import Array, Float

from tfds_rcm.rcm_phantom import noise, scene

Image = Float[Array, "H W"]
_BASAL_UM = 9.0  # basal cells are 7 to 12 µm (textbook)
_MOTTLE = 0.55  # strength of the grain inside cells and between fibers


def reflectance(
  tissue: scene.Tissue, maps: Float[Array, "16 H W"], x: Image, y: Image, z: Float[Array, ""]
) -> Image:
  """Returns the reflectance at depth z, attenuation left out.

  Args:
    tissue: the stack's tissue.
    maps: its lateral maps at the points.
    x: lateral position.
    y: lateral position.
    z: depth below the window.
  """
  surface, junction, cosine, corneum, _, _, wander, warp_x, warp_y, _ = maps[:10]
  nest_z, nest_half, patch, _, _, gloss = maps[10:]
  below = z - surface
  viable = junction - surface - corneum
  relative = (below - corneum) / viable + 0.05 * wander  # 0 granular, 1 basal
  above_junction = (junction - z) * cosine + 1.6 * wander  # distance, positive in epidermis
  in_corneum = below < corneum
  in_dermis = above_junction < 0.0

  nest = nest_half - jnp.abs(z - nest_z)  # µm inside a nest, positive there
  in_nest = (nest > 0.0) & ~in_corneum
  basal = (above_junction < _BASAL_UM) & ~in_corneum
  small = basal | in_nest

  # One evaluation of cells serves all layers: each layer only sets their size. Two sizes meet in
  # a seam that sections and layers' wandering hide. Sizes in µm: textbook.
  size = 27.0 - 11.0 * jnp.clip(jnp.floor(relative * 4.0) / 3.0, 0.0, 1.0)
  size = jnp.where(small, 10.0, size) * tissue.cell_scale
  size = jnp.where(in_corneum, 46.0, size)
  size = jnp.where(in_dermis & ~in_nest, 13.0, size)
  height = jnp.where(in_corneum, 3.0, size * jnp.where(relative < 0.25, 0.6, 0.9))
  layer = size.astype(jnp.int32).astype(jnp.uint32) * jnp.uint32(0x27D4EB2F)
  cosine_0, sine_0 = tissue.fibers[0]  # any direction but the pixels'
  first, second, identity = noise.cells(
    (cosine_0 * x + sine_0 * y + warp_x) / size,
    (cosine_0 * y - sine_0 * x + warp_y) / size,
    (below + 0.3 * warp_x) / height,
    tissue.salt ^ layer,
  )
  shade = noise.unit(identity)
  edge = (second - first) * size  # about twice the distance from the cell's border
  # Organelles, grains of keratohyalin and melanosomes: mottled at 5 µm, whatever the layer.
  mottle = 2.0 * noise.value_noise(x / 4.6, y / 4.6, z / 4.6 + 0.0 * x, tissue.salt) - 1.0

  keratin = _corneum(below, shade, edge, wander, gloss)
  cells = _keratinocytes(tissue, first * size, edge, shade, relative, identity, patch)
  cobble = _basal(tissue, edge, shade, above_junction, patch)
  dermis = _dermis(tissue, maps, x, y, z, -above_junction, shade, first * size)

  # The basal layer begins and ends gradually: what is seen of it is a fuzzy rim.
  value = cells + _ramp((_BASAL_UM - 2.0 - above_junction) / 5.0) * (cobble - cells)
  value = value + _ramp(-above_junction / 4.0) * (dermis - value)
  melanocytes = (1.15 + 0.5 * tissue.melanin) * (0.45 + 0.8 * shade)
  value = value + _ramp((nest - 1.5) / 3.0) * (melanocytes - value)
  value = jnp.where(in_corneum, keratin, value)
  value = value * jnp.exp(_MOTTLE * tissue.texture * mottle)
  value = jnp.maximum(value, _dendrites(tissue, x, y, z))
  value = _tubes(tissue, value, x, y, z, below)
  return jnp.where(below < 0.0, 0.012 + 0.5 * jnp.exp(-((below / 2.0) ** 2)), value)


def _ramp(value: Array) -> Array:
  """A smooth step from 0 to 1 over [-1, 1], close to an error function."""
  value = jnp.clip(value * 0.5 + 0.5, 0.0, 1.0)
  return value * value * (3.0 - 2.0 * value)


def _corneum(below: Image, shade: Image, edge: Image, wander: Image, gloss: Image) -> Image:
  """Plates of their own brightness with thin dark borders; the surface itself mirrors.

  Dry scale, with air between its plates, saturates the detector in patches.
  """
  plates = 1.05 * (0.6 + 0.8 * shade) * (1.0 - 0.35 * jnp.exp(-((edge / 4.0) ** 2)))
  scale = 1.0 + 1.6 * jnp.clip(gloss - 1.3, 0.0, 1.0)
  return plates * scale * (1.0 + 0.15 * wander) + 0.9 * jnp.exp(-((below / 2.5) ** 2))


def _keratinocytes(
  tissue: scene.Tissue,
  radius: Image,
  edge: Image,
  shade: Image,
  relative: Image,
  identity: Array,
  patch: Image,
) -> Image:
  """Dark nuclei 8.6 ± 2.8 µm across with an edge of 3.6 µm (Gareau 2011), bright borders.

  Borders fade in places, and cells are of uneven brightness. In melanoma some cells are bright
  and round, at any level (pagetoid spread).
  """
  own = noise.unit(identity, 3)
  nucleus = 1.0 - _ramp((radius - (4.3 + 1.4 * (2.0 * own - 1.0))) / 1.8)
  border = jnp.exp(-((edge / 3.4) ** 2)) * jnp.clip(0.75 + 0.45 * patch, 0.0, 1.4)
  contrast = tissue.cell_contrast * tissue.texture * (1.0 - 0.35 * tissue.disarray)
  spread = 0.75 + 0.6 * tissue.disarray
  pattern = 1.35 * border - (0.3 + 0.5 * shade) * nucleus - 0.2 + spread * (shade - 0.5)
  pigment = 0.22 * tissue.melanin * jnp.clip(relative, 0.0, 1.0) ** 2
  value = jnp.maximum(0.42 * (1.0 + contrast * pattern) + pigment, 0.04)
  body = (1.0 - _ramp((radius - 9.0) / 2.0)) * (1.0 - 0.75 * nucleus)
  return jnp.where(own < tissue.pagetoid, jnp.maximum(value, 2.2 * body), value)


def _basal(tissue: scene.Tissue, edge: Image, shade: Image, above: Image, patch: Image) -> Image:
  """Small bright cells between darker borders, melanin above their nuclei: cobblestone."""
  peak = tissue.edged * tissue.basal_contrast * (0.36 + 0.9 * tissue.melanin)
  peak = peak * jnp.clip(1.0 + 0.3 * patch, 0.3, 1.7)
  cap = 1.0 - 0.5 * jnp.exp(-((edge / 2.8) ** 2))
  rows = 0.75 + 0.25 * _ramp((5.0 - above) / 4.0)
  return 0.34 + tissue.texture * peak * (0.5 + 0.9 * shade) * cap * rows


def _dermis(
  tissue: scene.Tissue,
  maps: Float[Array, "16 H W"],
  x: Image,
  y: Image,
  z: Float[Array, ""],
  below: Image,
  shade: Image,
  radius: Image,
) -> Image:
  """Dark papillae with a capillary each, fibers that thicken to bundles with depth.

  Each direction of collagen has its own thickness and its own regions, and between them are
  regions of hardly any structure.
  """
  wander, patch, absorption, contact = maps[6], maps[12], maps[13], maps[14]
  # Loose and dark in the papillae and along the junction, dense below the ridges.
  depth = jnp.clip((z - maps[9] + 22.0) / 34.0, 0.0, 1.0) * jnp.clip((below - 2.0) / 9.0, 0.0, 1.0)
  regions = (
    jnp.clip(0.8 + 0.6 * patch, 0.0, 1.6),
    jnp.clip(0.7 + 0.7 * absorption, 0.0, 1.6) * depth,
    jnp.clip(0.6 - 0.7 * contact + 0.3 * patch, 0.0, 1.6) * depth**2,
  )
  # Bent by the slow maps that there are: smooth noise of its own for each would cost as much as cells.
  bends = (2.5 * wander + 4.0 * patch, 3.0 * wander - 6.0 * absorption, 6.0 * patch)
  fibers = jnp.zeros_like(x)
  for family, ((cosine, sine), region, bend, (pitch, width)) in enumerate(
    zip(tissue.fibers, regions, bends, ((6.0, 1.4), (13.0, 3.0), (34.0, 7.0)))
  ):
    u = cosine * x + sine * y
    v = cosine * y - sine * x + bend
    salt = tissue.salt + jnp.uint32(2 * family + 1)
    fibers = fibers + region * _fibers(u, v, z, pitch, width, salt)
  blotches = jnp.exp(depth * (0.16 * wander + 0.12 * patch))
  ground = 0.19 + 0.12 * depth * blotches
  collagen = tissue.texture * tissue.collagen * (0.35 + 0.75 * depth) * fibers * blotches
  # Scattered bright cells: macrophages, lymphocytes.
  inflammatory = jnp.where(shade > 0.94, 1.0 - _ramp((radius - 4.0) / 1.5), 0.0)
  return ground + collagen + 0.5 * inflammatory + _capillaries(tissue, maps, z, below, shade)


def _fibers(
  u: Image, v: Image, z: Float[Array, ""], pitch: float, width: float, salt: Array
) -> Image:
  """Strands along u, in layers one pitch thick, each of its own strength and width."""
  phase = v / pitch
  strand = jnp.floor(phase)
  bits = noise.hash_bits(
    strand.astype(jnp.int32).astype(jnp.uint32) * jnp.uint32(0x9E3779B1) + salt
  )
  height = z / pitch + noise.unit(bits)  # strands of one layer are not level
  layer = jnp.floor(height)
  bits = noise.hash_bits(bits + layer.astype(jnp.int32).astype(jnp.uint32) * jnp.uint32(0x85EBCA77))
  across = (phase - strand - 0.3 - 0.4 * noise.unit(bits, 3)) * pitch
  width = width * (0.4 + 1.3 * noise.unit(bits, 6))
  vertical = 1.0 - (2.0 * (height - layer) - 1.0) ** 2
  # Strands come and go along their length.
  turn = u / (17.0 + pitch) + 40.0 * noise.unit(bits, 12)
  present = _ramp(jnp.sin(turn) + 0.5 * jnp.sin(2.6 * turn) + 0.5)
  strength = noise.unit(bits) ** 2  # few are bright
  return 1.6 * strength * vertical * present * jnp.exp(-((across / width) ** 2))


def _capillaries(
  tissue: scene.Tissue,
  maps: Float[Array, "16 H W"],
  z: Float[Array, ""],
  below: Image,
  shade: Image,
) -> Image:
  """The two limbs of a loop in each papilla: a dark lumen 8 µm wide with bright blood cells."""
  axis_x, axis_y, wander = maps[4:7]
  turn = 1.5 * wander + z / 45.0
  limb_x, limb_y = 9.0 * jnp.cos(turn), 9.0 * jnp.sin(turn)
  distance = jnp.minimum(
    jnp.hypot(axis_x - limb_x, axis_y - limb_y), jnp.hypot(axis_x + limb_x, axis_y + limb_y)
  )
  lumen = 1.0 - _ramp((distance - 4.5) / 1.6)
  wall = jnp.exp(-(((distance - 6.0) / 1.8) ** 2))
  blood = jnp.where(shade > 0.55, 0.9, -0.12)
  fades = _ramp((below - 10.0) / 6.0) * (1.0 - _ramp((below - 75.0) / 25.0))
  return 0.6 * fades * (lumen * blood + 0.22 * wall)


def _dendrites(tissue: scene.Tissue, x: Image, y: Image, z: Float[Array, ""]) -> Image:
  """Bright bodies with two long, bent processes."""
  value = jnp.zeros_like(x)
  for center_x, center_y, center_z, angle, length in tissue.dendrites:
    dx, dy = x - center_x, y - center_y
    along = jnp.cos(angle) * dx + jnp.sin(angle) * dy
    across = jnp.cos(angle) * dy - jnp.sin(angle) * dx
    across = across + along * jnp.abs(along) / (3.0 * length)
    reach = jnp.clip(1.0 - jnp.abs(along) / length, 0.0, 1.0)
    width = 1.2 + 4.0 * reach**4
    square = (across / width) ** 2 + ((z - center_z) / 6.0) ** 2
    value = jnp.maximum(value, 2.4 * (reach > 0.0) * jnp.exp(-square))
  return value


def _tubes(
  tissue: scene.Tissue, value: Image, x: Image, y: Image, z: Float[Array, ""], below: Image
) -> Image:
  """Follicles: a bright hair in a dark canal with a sheath of flat cells; ducts: a bright ring."""
  for start_x, start_y, lean_x, lean_y, radius, hair in tissue.tubes:
    distance = jnp.hypot(x - start_x - lean_x * z, y - start_y - lean_y * z) / radius
    sheath = 0.45 + 0.35 * jnp.cos(distance * radius * 1.3)  # concentric layers, 5 µm each
    shaft = jnp.where(hair > 0.5, 1.9 * (1.0 - _ramp((distance - 0.3) * 6.0)), 0.0)
    canal = 1.0 - _ramp((distance - 0.55) * 7.0)
    inside = (1.0 - _ramp((distance - 1.0) * 8.0)) * (below > 0.0)
    tube = (1.0 - canal) * jnp.where(hair > 0.5, sheath, 0.8) + canal * 0.08 + shaft
    value = value + inside * (tube - value)
  return value
