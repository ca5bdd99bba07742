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
    super().__init__(
      "".join(c if c.isprintable() or c == "\n" else ascii(c)[1:-1] for c in message)
    )


def nearest(name: str, known: Iterable[str]) -> str:
  """Returns the end of a message about an unknown name: which known one is most like it."""
  near = difflib.get_close_matches(name, list(known), n=1, cutoff=0)
  return f"; did you mean '{near[0]}'?" if near else ""
