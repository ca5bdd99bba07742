"""A reader labels phantom stacks in a real browser, by keys, mouse and touch alone."""

from __future__ import annotations

import pathlib
import signal
import time

import numpy as np
from PIL import Image
import pytest

from tests import browser, studies
from tests.label_journal_test import prediction
from tests.label_window import (
  SAVED,
  Server,
  at,
  events,
  go_to,
  label_by_dragging,
  label_by_keys,
  labels_of,
  now,
  ready,
)
from tfds_rcm.rcm_phantom import anatomy, annotators, render, spec
from tfds_rcm.study.annotations import STRATA

pytestmark = pytest.mark.skipif(
  browser.PATH is None, reason="Chromium is not installed; .ci/run installs it where it can"
)
STACKS = 10


@pytest.fixture(scope="module")
def study(tmp_path_factory):
  """Ten stacks of the phantom, and their true labels in `study.truth`."""
  folder = tmp_path_factory.mktemp("page") / "study"
  phantom = spec.named("demo")
  rows, truth = [], {}
  for number, drawn in enumerate(anatomy.draw_anatomies(phantom)[:STACKS]):
    plan = annotators.plan_stack(phantom, drawn)
    where = pathlib.Path(drawn.patient_id, f"VivaStack #{number}")
    (folder / where).mkdir(parents=True)
    for t, pixels in enumerate(render.render_stack(phantom, drawn, plan)):
      Image.fromarray(np.asarray(pixels)).save(folder / where / f"v{t:07d}.bmp")
    rows.append((drawn.stack_id, drawn.patient_id, where, phantom.depth_step_um, phantom.pixel_um))
    truth[drawn.stack_id] = np.maximum.accumulate(np.maximum(plan.labels, 1))
  header = ("stack_id", "patient_id", "path", "step_um", "pixel_um")
  studies.write_table(folder / "manifest.csv", header, rows)
  return folder, truth


@pytest.fixture(scope="module")
def chromium(tmp_path_factory):
  with browser.Browser(tmp_path_factory.mktemp("profile")) as opened:
    yield opened
    # What a killed server does not answer is no fault of the page.
    assert [e for e in opened.errors if "net::ERR_" not in e and "409" not in e] == []


@pytest.fixture
def show(chromium):
  """Opens windows, and closes them after the test."""
  pages = []

  def opened(address):
    pages.append(chromium.open(address))
    # Windows beside each other, none of them hidden.
    pages[-1].send("Emulation.setFocusEmulationEnabled", enabled=True)
    return pages[-1]

  yield opened
  for page in pages:
    page.close()


@pytest.fixture
def serve(study):
  started = []

  def start(reader, *options):
    started.append(Server(study[0], reader, *options))
    return started[-1]

  yield start
  for server in started:
    if server.process.poll() is None:
      server.kill()


def test_ten_stacks_by_keys_and_by_dragging_through_a_kill(study, show, serve):
  folder, truth = study
  server = serve("ann", "--repeats=0")
  page = show(server.address)
  path, log = folder / "labels" / "ann.csv", folder / "labels" / "ann.log.jsonl"
  ways = [label_by_keys] * 4 + [lambda p, v: label_by_dragging(p, v, p.drag)] * 4
  ways += [lambda p, v: label_by_dragging(p, v, p.touch_drag)] * 2
  done = []
  for number, label in enumerate(ways, start=1):
    ready(page, number)
    if number == 9:
      page.resize(1024, 768, touch=True)
      page.wait("document.querySelector('#stage').clientWidth < 700")
    # The page does not tell which stack this is; a first change makes the log tell.
    go_to(page, 1)
    page.key("j")
    page.wait(SAVED)
    stack_id = events(log)[-1]["stack_id"]
    if number == 5:
      # Half labelled: killed, begun again, gone on where it was.
      server.kill()
      server = serve("ann", "--repeats=0")
      page.go(server.address)
      ready(page, 5)
      assert page.text("#progress") == "4 done, 6 to go"
      assert page.text("#state") == "begun"
      assert page.value("document.querySelector('.handle[data-i=\"1\"]').ariaValueNow") == "1"
      assert set(labels_of(path)) == set(done)
    label(page, truth[stack_id])
    page.key("Enter")
    done.append(stack_id)
  page.wait("document.querySelector('#ask').textContent.startsWith('All stacks are done')")
  server.kill()
  assert len(set(done)) == STACKS
  found = labels_of(path)
  for stack_id, labels in truth.items():
    assert found[stack_id] == [STRATA[label] for label in labels]
  out = studies.succeed(
    "rcm_clinical", folder, folder.parent / "data", "--check", f"--labels={path}"
  )
  assert f"stacks      {STACKS} of" in out


def test_what_the_page_can_do_besides(study, show, serve, tmp_path):
  folder, truth = study
  for name, labels in truth.items():
    prediction(tmp_path / "read" / f"{name}.json", "", "".join("_edm"[label] for label in labels))
  server = serve("bob", "--repeats=0.2", f"--predictions={tmp_path / 'read'}")
  page = show(server.address)
  log = folder / "labels" / "bob.log.jsonl"
  ready(page)
  assert page.text("#title") == "Stack 1 of 12"
  # Done is refused while a boundary is missing.
  page.key("Enter")
  page.wait("document.querySelector('#ask').textContent.includes('Where does DEJ')")
  # A boundary across another takes it along, and is undone.
  go_to(page, 6)
  page.key("j")
  go_to(page, 3)
  page.key("d")
  page.wait(SAVED)
  assert events(log)[-1]["answer"]["starts"] == [0, 3, 3]
  page.key("u")
  page.wait(
    SAVED + " && document.querySelector('.handle[data-i=\"2\"]').classList.contains('unset')"
  )
  assert events(log)[-1]["answer"]["starts"] == [0, 6, None]
  # Wheel, slider's ends, zoom and contrast.
  x, y = page.middle("#stage")
  page.mouse("mouseWheel", x, y, deltaX=0, deltaY=120)
  page.wait("document.querySelector('#slider').value === '6'")
  page.key("+")
  page.wait("document.querySelector('#zoom').textContent === '150 %'")
  page.key("a")
  page.wait("document.querySelector('#canvas').style.filter.includes('contrast')")
  page.key("0")
  page.wait("document.querySelector('#canvas').style.filter === ''")
  # The model's answer, before the own one: noted.
  page.key("p")
  page.wait("!document.querySelector('#model').hidden")
  assert events(log)[-1]["event"] == "predictions"
  assert page.value("document.querySelectorAll('.strip').length") == 2
  # Slice by slice, out of order; a note typed into its field.
  page.key("End")
  page.key("d")
  page.key("s")
  go_to(page, 0)
  for key in "jej":
    page.key(key)
  page.key("t")
  page.type("inverted ⚠")
  page.key("Escape")
  page.wait(SAVED)
  answer = events(log)[-1]["answer"]
  assert answer["labels"][:3] == [2, 1, 2]
  assert answer["note"] == "inverted ⚠"
  # By the mouse: the brush of the button, over several slices at once.
  page.click("#strata .stratum-row:nth-child(3) button")
  count = len(answer["labels"])
  page.drag(at(page, 5.5, count), at(page, 8.5, count), steps=1)
  page.wait(SAVED)
  assert events(log)[-1]["answer"]["labels"][5:9] == [3, 3, 3, 3]
  # Cannot be read, with a reason; on to the next one.
  page.key("x")
  page.wait("document.querySelector('#unreadable').open")
  page.click("#reasons label:nth-child(2)")
  page.click("#unreadable-save")
  ready(page, 2)
  assert page.text("#progress") == "1 done, 11 to go"
  assert labels_of(folder / "labels" / "bob.csv").popitem()[1] == ["unreadable"]
  # The room, the help, and no way for keys to slip through it.
  page.key("?")
  page.wait("document.querySelector('#help').open")
  page.key("j")
  page.key("Escape")
  page.wait("!document.querySelector('#help').open")
  assert page.value("document.querySelector('.handle[data-i=\"1\"]').classList.contains('unset')")
  page.room("light")
  page.key("l")
  page.wait("document.documentElement.dataset.room === 'dark'")
  # A boundary's own keys, for whoever has no pointer.
  page.value("document.querySelector('.handle[data-i=\"1\"]').focus()")
  page.key("ArrowDown")
  page.key("ArrowDown")
  page.wait(SAVED)
  assert events(log)[-1]["answer"]["starts"] == [0, 1, None]
  unnamed = page.value(
    "[...document.querySelectorAll('button, input, textarea, progress')].filter(e => !e.ariaLabel &&"
    " !e.labels?.length && !e.textContent.trim()).map(e => e.outerHTML)"
  )
  assert unnamed == []
  server.kill(signal.SIGTERM)


def test_two_windows_and_a_server_that_ends(study, show, serve):
  folder, _ = study
  server = serve("cy", "--repeats=0")
  log = folder / "labels" / "cy.log.jsonl"
  first, second = show(server.address), show(server.address)
  ready(first)
  ready(second)
  go_to(first, 4)
  first.key("j")
  first.wait(SAVED)
  go_to(second, 7)
  second.key("j")
  second.wait("document.querySelector('#conflict').open")
  assert "from slice 4" in second.text("#conflict-answers")
  assert events(log)[-1]["answer"]["starts"] == [0, 4, None]
  second.click("#take-theirs")
  second.wait("document.querySelector('.handle[data-i=\"1\"]').ariaValueNow === '4'")
  second.key("d")
  second.wait(SAVED)
  assert events(log)[-1]["answer"]["starts"] == [0, 4, 7]
  server.kill()
  second.key("u")
  second.wait("document.querySelector('#saved').textContent.startsWith('Not saved')")
  assert events(log)[-1]["answer"]["starts"] == [0, 4, 7]


def test_a_boundary_that_is_dragged_past_another_leaves_it_where_it_was(study, show, serve):
  folder, _ = study
  page = show(serve("fay", "--repeats=0").address)
  log = folder / "labels" / "fay.log.jsonl"
  starts = lambda: events(log)[-1]["answer"]["starts"]
  ready(page)
  count = int(page.value("document.querySelector('#slider').max")) + 1
  drag = lambda i, t: page.drag(page.middle(f'.handle[data-i="{i}"]'), at(page, t, count), steps=12)
  drag(2, 9)
  page.wait(SAVED)
  drag(1, 4)  # from the bottom, below the dermis
  page.wait(SAVED)
  assert starts() == [0, 4, 9]
  drag(1, 12)
  page.wait(SAVED)
  assert starts() == [0, 12, 12]
  page.key("u")
  page.wait(SAVED + " && document.querySelector('.handle[data-i=\"2\"]').ariaValueNow === '9'")
  assert starts() == [0, 4, 9]


def blank(page):
  """Whether no picture is shown."""
  return page.value(
    "(() => { const c = document.querySelector('#canvas'); const d = c.getContext('2d')"
    ".getImageData(0, 0, c.width, c.height).data; return d.every((x) => x === 0); })()"
  )


def test_no_picture_stands_under_another_slices_or_stacks_name(study, show, serve):
  page = show(serve("dan", "--repeats=0").address)
  ready(page)
  assert not blank(page)
  page.send("Network.setBlockedURLs", urls=["*/task/*/slice/1"])
  page.key("ArrowDown")
  page.key("n")
  page.wait("document.querySelector('#title').textContent.startsWith('Stack 2 of')")
  ready(page, 2)
  page.key("ArrowDown")
  assert now(page) == 1
  assert blank(page)
  page.key("ArrowDown")
  page.wait("document.querySelector('#stage').dataset.drawn === '2'")
  assert not blank(page)
  page.send("Network.setBlockedURLs", urls=["*/task/*/slice/*"])
  page.key("n")
  page.wait("document.querySelector('#title').textContent.startsWith('Stack 3 of')")
  assert blank(page)
  page.send("Network.setBlockedURLs", urls=[])
  ready(page, 3)
  assert not blank(page)


def test_keys_that_come_before_the_next_stack_change_nothing(study, show, serve):
  folder, _ = study
  page = show(serve("eve", "--repeats=0").address)
  ready(page)
  go_to(page, 3)
  page.key("j")
  go_to(page, 5)
  page.key("d")
  page.wait(SAVED)
  page.send(
    "Network.emulateNetworkConditions",
    offline=False, latency=400, downloadThroughput=-1, uploadThroughput=-1,
  )  # fmt: skip
  page.key("Enter")
  page.wait(SAVED)
  for key in ("Enter", "j", "Enter", "u"):
    page.key(key)
  ready(page, 2)
  assert page.value("document.querySelector('.handle[data-i=\"1\"]').classList.contains('unset')")
  for _ in range(3):
    time.sleep(0.2)
    assert page.text("#title").startswith("Stack 2 of")
  go_to(page, 4)
  page.key("j")
  page.wait(SAVED)
  said = [event for event in events(folder / "labels" / "eve.log.jsonl") if "answer" in event]
  kept = {event["stack_id"]: event["answer"] for event in said}
  assert [answer["starts"] for answer in kept.values()] == [[0, 3, 5], [0, 4, None]]
  assert [answer["state"] for answer in kept.values()] == ["done", "draft"]
