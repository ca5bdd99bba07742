"""Every way in which TIFF, PNG, BMP and JPEG store an image: the right gray levels or one line."""

import struct

import imagecodecs
import numpy as np
from PIL import Image
import pytest
import tifffile

from tests.studies import SIDE, volume, write_images
from tfds_rcm import stack_io
from tfds_rcm.errors import UserError

WHITE_IS_ZERO, BLACK_IS_ZERO, RGB, PALETTE, MASK, CMYK, YCBCR, CIELAB, CFA = (
  0,
  1,
  2,
  3,
  4,
  5,
  6,
  8,
  32803,
)
HEIGHT, WIDTH = 5, 7
_TYPES = {1: "B", 3: "H", 4: "I"}


def raw_tiff(path, pages, end="<"):
  """A TIFF byte by byte: `pages` are pairs of tags (number: (type, values)) and strips."""
  data = bytearray(b"II*\0" if end == "<" else b"MM\0*") + bytes(4)
  link = 4
  for tags, strips in pages:
    offsets = []
    for strip in strips:
      offsets.append(len(data))
      data += strip + b"\0" * (len(strip) % 2)
    tags = tags | {273: (4, offsets), 279: (4, [len(strip) for strip in strips])}
    entries = b""
    for number, (kind, values) in sorted(tags.items()):
      packed = struct.pack(f"{end}{len(values)}{_TYPES[kind]}", *values)
      if len(packed) > 4:
        where = len(data)
        data += packed + b"\0" * (len(packed) % 2)
        packed = struct.pack(end + "I", where)
      entries += struct.pack(end + "HHI", number, kind, len(values)) + packed.ljust(4, b"\0")
    data[link : link + 4] = struct.pack(end + "I", len(data))
    data += struct.pack(end + "H", len(tags)) + entries
    link = len(data)
    data += bytes(4)
  path.write_bytes(data)
  return path


def packed(values, bits, end="<"):
  """Rows of whole numbers, each padded to a byte."""
  if bits >= 8 and bits % 8 == 0:
    return values.astype(f"{end}u{bits // 8}").tobytes()
  rows = values.reshape(len(values), -1)
  digits = rows[..., None].astype(np.uint16) >> np.arange(bits - 1, -1, -1) & 1
  return np.packbits(digits.reshape(len(rows), -1).astype(np.uint8), axis=1).tobytes()


def page(values, bits, kind, *, planar=False, end="<", data=None, **more):
  samples = values.shape[2] if values.ndim == 3 else 1
  tags = {
    256: (4, [values.shape[1]]),
    257: (4, [values.shape[0]]),
    258: (3, [bits] * samples),
    259: (3, [1]),
    262: (3, [kind]),
    277: (3, [samples]),
    278: (4, [values.shape[0]]),
    284: (3, [2 if planar else 1]),
  } | {int(number.removeprefix("t")): value for number, value in more.items()}
  planes = [values[..., c] for c in range(samples)] if planar else [values]
  return tags, data or [packed(plane, bits, end) for plane in planes]


def levels(bits, shape=(HEIGHT, WIDTH)):
  top = (1 << bits) - 1
  values = np.random.default_rng(bits).integers(0, top, shape, dtype=np.uint64, endpoint=True)
  values.flat[0], values.flat[1] = 0, top
  return values


def error(path, **kwargs):
  with pytest.raises(UserError) as raised:
    stack_io.read_stack(path, step_um=3, **kwargs)
  message = str(raised.value)
  assert "\n" not in message
  assert path.name in message
  return message


@pytest.mark.parametrize("end", "<>")
@pytest.mark.parametrize("bits", [1, 2, 4, 6, 8, 12, 16, 32])
@pytest.mark.parametrize("kind", [WHITE_IS_ZERO, BLACK_IS_ZERO])
def test_gray_tiff_of_any_depth_is_white_where_it_should_be(tmp_path, kind, bits, end):
  values, top = levels(bits), (1 << bits) - 1
  expected = np.rint(values * (255 / top))
  expected = 255 - expected if kind == WHITE_IS_ZERO else expected
  path = raw_tiff(tmp_path / "s.tif", [page(values, bits, kind, end=end)] * 2, end)
  (tmp_path / "folder").mkdir()
  for name in ("1.tif", "2.tif"):
    raw_tiff(tmp_path / "folder" / name, [page(values, bits, kind, end=end)], end)
  ends = {"value_range": (0, top)} if bits > 8 else {}
  for stack in (path, tmp_path / "folder"):
    slices = stack_io.read_stack(stack, step_um=3, **ends).slices
    assert np.abs(slices[1] - expected).max() <= (0 if bits <= 8 else 1)


def test_files_of_one_stack_may_differ_in_the_order_of_bytes(tmp_path):
  values = levels(16)
  for name, end in enumerate("<>"):
    raw_tiff(tmp_path / f"{name}.tif", [page(values, 16, BLACK_IS_ZERO, end=end)], end)
  slices = stack_io.read_stack(tmp_path, step_um=3, value_range=(0, 65535)).slices
  assert np.abs(slices - values / 257).max() <= 1


def test_white_is_zero_in_floating_point_and_in_a_stack_of_both(tmp_path):
  values = np.linspace(0, 1, HEIGHT * WIDTH).reshape(HEIGHT, WIDTH).astype("<f4")
  white = page(values, 32, WHITE_IS_ZERO, data=[values.tobytes()], t339=(3, [3]))
  path = raw_tiff(tmp_path / "s.tif", [white])
  slices = stack_io.read_stack(path, step_um=3, value_range=(0, 1)).slices[0]
  assert np.abs(slices - 255 * (1 - values)).max() <= 1
  black = page(values, 32, BLACK_IS_ZERO, data=[values.tobytes()], t339=(3, [3]))
  assert "0 is white in some" in error(raw_tiff(tmp_path / "both.tif", [white, black]))
  raw_tiff(tmp_path / "0.tif", [white])
  raw_tiff(tmp_path / "1.tif", [black])
  (tmp_path / "s.tif").unlink()
  (tmp_path / "both.tif").unlink()
  with pytest.raises(UserError, match=r"1.tif: 0 is white in some slices"):
    stack_io.read_stack(tmp_path, step_um=3)


@pytest.mark.parametrize("planar", [False, True])
@pytest.mark.parametrize("bits", [8, 16])
def test_rgb_tiff_is_read_by_luma(tmp_path, bits, planar):
  values, top = levels(bits, (HEIGHT, WIDTH, 3)), (1 << bits) - 1
  expected = values @ np.array([0.299, 0.587, 0.114]) * (255 / top)
  path = raw_tiff(tmp_path / "s.tif", [page(values, bits, RGB, planar=planar)] * 2)
  ends = {"value_range": (0, top)} if bits > 8 else {}
  slices = stack_io.read_stack(path, step_um=3, **ends).slices
  assert np.abs(slices[1] - expected).max() <= 1
  green = stack_io.read_stack(path, step_um=3, channel=2, **ends).slices[1]
  assert np.abs(green - values[..., 1] * (255 / top)).max() <= 1


def _color_map(bits, seed, scale=257):
  colours = np.random.default_rng(seed).integers(0, 256, (3, 1 << bits))
  return colours, (3, (colours * scale).reshape(-1).tolist())


@pytest.mark.parametrize("bits", [1, 2, 4, 8])
def test_each_page_of_a_palette_tiff_has_its_own_colours(tmp_path, bits):
  values = levels(bits)
  (first, first_tag), (second, second_tag) = _color_map(bits, 1), _color_map(bits, 2)
  _, narrow = _color_map(bits, 2, scale=1)  # written with 8 bits a colour
  path = raw_tiff(
    tmp_path / "s.tif",
    [page(values, bits, PALETTE, t320=tag) for tag in (first_tag, second_tag, narrow)],
  )
  slices = stack_io.read_stack(path, step_um=3).slices
  for found, colours in zip(slices, (first, second, second)):
    luma = np.tensordot([0.299, 0.587, 0.114], colours[:, values.astype(int)], 1)
    assert np.abs(found - luma).max() <= 0.51
  raw_tiff(path, [page(values, bits, PALETTE, t320=first_tag), page(values, bits, PALETTE)])
  assert "page 1: a palette image without its ColorMap" in error(path)


@pytest.mark.parametrize("kind", [MASK, CMYK, YCBCR, CIELAB, CFA, 9, 10, 32844])
def test_colours_that_have_no_gray_of_their_own_are_refused(tmp_path, kind):
  shape = {MASK: (), CMYK: (4,), CFA: (), 32844: ()}.get(kind, (3,))
  path = raw_tiff(tmp_path / "s.tif", [page(levels(8, (HEIGHT, WIDTH, *shape)), 8, kind)] * 2)
  assert "page 0: its colours are stored as" in error(path)


def test_previews_and_masks_beside_slices_are_passed_over(tmp_path):
  values = levels(8)
  preview = page(values[:3, :3], 8, BLACK_IS_ZERO, t254=(4, [1]))
  mask = page(levels(1), 1, MASK, t254=(4, [4]))
  path = raw_tiff(tmp_path / "s.tif", [preview, page(values, 8, BLACK_IS_ZERO), mask])
  np.testing.assert_array_equal(stack_io.read_stack(path, step_um=3).slices, values[None])
  assert "no slices" in error(raw_tiff(path, [preview]))


TURNED = {
  1: lambda a: a,
  2: lambda a: a[:, ::-1],
  3: lambda a: a[::-1, ::-1],
  4: lambda a: a[::-1],
  5: lambda a: a.T,
  6: lambda a: a.T[:, ::-1],
  7: lambda a: a.T[::-1, ::-1],
  8: lambda a: a.T[::-1],
}


@pytest.mark.parametrize("orientation", range(10))
def test_orientation_is_obeyed_by_tiff_png_and_jpeg(tmp_path, orientation):
  square = levels(8, (8, 8)).astype(np.uint8)
  expected = TURNED.get(orientation, TURNED[1])(square)
  path = raw_tiff(tmp_path / "s.tif", [page(square, 8, BLACK_IS_ZERO, t274=(3, [orientation]))])
  np.testing.assert_array_equal(stack_io.read_stack(path, step_um=3).slices[0], expected)
  exif = Image.Exif()
  exif[274] = orientation
  Image.fromarray(square).save(tmp_path / "s.png", exif=exif)
  found = stack_io.read_stack(tmp_path / "s.png", step_um=3).slices[0]
  np.testing.assert_array_equal(found, expected)
  ramp = np.kron(np.arange(4, dtype=np.uint8).reshape(2, 2) * 80, np.ones((8, 8), np.uint8))
  Image.fromarray(ramp).save(tmp_path / "s.jpg", exif=exif, quality=100)
  found = stack_io.read_stack(tmp_path / "s.jpg", step_um=3).slices[0]
  assert np.abs(found - TURNED.get(orientation, TURNED[1])(ramp).astype(int)).max() <= 2


PACKED = ("lzw", "zlib", "packbits", "lzma", "zstd", "jpeg2000", "jpegxr")


@pytest.mark.parametrize(
  ("compression", "dtype"),
  [(name, dtype) for name in PACKED for dtype in (np.uint8, np.uint16)]
  + [("jpeg", np.uint8), ("webp", np.uint8)],
)
def test_packed_tiff(tmp_path, compression, dtype):
  slices = volume(3).astype(dtype) * (257 if dtype == np.uint16 else 1)
  arguments = {"lossless": True} if compression == "webp" else {}
  slices = np.stack([slices] * 3, -1) if compression == "webp" else slices
  tifffile.imwrite(
    tmp_path / "s.tif",
    slices,
    photometric="rgb" if compression == "webp" else "minisblack",
    compression=compression,
    compressionargs=arguments | ({"level": 100} if compression == "jpeg" else {}),
  )
  ends = {"value_range": (0, 65535)} if dtype == np.uint16 else {}
  found = stack_io.read_stack(tmp_path / "s.tif", step_um=3, **ends).slices
  assert np.abs(found - volume(3).astype(int)).max() <= (4 if compression == "jpeg" else 1)


def test_ycbcr_that_jpeg_packed(tmp_path):
  gray = np.kron(volume(1, 1)[0, :2, :2], np.ones((8, 8), np.uint8))
  Image.fromarray(gray).convert("YCbCr").save(tmp_path / "s.tif", compression="jpeg", quality=100)
  assert (
    np.abs(stack_io.read_stack(tmp_path / "s.tif", step_um=3).slices[0] - gray.astype(int)).max()
    <= 3
  )


@pytest.mark.parametrize("mode", ["LA", "RGBA", "PA", "P"])
@pytest.mark.parametrize("suffix", ["png", "tif"])
def test_transparency_that_varies_is_refused(tmp_path, mode, suffix):
  gray = volume(2, 1)[0]
  for name, alpha in (("same", np.full_like(gray, 90)), ("varied", gray)):
    image = Image.merge("LA", [Image.fromarray(gray), Image.fromarray(alpha)])
    if mode == "P":
      image = Image.fromarray(gray)
      image.putpalette(np.repeat(np.arange(256, dtype=np.uint8), 3).tobytes())
      transparency = bytes([90] * 256 if name == "same" else range(256))
      options = {"transparency": transparency} if suffix == "png" else {}
    else:
      image, options = image.convert(mode), {}
    if mode == "PA":
      image.putalpha(Image.fromarray(alpha))  # which Pillow's conversion loses
    if mode == "PA" and suffix == "png":
      continue  # Pillow cannot write it
    path = tmp_path / f"{name}.{suffix}"
    image.save(path, **options)
    if name == "same" or (mode, suffix) == ("P", "tif"):
      np.testing.assert_array_equal(stack_io.read_stack(path, step_um=3).slices[0], gray)
    else:
      assert "transparent in part" in error(path)


@pytest.mark.parametrize("colours", [2, 3, 4])
def test_sixteen_bits_of_a_coloured_png_are_all_read(tmp_path, colours):
  gray = levels(12, (SIDE, SIDE)).astype(np.uint16)
  pixels = np.stack([gray] * colours, -1)
  if colours in (2, 4):
    pixels[..., -1] = 65535
  (tmp_path / "s.png").write_bytes(imagecodecs.png_encode(pixels))
  found = stack_io.read_stack(tmp_path / "s.png", step_um=3, value_range=(0, 4095)).slices[0]
  assert np.abs(found - gray * (255 / 4095)).max() <= 1


@pytest.mark.parametrize("bits", [1, 2, 4])
def test_png_and_bmp_of_few_bits(tmp_path, bits):
  values = levels(bits, (8, 8)).astype(np.uint8)
  expected = values * (255 // ((1 << bits) - 1))
  top = (1 << bits) - 1
  image = Image.fromarray(values)
  image.putpalette([c for v in range(top + 1) for c in [255 - v * (255 // top)] * 3])  # reversed
  image.save(tmp_path / "p.png", bits=bits)
  np.testing.assert_array_equal(
    stack_io.read_stack(tmp_path / "p.png", step_um=3).slices[0], 255 - expected
  )
  rows = packed(values, bits)
  stride = -(-len(rows) // 8 // 4) * 4
  body = b"".join(
    rows[i * len(rows) // 8 : (i + 1) * len(rows) // 8].ljust(stride, b"\0")
    for i in range(7, -1, -1)
  )
  colours = b"".join(bytes([255 - v * (255 // top)] * 3 + [0]) for v in range(top + 1))
  header = struct.pack("<IiiHHIIiiII", 40, 8, 8, 1, bits, 0, 0, 0, 0, top + 1, 0)
  start = 14 + len(header) + len(colours)
  if bits != 2:  # which BMP does not know
    (tmp_path / "b.bmp").write_bytes(
      struct.pack("<2sIHHI", b"BM", start + len(body), 0, 0, start) + header + colours + body
    )
    np.testing.assert_array_equal(
      stack_io.read_stack(tmp_path / "b.bmp", step_um=3).slices[0], 255 - expected
    )
  if bits == 1:
    Image.fromarray(expected).convert("1").save(tmp_path / "g.png")
    np.testing.assert_array_equal(
      stack_io.read_stack(tmp_path / "g.png", step_um=3).slices[0], expected
    )


def test_inks_and_files_of_several_images_among_slices_are_refused(tmp_path):
  slices = volume(5)
  Image.fromarray(slices[0]).convert("CMYK").save(tmp_path / "c.jpg")
  assert "stored as CMYK" in error(tmp_path / "c.jpg")
  folder = write_images(tmp_path / "s", slices, "png")
  frames = [Image.fromarray(pixels) for pixels in slices]
  frames[2].save(folder / "v0000002.png", save_all=True, append_images=frames[3:5])
  with pytest.raises(UserError, match=r"v0000002.png: holds 3 images, expected one slice"):
    stack_io.read_stack(folder, step_um=3)
  frames[2].save(folder / "v0000002.png", format="GIF", save_all=True, append_images=frames[3:])
  with pytest.raises(UserError, match=r"v0000002.png: cannot be decoded"):
    stack_io.read_stack(folder, step_um=3)
  folder = write_images(tmp_path / "t", slices, "tif")
  frames[2].save(folder / "v0000002.tif", save_all=True, append_images=frames[3:5])
  with pytest.raises(UserError, match=r"v0000002.tif: has 3 pages"):
    stack_io.read_stack(folder, step_um=3)
  folder = write_images(tmp_path / "j", slices, "jpg")
  frames[2].save(folder / "v0000002.jpg", "MPO", save_all=True, append_images=frames[3:5])
  with pytest.raises(UserError, match=r"v0000002.jpg: holds 3 images"):
    stack_io.read_stack(folder, step_um=3)
