"""Pages of one HTML file each, with styles and programs inside: they ask nobody else for anything."""

from __future__ import annotations

from collections.abc import Mapping
import functools
import pathlib
import re

_HERE = pathlib.Path(__file__).parent


@functools.cache
def _template(name: str) -> str:
  text = (_HERE / f"{name}.html").read_text(encoding="utf-8")
  return re.sub(
    r"\{\{file:([\w.]+)\}\}", lambda at: (_HERE / at[1]).read_text(encoding="utf-8"), text
  )


def fill(name: str, parts: Mapping[str, str]) -> str:
  """A page with every {{place}} filled, in one go: what is filled in is no place to fill."""
  return re.sub(r"\{\{(\w+)\}\}", lambda place: parts[place[1]], _template(name))
