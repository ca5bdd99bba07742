"""A real, headless Chromium, driven over its DevTools pipe with real key, mouse and touch events."""

from __future__ import annotations

import base64
import contextlib
import itertools
import json
import os
from pathlib import Path
import select
import shutil
import subprocess
import time
from typing import Any

PATH = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
_FLAGS = (
  "--headless", "--no-sandbox", "--disable-gpu", "--no-first-run", "--disable-background-networking",
  "--disable-sync", "--disable-extensions", "--disable-component-update", "--mute-audio",
  "--disable-dev-shm-usage", "--remote-debugging-pipe",
)  # fmt: skip
_KEYS = {
  "Enter": 13, "Escape": 27, "PageUp": 33, "PageDown": 34, "End": 35, "Home": 36, "ArrowLeft": 37,
  "ArrowUp": 38, "ArrowRight": 39, "ArrowDown": 40, "Tab": 9, " ": 32,
}  # fmt: skip
_SHIFT = 8


class Browser:
  """One Chromium with a profile of its own; a context manager."""

  def __init__(self, profile: Path):
    to_browser, self._out = os.pipe()
    self._in, from_browser = os.pipe()

    # The pipe's two ends must be 3 and 4, which a shell can arrange without a fork of this process.
    self._process = subprocess.Popen(
      [
        "bash", "-c", f'exec "$0" "$@" 3<&{to_browser} 4>&{from_browser}',
        PATH, *_FLAGS, f"--user-data-dir={profile}", "about:blank",
      ],
      stdout=subprocess.DEVNULL,
      stderr=subprocess.DEVNULL,
      pass_fds=(to_browser, from_browser),
    )  # fmt: skip
    os.close(to_browser)
    os.close(from_browser)
    self._ids = itertools.count(1)
    self._buffer = b""
    self.errors: list[str] = []  # what a page's program threw or complained of

  def __enter__(self) -> Browser:
    return self

  def __exit__(self, *_) -> None:
    with contextlib.suppress(OSError, TimeoutError, EOFError):
      self.send("Browser.close")
    try:
      self._process.wait(5)
    except subprocess.TimeoutExpired:
      self._process.kill()
      self._process.wait()
    os.close(self._out)
    os.close(self._in)

  def send(self, method: str, session: str | None = None, **params: Any) -> dict[str, Any]:
    number = next(self._ids)
    message = {"id": number, "method": method, "params": params}
    if session:
      message["sessionId"] = session
    os.write(self._out, json.dumps(message).encode() + b"\0")
    while True:
      reply = self._read()
      if reply.get("id") == number:
        if "error" in reply:
          raise RuntimeError(f"{method}: {reply['error']['message']}")
        return reply["result"]

  def _read(self, timeout: float = 20) -> dict[str, Any]:
    while b"\0" not in self._buffer:
      if not select.select([self._in], [], [], timeout)[0]:
        raise TimeoutError("Chromium says nothing")
      data = os.read(self._in, 1 << 20)
      if not data:
        raise EOFError("Chromium has ended")
      self._buffer += data
    line, _, self._buffer = self._buffer.partition(b"\0")
    message = json.loads(line)
    params = message.get("params", {})
    if message.get("method") == "Runtime.exceptionThrown":
      details = params["exceptionDetails"]
      self.errors.append(details.get("exception", {}).get("description") or details["text"])
    if message.get("method") == "Log.entryAdded" and params["entry"]["level"] == "error":
      self.errors.append(f"{params['entry']['text']} {params['entry'].get('url', '')}")
    return message

  def open(self, url: str, size: tuple[int, int] = (1440, 900)) -> Page:
    target = self.send("Target.createTarget", url="about:blank")["targetId"]
    session = self.send("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
    page = Page(self, session, target)
    for domain in ("Page", "Runtime", "Log", "Network"):
      page.send(f"{domain}.enable")
    page.resize(*size)
    page.go(url)
    return page


class Page:
  """One window."""

  def __init__(self, browser: Browser, session: str, target: str):
    self._browser = browser
    self._session = session
    self._target = target

  def close(self) -> None:
    self._browser.send("Target.closeTarget", targetId=self._target)

  def send(self, method: str, **params: Any) -> dict[str, Any]:
    return self._browser.send(method, self._session, **params)

  def go(self, url: str) -> None:
    self.send("Page.navigate", url=url)

  def resize(self, width: int, height: int, *, touch: bool = False) -> None:
    self.send(
      "Emulation.setDeviceMetricsOverride", width=width, height=height, deviceScaleFactor=1,
      mobile=touch,
    )  # fmt: skip
    self.send("Emulation.setTouchEmulationEnabled", enabled=touch)

  def room(self, scheme: str) -> None:
    self.send(
      "Emulation.setEmulatedMedia", features=[{"name": "prefers-color-scheme", "value": scheme}]
    )

  def value(self, expression: str) -> Any:
    """The value of a JavaScript expression; promises are awaited."""
    reply = self.send(
      "Runtime.evaluate", expression=expression, returnByValue=True, awaitPromise=True
    )
    if "exceptionDetails" in reply:
      raise RuntimeError(f"{expression}: {reply['exceptionDetails']}")
    return reply["result"].get("value")

  def wait(self, expression: str, seconds: float = 15) -> None:
    """Waits until an expression is true; one that fails is not true yet."""
    end = time.monotonic() + seconds
    while not self.value(
      f"(() => {{ try {{ return Boolean({expression}) }} catch {{ return false }} }})()"
    ):
      if time.monotonic() > end:
        raise TimeoutError(f"{expression} is not true; errors: {self._browser.errors}")
      time.sleep(0.02)

  def text(self, selector: str) -> str:
    return self.value(f"document.querySelector({selector!r}).textContent")

  def key(self, key: str, shift: bool = False) -> None:
    code = _KEYS.get(key) or ord(key.upper())
    named = {"key": key.upper() if shift and len(key) == 1 else key, "windowsVirtualKeyCode": code}
    named["modifiers"] = _SHIFT if shift else 0
    text = (
      {"text": "\r" if key == "Enter" else named["key"]} if len(key) == 1 or key == "Enter" else {}
    )
    self.send("Input.dispatchKeyEvent", type="keyDown", **named, **text)
    self.send("Input.dispatchKeyEvent", type="keyUp", **named)

  def type(self, text: str) -> None:
    self.send("Input.insertText", text=text)

  def middle(self, selector: str) -> tuple[float, float]:
    box = self.value(
      f"(() => {{ const b = document.querySelector({selector!r}).getBoundingClientRect();"
      " return [b.x + b.width / 2, b.y + b.height / 2]; })()"
    )
    return box[0], box[1]

  def mouse(self, kind: str, x: float, y: float, **more: Any) -> None:
    held = {"button": "left", "clickCount": 1} if kind != "mouseWheel" else {}
    self.send("Input.dispatchMouseEvent", type=kind, x=x, y=y, **held, **more)

  def click(self, selector: str) -> None:
    x, y = self.middle(selector)
    for kind in ("mouseMoved", "mousePressed", "mouseReleased"):
      self.mouse(kind, x, y)

  def drag(self, start: tuple[float, float], end: tuple[float, float], steps: int = 4) -> None:
    self.mouse("mouseMoved", *start)
    self.mouse("mousePressed", *start)
    for k in range(1, steps + 1):
      at = (start[0] + (end[0] - start[0]) * k / steps, start[1] + (end[1] - start[1]) * k / steps)
      self.mouse("mouseMoved", *at, buttons=1)
    self.mouse("mouseReleased", *end)

  def touch_drag(
    self, start: tuple[float, float], end: tuple[float, float], steps: int = 4
  ) -> None:
    self.send(
      "Input.dispatchTouchEvent", type="touchStart", touchPoints=[{"x": start[0], "y": start[1]}]
    )
    for k in range(1, steps + 1):
      x, y = (a + (b - a) * k / steps for a, b in zip(start, end))
      self.send("Input.dispatchTouchEvent", type="touchMove", touchPoints=[{"x": x, "y": y}])
    self.send("Input.dispatchTouchEvent", type="touchEnd", touchPoints=[])

  def picture(self, path: Path) -> None:
    data = self.send("Page.captureScreenshot", format="png")["data"]
    path.write_bytes(base64.b64decode(data))
