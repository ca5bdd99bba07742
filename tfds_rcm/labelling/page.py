"""The page: one HTML file with its styles and its program inside, which asks nobody else for anything."""

from __future__ import annotations

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


def label_page(nonce: str) -> str:
  """The label page, whose styles and program carry a nonce for the content security policy."""
  return _template("label").replace("{{nonce}}", nonce)
