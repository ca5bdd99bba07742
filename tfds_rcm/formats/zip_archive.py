"""A zip unpacked into a folder, and nowhere else."""

from __future__ import annotations

import contextlib
import json
import os
import pathlib
import shutil
import stat
import zipfile

from tfds_rcm import disk, locks, names
from tfds_rcm.errors import UserError
from tfds_rcm.formats.raw import check_path, decoding
from tfds_rcm.staging import fingerprint

_CHUNK = 1 << 20
_MAX_DEPTH = 3  # zips in a zip
_UTF_8 = 0x800  # a member's flag; without it zipfile reads names as code page 437


def source_folder(source: pathlib.Path, cache: pathlib.Path) -> pathlib.Path:
  """The folder that holds a study: `source` itself, or where its zip is unpacked.

  A zip is unpacked once, into a folder of `cache` named after its name, size and date, by one
  process; others wait. A list of its files lies beside the folder, so that one that has lost some
  is not trusted.

  Raises:
    OSError: the folder cannot be written or the disk is full.
    UserError: if there is nothing, it is no zip, the zip cannot be trusted, or files of it have
      gone from where it was unpacked.
  """
  status = check_path(source)
  if source.is_dir():
    return source
  if not zipfile.is_zipfile(source):
    raise UserError(f"{source}: neither a folder nor a zip; unpack it and give the folder")
  key = fingerprint(source.name, status.st_size, status.st_mtime_ns)[:8]
  folder = cache / f"{names.short(source.stem)}-{key}"
  contents = folder.with_name(f"{folder.name}.json")
  with locks.held(folder.with_name(f"{folder.name}.lock")):
    if folder.is_dir():
      _check_whole(folder, contents)
      return folder
    partial = folder.with_name(f"{folder.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    try:
      unpack(source, partial)
      disk.write_whole(contents, json.dumps(_sizes(partial)).encode())
      os.replace(partial, folder)
    except BaseException:
      shutil.rmtree(partial, ignore_errors=True)
      raise
  return folder


def _sizes(folder: pathlib.Path) -> dict[str, int]:
  """Bytes of each file below a folder."""
  files = (path for path in folder.rglob("*") if path.is_file())
  return {str(path.relative_to(folder)): path.stat().st_size for path in files}


def _check_whole(folder: pathlib.Path, contents: pathlib.Path) -> None:
  """Refuses an unpacked folder that lacks files; a user may have added some, or edited a table."""
  try:
    listed = json.loads(contents.read_bytes())
  except (OSError, ValueError):
    listed = None  # an earlier version of this program unpacked it
  sizes = _sizes(folder)
  lost = [name for name in listed or () if name not in sizes]
  if listed is None or lost:
    what = f"{len(lost)} files of the zip have gone, such as {lost[0]}" if lost else "has no list"
    raise UserError(
      f"{folder}: {what}; remove this folder to have the zip unpacked again, or give it as --source"
    )


def unpack(path: pathlib.Path, folder: pathlib.Path, *, depth: int = 1) -> None:
  """Unpacks a zip, and zips in it beside themselves, into an empty folder.

  Raises:
    UserError: if it is damaged or encrypted, a member would leave the folder or is a
      link, or it holds more than the disk has room for.
    OSError: a file cannot be written.
  """
  folder.mkdir(parents=True)
  with decoding(path):
    archive = zipfile.ZipFile(path)
  with archive:
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
        inner = target.with_name(names.short(target.stem) + ".unzipped")
        unpack(target, inner, depth=depth + 1)
        target.unlink()


def _parts(member: zipfile.ZipInfo) -> tuple[str, ...]:
  """A member's path; some programs of Windows write backslashes, some of others UTF-8 unflagged."""
  name = member.filename
  if not member.flag_bits & _UTF_8:
    with contextlib.suppress(UnicodeError):
      name = name.encode("cp437").decode("utf-8")
  return pathlib.PurePosixPath(name.replace("\\", "/")).parts


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
  with decoding(path):
    packed = archive.open(member)
  # What cannot be written is not the zip's fault: only reading it is `decoding`.
  with packed, target.open("xb") as out:
    while True:
      with decoding(path):
        chunk = packed.read(_CHUNK)
      if not chunk:
        break
      left -= len(chunk)
      if left < 0:
        raise UserError(f"{path}: member {member.filename!r} is longer than it says (zip bomb?)")
      with disk.failures_told(target):
        out.write(chunk)
    with disk.failures_told(target):
      out.flush()
