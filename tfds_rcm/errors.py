"""The one exception that means: the input is at fault, not the program."""

from __future__ import annotations

from collections.abc import Iterable
import difflib


class UserError(ValueError):
  """Bad input, told in one line: what and where, what was expected, what to do.

  Command lines print the message and exit with code 1, without a traceback. What a damaged
  file brings into it is made printable.
  """

  def __init__(self, message: str):
    # A list of details goes on in indented lines; other line ends come from names of files.
    super().__init__("\n  ".join(printable(line) for line in message.split("\n  ")))


def printable(text: str) -> str:
  """Text for one line of any terminal and any UTF-8 file.

  A file's name may hold line ends, and bytes that are no UTF-8, which Python keeps as lone
  surrogates that cannot be written. They come out as in Python's literals.
  """
  text = "".join(f"\\x{ord(c) - 0xDC00:02x}" if "\udc80" <= c <= "\udcff" else c for c in text)
  return "".join(c if c.isprintable() else ascii(c)[1:-1] for c in text)


def nearest(name: str, known: Iterable[str]) -> str:
  """Returns the end of a message about an unknown name: which known one is most like it."""
  near = difflib.get_close_matches(name, list(known), n=1, cutoff=0)
  return f"; did you mean '{near[0]}'?" if near else ""


def check_one_of(place: str, value: object, known: Iterable[str]) -> None:
  """Raises UserError where a value is none of those that are known.

  Args:
    place: where it was given, such as "config.head.cell".
    value: what was given.
    known: what could have been.
  """
  known = tuple(known)
  if value not in known:
    raise UserError(f"{place}: '{value}' is none of {', '.join(known)}{nearest(str(value), known)}")
