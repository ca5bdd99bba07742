"""A zip unpacked into a folder, and nowhere else."""

from __future__ import annotations

import os
import pathlib
import shutil
import stat
import zipfile

from tfds_rcm.errors import UserError
from tfds_rcm.formats.raw import check_path, decoding
from tfds_rcm.staging import fingerprint

_CHUNK = 1 << 20
_MAX_DEPTH = 3  # zips in a zip


def source_folder(source: pathlib.Path, cache: pathlib.Path) -> pathlib.Path:
  """The folder that holds a study: `source` itself, or where its zip is unpacked.

  A zip is unpacked once, into a folder of `cache` named after its name, size and date.

  Raises:
    UserError: if there is nothing, it is no zip, or the zip cannot be trusted.
  """
  status = check_path(source)
  if source.is_dir():
    return source
  if not zipfile.is_zipfile(source):
    raise UserError(f"{source}: neither a folder nor a zip; unpack it and give the folder")
  name = f"{source.stem}-{fingerprint(source.name, status.st_size, status.st_mtime_ns)[:8]}"
  folder = cache / name
  if not folder.is_dir():
    partial = cache / f"{name}.partial"
    shutil.rmtree(partial, ignore_errors=True)
    try:
      unpack(source, partial)
    except BaseException:
      shutil.rmtree(partial, ignore_errors=True)
      raise
    os.replace(partial, folder)
  return folder


def unpack(path: pathlib.Path, folder: pathlib.Path, *, depth: int = 1) -> None:
  """Unpacks a zip, and zips in it beside themselves, into an empty folder.

  Raises:
    UserError: if it is damaged or encrypted, a member would leave the folder or is a
      link, or it holds more than the disk has room for.
  """
  folder.mkdir(parents=True)
  with decoding(path), zipfile.ZipFile(path) as archive:
    members = [m for m in archive.infolist() if not m.is_dir()]
    for member in members:
      _check_member(path, member)
    needed, free = sum(m.file_size for m in members), shutil.disk_usage(folder).free
    if needed > free:
      raise UserError(
        f"{path}: holds {needed:,} bytes unpacked, the disk has {free:,} left; make room, or give "
        "another data_dir"
      )
    for member in members:
      target = folder.joinpath(*_parts(member))
      target.parent.mkdir(parents=True, exist_ok=True)
      _extract(path, archive, member, target)
      if target.suffix.lower() == ".zip" and zipfile.is_zipfile(target) and depth < _MAX_DEPTH:
        unpack(target, target.with_name(target.stem + ".unzipped"), depth=depth + 1)
        target.unlink()


def _parts(member: zipfile.ZipInfo) -> tuple[str, ...]:
  """A member's path; some programs of Windows write backslashes."""
  return pathlib.PurePosixPath(member.filename.replace("\\", "/")).parts


def _check_member(path: pathlib.Path, member: zipfile.ZipInfo) -> None:
  name, parts = member.filename, _parts(member)
  if not parts or ".." in parts or parts[0] == "/" or ":" in parts[0]:
    raise UserError(f"{path}: member {name!r} leads out of the folder; do not trust this zip")
  if stat.S_ISLNK(member.external_attr >> 16):
    raise UserError(f"{path}: member {name!r} is a symbolic link; zip the files themselves")
  if member.flag_bits & 1:
    raise UserError(f"{path}: is encrypted; unpack it and give the folder")


def _extract(
  path: pathlib.Path, archive: zipfile.ZipFile, member: zipfile.ZipInfo, target: pathlib.Path
) -> None:
  left = member.file_size
  with archive.open(member) as packed, target.open("xb") as out:
    while chunk := packed.read(_CHUNK):
      left -= len(chunk)
      if left < 0:
        raise UserError(f"{path}: member {member.filename!r} is longer than it says (zip bomb?)")
      out.write(chunk)
