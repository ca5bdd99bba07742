"""What mkdocs does not do by itself: pages that lie outside docs/, with links as the site needs them."""

from __future__ import annotations

import pathlib
import re

from mkdocs.structure.files import File

_ROOT = pathlib.Path(__file__).resolve().parent.parent
# File at the top → page.
_OUTSIDE = {
  "README.md": "index.md",
  "CONTRIBUTING.md": "CONTRIBUTING.md",
  "CHANGELOG.md": "CHANGELOG.md",
}


def on_files(files, config):
  """Adds the pages at the top of the repository; the first one is the site's."""
  for name, page in _OUTSIDE.items():
    text = re.sub(r"\]\(docs/", "](", (_ROOT / name).read_text(encoding="utf-8"))
    files.append(File.generated(config, page, content=text))
  return files


def on_page_markdown(markdown, page, config, files):
  """Turns links to those pages into links within the site."""
  for name, to in _OUTSIDE.items():
    markdown = markdown.replace(f"](../{name}", f"]({to}")
  return markdown
