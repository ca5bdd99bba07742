"""One process at a time where several would spoil each other's files.

The operating system holds the lock and frees it when its holder ends, however that ends. Who
holds it stands in the file.
"""

from __future__ import annotations

from collections.abc import Iterator
import contextlib
import datetime
import fcntl
import os
import pathlib
import socket
import sys
import time

from tfds_rcm.errors import UserError, printable

_MAX_HOLDER = 200  # bytes


@contextlib.contextmanager
def held(path: pathlib.Path, *, wait: bool = True) -> Iterator[None]:
  """Holds a lock for as long as the block lasts.

  Args:
    path: the file of the lock; made when missing, with its folder, and never removed.
    wait: whether to wait for another holder, which is said on standard error.

  Raises:
    UserError: another process holds it and `wait` is False, or this file system has no locks.
    OSError: the file cannot be written.
  """
  path.parent.mkdir(parents=True, exist_ok=True)
  descriptor = _take(path, wait)
  try:
    _sign(descriptor)
    yield
  finally:
    with contextlib.suppress(OSError):
      os.ftruncate(descriptor, 0)
    os.close(descriptor)


def _take(path: pathlib.Path, wait: bool) -> int:
  """The descriptor of the locked file."""
  said = False
  while True:
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)
    try:
      try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
      except BlockingIOError:
        if not wait:
          raise UserError(
            f"{path.parent}: another run is working here ({_holder(descriptor)}); wait for it to "
            "end or choose another directory"
          ) from None
        if not said:
          where = printable(str(path.parent))
          line = f"waiting for another run in {where} ({_holder(descriptor)})"
          print(line, file=sys.stderr, flush=True)
          said = True
        fcntl.flock(descriptor, fcntl.LOCK_EX)
      if _is_there(path, descriptor):
        return descriptor
    except UserError:
      os.close(descriptor)
      raise
    except OSError as error:
      os.close(descriptor)
      raise UserError(
        f"{path}: cannot be locked ({error.strerror}); choose a directory of another file system"
      ) from error
    except BaseException:
      os.close(descriptor)
      raise
    os.close(descriptor)  # removed while this process waited: the next one would lock another file


def _is_there(path: pathlib.Path, descriptor: int) -> bool:
  try:
    return os.path.samestat(os.stat(path), os.fstat(descriptor))
  except FileNotFoundError:
    return False


def _sign(descriptor: int) -> None:
  since = datetime.datetime.now().astimezone().isoformat(" ", "seconds")
  text = f"process {os.getpid()} on {socket.gethostname()} since {since}"
  with contextlib.suppress(OSError):  # on a full disk the lock holds all the same
    os.ftruncate(descriptor, 0)
    os.pwrite(descriptor, text.encode()[:_MAX_HOLDER], 0)


def _holder(descriptor: int) -> str:
  """Who holds the lock, in words."""
  for _ in range(10):
    if text := os.pread(descriptor, _MAX_HOLDER, 0).decode(errors="replace"):
      return printable(text)
    time.sleep(0.02)  # it has the lock and has not signed yet
  return "it has not said which"
