"""The report: safe text, nothing from outside, and a viewer that works in a browser."""

from __future__ import annotations

import html
import json
import pathlib
import re
import shutil
import subprocess

import bundles
import jsonschema
import numpy as np
import pytest

from rcm_jax.inference import html_report
from rcm_jax.inference.interpretation import MOSAICS

EVIL = "</script><img src=x onerror=\"alert('1')\">{{data}}&amp;"


def result_of(count: int = 12, name: str = "stack") -> dict:
  strata = (
    ["epidermis"] * (count // 2)
    + ["dej"] * (count // 4)
    + ["dermis"] * (count - count // 2 - count // 4)
  )
  slices = [
    {
      "slice": t,
      "name": f"{name} {t}",
      "depth_um": 3.0 * t,
      "stratum": stratum,
      "most_probable_stratum": stratum,
      "probabilities": {s: 0.8 if s == stratum else 0.1 for s in ("epidermis", "dej", "dermis")},
    }
    for t, stratum in enumerate(strata)
  ]
  boundary = lambda name, t: {
    "name": name,
    "shown": True,
    "probability_shown": 0.9,
    "depth_um": 3.0 * t,
    "low_um": 3.0 * t - 6,
    "high_um": 3.0 * t + 6,
    "slice": t,
    "lateral_um": None,
    "read_by_eye": t == 9,
  }
  return {
    "schema": "rcm_jax.prediction/2",
    "stack": {"id": name, "source": f"/data/{name}", "step_um": 3.0, "pixel_um": 0.5, "tiles": 1},
    "model": {
      "image_size": 80,
      "field_um": 192.0,
      "strata": ["epidermis", "dej", "dermis"],
      "method": "toeplitz_d1",
      "members": 3,
      "dataset": "rcm_phantom/demo",
      "coverage": 0.9,
      "measured_coverage": {"epidermis_dej": 0.8, "dej_dermis": None},
      "test_patients": 7,
      "temperature": 1.0,
      "version": "0",
    },
    "slices": slices,
    "boundaries": [boundary("epidermis_dej", 6), boundary("dej_dermis", 9)],
    "thickness": [],
    "plan": [
      {
        "name": m,
        "depth_um": 8.0 + 6 * i,
        "low_um": 7.0,
        "high_um": 30.0,
        "slice": 3 + 2 * i,
        "note": "",
      }
      for i, m in enumerate(MOSAICS[:4])
    ]
    + [
      {
        "name": MOSAICS[4],
        "depth_um": None,
        "low_um": None,
        "high_um": None,
        "slice": None,
        "note": "none",
      }
    ],
    "warnings": [{"code": "step", "message": f"odd {name}"}],
    "attention": np.eye(count).tolist(),
    "use": "Research use; not a medical device.",
  }


def test_names_from_files_stay_text():
  page = html_report.render(result_of(name=EVIL), bundles.slices(12, size=16))
  assert "<img src=x" not in page
  assert html.escape(EVIL) in page
  data = re.search(r'<script type="application/json" id="data">(.*?)</script>', page, re.S)[1]
  assert json.loads(data)["result"]["stack"]["id"] == EVIL
  assert len(json.loads(data)["images"]) == 12


def test_nothing_comes_from_outside():
  page = html_report.render(result_of(), bundles.slices(12, size=16))
  addresses = set(re.findall(r"https?://[^\s\"'<>)]+", page))
  assert addresses == {"http://www.w3.org/2000/svg"}  # a name, never fetched
  assert "default-src 'none'" in page
  assert not re.search(r"<(?:script|link|img|iframe)[^>]+(?:src|href)=\"(?!data:|\")", page)
  assert not re.search(r"\{\{\w+\}\}", page)


def test_the_made_up_result_is_one():
  schema = pathlib.Path(html_report.__file__).with_name("prediction.schema.json")
  jsonschema.validate(result_of(), json.loads(schema.read_text()))


def test_intervals_say_what_they_promise_and_what_they_kept():
  page = html_report.render(result_of(), bundles.slices(12, size=16))
  assert "in a random stack of a random patient, with a probability of 90%;" in page
  assert "in stacks of 7 test patients they did: epidermis–DEJ 80%." in page
  result = result_of()
  result["model"] = {**result["model"], "coverage": None}
  assert "Intervals are meant" not in html_report.render(result, bundles.slices(12, size=16))


def test_slices_are_shown_no_larger_than_needed():
  page = html_report.render(result_of(), bundles.slices(12, size=700))
  small = html_report.render(result_of(), bundles.slices(12, size=512))
  assert len(page) < 1.2 * len(small)


# Runs in the page, before and after its own script; what it saw ends up in the document.
WATCH = """<script>
window.faults = [];
window.addEventListener("error", e => window.faults.push(e.message));
document.addEventListener("securitypolicyviolation", e => window.faults.push(e.violatedDirective));
</script>"""
ACT = """<script>
window.addEventListener("load", () => {
  const log = [], id = name => document.getElementById(name);
  const cursor = () => Number(document.querySelector("#cursor").getAttribute("x1"));
  const see = what => log.push(
    [what, Number(id("slider").value), id("image").src, id("tag").textContent, cursor()]);
  const key = name => document.dispatchEvent(new KeyboardEvent("keydown", { key: name }));
  see("start");
  id("slider").value = 2;
  id("slider").dispatchEvent(new Event("input"));
  see("slider");
  for (const name of ["ArrowRight", "ArrowDown", "ArrowLeft", "End", "ArrowRight", "PageUp",
    "Home", "ArrowUp", "3", "5", "q"]) { key(name); see(name); }
  document.querySelector("[data-slice='9']").click();
  see("button");
  const box = id("chart").getBoundingClientRect();
  const place = { clientX: box.right - 1, clientY: box.top + 60 };
  id("chart").dispatchEvent(new PointerEvent("pointerdown", place));
  see("tap");
  const wide = document.documentElement.scrollWidth > window.innerWidth;
  const page = getComputedStyle(document.body).backgroundColor;
  const scale = document.querySelector(".scale").textContent;
  const starts = [...document.querySelectorAll("#chart rect[data-stratum]")].map(r => Number(r.getAttribute("x")));
  const lines = [...document.querySelectorAll("#chart line[data-boundary]")].map(r => Number(r.getAttribute("x1")));
  document.body.dataset.seen = JSON.stringify({ log, ribbon: starts, boundaries: lines,
    faults: window.faults, wide, page, scale,
    natural: id("image").naturalWidth });
});
</script>"""

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")
FLAGS = (
  "--headless",
  "--no-sandbox",
  "--disable-gpu",
  "--disable-quic",
  "--no-first-run",
  "--disable-background-networking",
  "--disable-component-update",
  "--disable-sync",
  "--virtual-time-budget=3000",
)


def browse(folder, page, *options):
  """Opens a page in a browser; returns what `ACT` saw there."""
  path = folder / "page.html"
  path.write_text(page.replace("<head>", f"<head>{WATCH}", 1).replace("</body>", f"{ACT}</body>"))
  command = [CHROMIUM, *FLAGS, f"--user-data-dir={folder / 'profile'}", *options, "--dump-dom"]
  done = subprocess.run([*command, path.as_uri()], capture_output=True, text=True, timeout=120)
  found = re.search(r'data-seen="([^"]*)"', done.stdout)
  assert found, done.stderr
  return json.loads(html.unescape(found[1]))


@pytest.mark.skipif(CHROMIUM is None, reason="needs Chromium (Debian package chromium)")
def test_the_viewer_works_in_a_browser(tmp_path):
  page = html_report.render(result_of(name=EVIL), bundles.slices(12, size=64))
  seen = browse(tmp_path, page, "--window-size=390,844")
  assert seen["faults"] == []
  assert not seen["wide"]  # nothing to scroll sideways for on a phone
  assert seen["natural"] == 64
  assert seen["scale"] == "5 µm"
  steps = {what: index for what, index, *_ in seen["log"]}
  assert [index for _, index, *_ in seen["log"]] == [6, 2, 3, 4, 3, 11, 11, 6, 0, 0, 7, 7, 7, 9, 11]
  assert steps["button"] == 9
  sources = {index: source for _, index, source, *_ in seen["log"]}
  assert len(set(sources.values())) == len(sources)  # every slice shows its own image
  cursors = {index: x for _, index, _, _, x in seen["log"]}
  assert [cursors[i] for i in sorted(cursors)] == sorted(cursors.values())
  assert seen["log"][0][3] == "slice 6 of 0–11 · 18.0 µm · DEJ"
  # The bar changes where the boundary's line stands.
  np.testing.assert_allclose(seen["ribbon"][1:], seen["boundaries"], atol=0.1)


@pytest.mark.skipif(CHROMIUM is None, reason="needs Chromium (Debian package chromium)")
def test_dark_mode_is_dark(tmp_path):
  result = {**result_of(), "attention": None}
  result["stack"] = {**result["stack"], "pixel_um": 0.5}
  page = html_report.render(result, bundles.slices(12, size=64))
  brightness = {}
  for scheme in (0, 1):  # dark, light
    folder = tmp_path / str(scheme)
    folder.mkdir()
    seen = browse(folder, page, f"--blink-settings=preferredColorScheme={scheme}")
    assert seen["faults"] == []
    brightness[scheme] = sum(map(int, re.findall(r"\d+", seen["page"])[:3]))
  assert brightness[0] < 150 < 600 < brightness[1]
