"""Names of files as file systems allow them, and as tables spell them.

A name is bytes. Windows and old zips left names that are no UTF-8; macOS writes ü as u and
dots; a table's cell says none of this.
"""

from __future__ import annotations

import codecs
from collections.abc import Iterator
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
  return " ".join(decode(os.fsencode(name)).split())


def spellings(text: str) -> Iterator[str]:
  """What a file may be called that a table calls `text`."""
  yield text
  yield from (unicodedata.normalize(form, text) for form in ("NFC", "NFD"))
  try:
    data = text.encode("latin-1")
  except UnicodeEncodeError:
    return
  yield os.fsdecode(data)
  yield data.decode("cp437")  # what zip makes of a name in Latin-1


def find(root: pathlib.Path, text: str) -> pathlib.Path:
  """The file or folder that a table's cell names, below `root` or absolute.

  Taken as it is written if that exists, else with any spelling that does.
  """
  one_line = " ".join(text.splitlines()).strip().replace("\\", "/")
  for written in dict.fromkeys((text, text.strip(), one_line)):
    path = root
    for part in pathlib.PurePath(written).parts:
      near = (path / spelled for spelled in spellings(part))
      path = next(filter(os.path.lexists, near), path / part)
    if os.path.lexists(path):
      break
  return path


def short(name: str) -> str:
  """A printable name that leaves room for a suffix; long ones end in a hash of the whole."""
  text = readable(name)
  if len(text.encode()) <= _MAX_BYTES:
    return text
  digest = hashlib.sha256(os.fsencode(name)).hexdigest()[:8]
  return f"{text.encode()[:_MAX_BYTES].decode(errors='ignore')}-{digest}"
