"""Chromium without a window, through its driver: a page as its readers see it.

  python -m tests.analysis.browser REPORT DIRECTORY

writes how a report begins, with a point named: `desktop.png`, `dark.png`, `phone.png`.
"""

import base64
from collections.abc import Iterator
import contextlib
import json
from pathlib import Path
import re
import shutil
import subprocess
import sys
import tempfile
from typing import Any
import urllib.request

DESKTOP, PHONE = 1200, 390  # pixels
NAMES = ("chromium", "chromium-browser", "google-chrome")
FLAGS = (
  "--headless",
  "--no-sandbox",
  "--disable-gpu",
  "--disable-quic",
  "--no-first-run",
  "--disable-background-networking",
  "--disable-component-update",
  "--disable-sync",
)


def programs() -> tuple[str, str] | None:
  """The browser and its driver; None unless both are installed."""
  browser = next(filter(None, map(shutil.which, NAMES)), None)
  driver = shutil.which("chromedriver")
  return (browser, driver) if browser and driver else None


class Browser:
  """A session of the driver: https://www.w3.org/TR/webdriver2/."""

  def __init__(self, address: str, capabilities: dict[str, Any]):
    self._session = address
    content = {"capabilities": {"alwaysMatch": capabilities}}
    self._session = f"{address}/{self._call('POST', '', content)['sessionId']}"

  def _call(self, method: str, path: str, content: Any = None) -> Any:
    data = None if content is None else json.dumps(content).encode()
    request = urllib.request.Request(
      self._session + path, data, {"Content-Type": "application/json"}, method=method
    )
    with urllib.request.urlopen(request, timeout=120) as response:
      return json.load(response)["value"]

  def command(self, name: str, **parameters: Any) -> Any:
    """Of the DevTools protocol: https://chromedevtools.github.io/devtools-protocol/."""
    content = {"cmd": name, "params": parameters}
    return self._call("POST", "/goog/cdp/execute", content)

  def open(self, page: Path, width: int, *, dark: bool = False) -> None:
    """Shows a page on a screen of this width; narrow ones are a phone's, with touch."""
    phone = width < 600
    self.command(
      "Emulation.setDeviceMetricsOverride",
      width=width, height=844, deviceScaleFactor=1, mobile=phone,
    )  # fmt: skip
    self.command("Emulation.setTouchEmulationEnabled", enabled=phone)
    scheme = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
    self.command("Emulation.setEmulatedMedia", features=[scheme])
    self._call("POST", "/url", {"url": page.resolve().as_uri()})

  def run(self, script: str) -> Any:
    """What the body of a function returns, in the page."""
    return self._call("POST", "/execute/sync", {"script": script, "args": []})

  def complaints(self) -> list[str]:
    """What the console has since the last call: errors, and what the policy refused."""
    entries = self._call("POST", "/se/log", {"type": "browser"})
    return [f"{entry['level']}: {entry['message']}" for entry in entries]

  def move_to(self, x: float, y: float) -> None:
    self.command("Input.dispatchMouseEvent", type="mouseMoved", x=x, y=y)

  def touch(self, x: float, y: float) -> None:
    points = [{"x": x, "y": y}]
    self.command("Input.dispatchTouchEvent", type="touchStart", touchPoints=points)
    self.command("Input.dispatchTouchEvent", type="touchEnd", touchPoints=[])

  def screenshot(self, path: Path) -> None:
    """Of what is on the screen."""
    path.write_bytes(base64.b64decode(self._call("GET", "/screenshot")))

  def close(self) -> None:
    self._call("DELETE", "")


@contextlib.contextmanager
def opened(profile: Path) -> Iterator[Browser]:
  """A browser with a new profile in the directory `profile`.

  `programs` must not be None.
  """
  browser, driver = programs() or ("", "")
  capabilities = {
    "goog:chromeOptions": {
      "binary": browser,
      "args": [*FLAGS, f"--user-data-dir={profile}"],
    },
    "goog:loggingPrefs": {"browser": "ALL"},
  }
  process = subprocess.Popen(
    [driver, "--port=0"], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
  )
  try:
    assert process.stdout
    ports = (re.search(r"on port (\d+)\.", line) for line in process.stdout)
    port = next(filter(None, ports))[1]
    session = Browser(f"http://127.0.0.1:{port}/session", capabilities)
    try:
      yield session
    finally:
      session.close()
  finally:
    process.terminate()
    process.wait()


# Scrolls to the first figure; where the point at its middle is, and what it is called.
POINT = """
const points = document.querySelector("svg").querySelectorAll(".points circle");
points[0].ownerSVGElement.scrollIntoView({block: "end"});
const point = points[Math.floor(points.length / 4)];
const at = point.getBoundingClientRect();
return [at.x + at.width / 2, at.y + at.height / 2, point.getAttribute("aria-label")];
"""


def take_screenshots(report: Path, directory: Path) -> None:
  directory.mkdir(parents=True, exist_ok=True)
  with tempfile.TemporaryDirectory() as profile, opened(Path(profile)) as session:
    for name, width in (("desktop", DESKTOP), ("dark", DESKTOP), ("phone", PHONE)):
      session.open(report, width, dark=name == "dark")
      x, y, _ = session.run(POINT)
      session.touch(x, y) if width == PHONE else session.move_to(x, y)
      session.screenshot(directory / f"{name}.png")


if __name__ == "__main__":
  take_screenshots(Path(sys.argv[1]), Path(sys.argv[2]))
