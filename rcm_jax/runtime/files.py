"""Files that appear whole or not at all, and digests that name what is in them."""

from __future__ import annotations

from collections.abc import Mapping
import hashlib
import json
import pathlib
from typing import Any

from tfds_rcm.disk import write_whole


def digest(spec: Mapping[str, Any]) -> str:
  """Returns twelve hexadecimal digits that name a JSON-serialisable description."""
  text = json.dumps(spec, sort_keys=True, default=list)
  return hashlib.sha256(text.encode()).hexdigest()[:12]


def file_digest(path: pathlib.Path, limit: int | None = None) -> str:
  """Returns the SHA-256 of a file, or of its first `limit` bytes."""
  sha = hashlib.sha256()
  with path.open("rb") as file:
    remaining = limit if limit is not None else path.stat().st_size
    while remaining > 0 and (block := file.read(min(1 << 20, remaining))):
      sha.update(block)
      remaining -= len(block)
  return sha.hexdigest()


def folder_digest(directory: pathlib.Path) -> str:
  """Returns twelve hexadecimal digits that name all files below a directory, and what is in them."""
  contents = {
    str(path.relative_to(directory)): file_digest(path)
    for path in sorted(directory.rglob("*"))
    if path.is_file()
  }
  return digest(contents)


def write_text(path: pathlib.Path, text: str) -> None:
  """Writes a file that is either whole or as it was before, also after a power cut."""
  write_whole(path, text.encode())
