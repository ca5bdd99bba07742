"""Files that are whole or absent, and full disks told as such."""

from __future__ import annotations

from collections.abc import Iterator
import contextlib
import errno
import os
import pathlib
import shutil
import uuid

from tfds_rcm.errors import UserError

FULL = (errno.ENOSPC, errno.EDQUOT)
_FAILURES = (*FULL, errno.EFBIG, errno.EIO, errno.EROFS, errno.EACCES)


def write_whole(path: pathlib.Path, data: bytes) -> None:
  """Writes a file that is whole or as it was before, also after a power cut."""
  path.parent.mkdir(parents=True, exist_ok=True)
  partial = path.with_name(f".{uuid.uuid4().hex}.partial")  # `path.name` may be as long as allowed
  try:
    with partial.open("wb") as stream:
      stream.write(data)
      stream.flush()
      os.fsync(stream.fileno())
    os.replace(partial, path)
  finally:
    partial.unlink(missing_ok=True)


@contextlib.contextmanager
def failures_told(path: str | os.PathLike[str]) -> Iterator[None]:
  """Makes an OSError that names `path` of what a library raises when the disk fails.

  ArrayRecord raises RuntimeError, TFDS whatever it met, and neither names the place.

  Raises:
    OSError: in place of an exception that says so in its words.
  """
  try:
    yield
  except OSError as error:
    if error.errno is not None and error.filename is None:
      raise OSError(error.errno, os.strerror(error.errno), os.fspath(path)) from error
    raise
  except UserError:  # says what it is already, perhaps in the same words
    raise
  except Exception as error:
    for code in _FAILURES:
      if os.strerror(code) in str(error):
        raise OSError(code, os.strerror(code), os.fspath(path)) from error
    with contextlib.suppress(OSError):
      if shutil.disk_usage(pathlib.Path(path).parent).free == 0:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), os.fspath(path)) from error
    raise
