"""Files that are whole or as they were before, a log that only grows, and one writer at a time."""

from __future__ import annotations

from collections.abc import Iterator
import contextlib
import fcntl
import json
import os
import pathlib
from typing import Any

from tfds_rcm import disk
from tfds_rcm.errors import UserError


def write_whole(path: pathlib.Path, text: str) -> None:
  """Writes a text as it stands, line ends included; see `disk.write_whole`."""
  disk.write_whole(path, text.encode())


@contextlib.contextmanager
def held(path: pathlib.Path) -> Iterator[None]:
  """Holds a lock, which the system frees however its holder ends.

  Raises:
    UserError: another process holds it.
  """
  path.parent.mkdir(parents=True, exist_ok=True)
  with path.open("a") as stream:
    try:
      fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
      raise UserError(
        f"{path}: held by another label server of this reader; use its page, or end it first"
      ) from error
    yield


class Log:
  """JSON objects, a line each; what is appended is on the disk when it counts."""

  def __init__(self, path: pathlib.Path):
    """Opens the log for appending; a line that a killed process left unfinished is cut off."""
    self.path = path
    path.parent.mkdir(parents=True, exist_ok=True)
    self._file = os.open(path, os.O_RDWR | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o666)
    os.ftruncate(self._file, _whole_lines(path))

  @contextlib.contextmanager
  def appended(self, entry: dict[str, Any]) -> Iterator[None]:
    """Adds a line, on the disk when the block begins; takes it back if the block raises.

    Raises:
      OSError: the disk is full, or such; the log is as it was.
    """
    line = json.dumps(entry, ensure_ascii=False, separators=(",", ":")).encode() + b"\n"
    end = os.fstat(self._file).st_size
    try:
      written = 0
      while written < len(line):
        written += os.write(self._file, line[written:])
      os.fsync(self._file)
      yield
    except BaseException:
      os.ftruncate(self._file, end)
      raise

  def close(self) -> None:
    """Closes the file."""
    os.close(self._file)


def read_log(path: pathlib.Path) -> list[dict[str, Any]]:
  """The whole lines of a log, none if there is no such file.

  Raises:
    UserError: a line is damaged.
  """
  if not path.exists():
    return []
  entries = []
  lines = path.read_bytes()[: _whole_lines(path)].splitlines()
  for number, line in enumerate(lines, start=1):
    try:
      entry = json.loads(line)
    except ValueError:
      entry = None
    if not isinstance(entry, dict):
      raise UserError(f"{path}, line {number}: damaged; restore it from a copy, or remove the line")
    entries.append(entry)
  return entries


def _whole_lines(path: pathlib.Path) -> int:
  """Bytes up to the end of the last whole line."""
  return path.read_bytes().rfind(b"\n") + 1
