"""The label page as a user has it: its server as a process, its window by keys and mouse."""

from __future__ import annotations

import collections
import csv
import json
import os
import pathlib
import signal
import subprocess
import sys

ROOT = pathlib.Path(__file__).resolve().parent.parent
SAVED = "document.querySelector('#saved').textContent === 'saved'"


class Server:
  """`python -m tfds_rcm.label`, as a user runs it."""

  def __init__(self, study, reader, *options):
    self.process = subprocess.Popen(
      [
        sys.executable, "-m", "tfds_rcm.label", f"--source={study}", f"--reader={reader}",
        "--no_browser", *options,
      ],
      stdout=subprocess.PIPE,
      text=True,
      cwd=ROOT,
    )  # fmt: skip
    self.said = []
    for line in self.process.stdout:
      self.said.append(line)
      if line.startswith("page"):
        self.address = line.split()[1]
        return
    raise RuntimeError("".join(self.said))

  def kill(self, how=signal.SIGKILL):
    os.kill(self.process.pid, how)
    self.process.wait(10)
    self.process.stdout.close()


def labels_of(path):
  found = collections.defaultdict(list)
  with path.open(newline="") as stream:
    for row in csv.DictReader(stream):
      found[row["stack_id"]].append(row["label"])
  return found


def events(path):
  return [json.loads(line) for line in path.read_text().splitlines()]


def ready(page, number=1):
  page.wait(f"document.querySelector('#title').textContent.startsWith('Stack {number} of')")
  page.wait(
    "document.querySelector('#stage').dataset.drawn === document.querySelector('#slider').value"
  )


def now(page):
  """The slice in view."""
  return int(page.value("document.querySelector('#slider').value"))


def go_to(page, t):
  for _ in range(abs(t - now(page))):
    page.key("ArrowDown" if t > now(page) else "ArrowUp")
  assert now(page) == t


def edges(labels):
  """First slices of DEJ and dermis; as many as there are slices where not reached."""
  return [int((labels < stratum).sum()) for stratum in (2, 3)]


def at(page, t, count):
  """Where in the bar slice t begins."""
  x, y, height = page.value(
    "(() => { const b = document.querySelector('.strip.own').getBoundingClientRect();"
    " return [b.x + b.width / 2, b.y, b.height]; })()"
  )
  return x, y + height * t / count


def label_by_keys(page, labels):
  for key, edge in zip("jd", edges(labels)):
    if edge == len(labels):
      page.key(key, shift=True)
    else:
      go_to(page, edge)
      page.key(key)


def label_by_dragging(page, labels, drag):
  for i, edge in zip((2, 1), reversed(edges(labels))):
    drag(page.middle(f'.handle[data-i="{i}"]'), at(page, edge, len(labels)))
