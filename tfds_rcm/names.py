"""Names of files as file systems allow them, and as tables spell them.

A name is bytes. Windows and old zips left names that are no UTF-8; macOS writes ü as u and
dots; a table's cell says none of this.
"""

from __future__ import annotations

import codecs
import contextlib
import hashlib
import os
import pathlib
import unicodedata

_MAX_BYTES = 200  # of a name to which something is added; file systems allow 255


def _as_latin_1(error: UnicodeError) -> tuple[str, int]:
  return error.object[error.start : error.end].decode("latin-1"), error.end


codecs.register_error("as-latin-1", _as_latin_1)


def decode(data: bytes) -> str:
  """Text of bytes in UTF-8, in Latin-1 where they are none."""
  return data.decode("utf-8", errors="as-latin-1")


def readable(name: str | os.PathLike[str]) -> str:
  """A file's name as text in one line, such as a table can hold."""
  try:
    return " ".join(decode(os.fsencode(name)).split())
  except UnicodeEncodeError:  # no name of a file: this system encodes names otherwise
    return " ".join(os.fspath(name).split())


def keys(text: str) -> set[str]:
  """What names are compared by: two names that share one of these may mean the same file."""
  readings = [readable(text)]
  with contextlib.suppress(UnicodeError):
    readings.append(text.encode("latin-1").decode("cp437"))  # what zip makes of Latin-1
  return {unicodedata.normalize("NFC", reading) for reading in readings}


def find(root: pathlib.Path, text: str) -> pathlib.Path:
  """The file or folder that a table's cell names, below `root` or absolute.

  Taken as it is written if that exists, else what reads alike. Without either, the path that
  was looked for.
  """
  one_line = " ".join(text.splitlines()).strip().replace("\\", "/")
  for written in dict.fromkeys((text, text.strip(), one_line)):
    path = root
    for part in pathlib.PurePath(written).parts:
      path = _child(path, part)
    if os.path.lexists(path):
      break
  return path


def _child(folder: pathlib.Path, part: str) -> pathlib.Path:
  path = folder / part
  if not os.path.lexists(path):
    with contextlib.suppress(OSError):
      alike = [name for name in os.listdir(folder) if keys(part) & keys(name)]
      if len(alike) == 1:
        return folder / alike[0]
  return path


def identity(path: pathlib.Path) -> str:
  """Equal for two paths of one file, links followed."""
  try:
    return os.path.realpath(path)
  except (OSError, ValueError):  # no name that this system can have
    return str(path)


def short(name: str) -> str:
  """A printable name that leaves room for a suffix; long ones end in a hash of the whole."""
  text = readable(name)
  if len(text.encode()) <= _MAX_BYTES:
    return text
  digest = hashlib.sha256(os.fsencode(name)).hexdigest()[:8]
  return f"{text.encode()[:_MAX_BYTES].decode(errors='ignore')}-{digest}"
