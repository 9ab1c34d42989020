"""What a stage is doing, how fast, and how long yet: no silence of ten seconds.

Whoever does something that can be counted says so with a `Meter`. While a stage runs
(`telling`), a thread prints the meters' line after every ten seconds without another,
and keeps it in a file, which is what `--stages=status` shows in another process. The
file lies beside the stage's lock, and goes with it.
"""

from collections.abc import Iterator
import contextlib
import json
import math
import os
from pathlib import Path
import socket
import threading
import time
from typing import Any

from alignment.runtime import hosts
from alignment.runtime.files import write_atomically

SILENCE = 10.0  # seconds without a line, after which one is printed
_BEAT = 5.0  # seconds between versions of the file: a bucket takes one a second

_meters: list["Meter"] = []  # of what runs in this process, the outermost first
_told = time.monotonic()  # when a line was printed last


def progress(line: str) -> None:
  """Prints a line at once, on the first process only."""
  global _told
  _told = time.monotonic()
  if hosts.is_first():
    print(line, flush=True)


def duration(seconds: float) -> str:
  """`3h05m`, `4m10s` or `12s`."""
  s = round(seconds)
  if s >= 3600:
    return f"{s // 3600}h{s % 3600 // 60:02d}m"
  return f"{s // 60}m{s % 60:02d}s" if s >= 60 else f"{s}s"


class Meter:
  """How much of something is done: `with Meter("judging", 60_000, "pairs") as meter`.

  The first report holds compilation, so rates count from there.
  """

  def __init__(self, doing: str, total: int, unit: str, done: int = 0):
    """`total` may be 0, for what is not known before; `done` was done earlier."""
    self._doing, self._total, self._unit = doing, total, unit
    self._done = self._first = done
    self._since = self._start = time.monotonic()
    self._reports = 0

  def __enter__(self) -> "Meter":
    _meters.append(self)
    return self

  def __exit__(self, *_) -> None:
    _meters.remove(self)

  def reach(self, done: int) -> None:
    """So many are done by now."""
    self._done = done
    self._reports += 1
    if self._reports == 1:
      self._first, self._since = done, time.monotonic()

  def rate(self) -> float:
    """Per second, since the first report; NaN before the second."""
    seconds = time.monotonic() - self._since
    if self._reports < 2 or not seconds:
      return math.nan
    return (self._done - self._first) / seconds

  def left(self) -> float:
    """Seconds; NaN if it cannot be told."""
    rate = self.rate()
    return (self._total - self._done) / rate if self._total and rate > 0 else math.nan

  def line(self, innermost: bool = True) -> str:
    """`judging 4096/60000 pairs  812.0 pairs/s, 1m08s left`."""
    if innermost and not self._reports:
      so_far = duration(time.monotonic() - self._start)
      return f"{self._doing}, compiling or loading, {so_far} so far"
    total = f"/{self._total}" if self._total else ""
    return f"{self._doing} {self._done}{total} {self._unit}{self.speed()}"

  def speed(self) -> str:
    """`  812.0 pairs/s, 1m08s left`; empty where it cannot be told."""
    rate, left = self.rate(), self.left()
    if not rate > 0:
      return ""
    wait = "" if math.isnan(left) else f", {duration(left)} left"
    return (
      f"  {rate:.1f} {self._unit}/s{wait}"
      if rate >= 1
      else (f"  {duration(1 / rate)} each{wait}")
    )


@contextlib.contextmanager
def telling(name: str, file: Path) -> Iterator[None]:
  """While the stage of this name runs: lines, and what `read` finds in `file`."""
  if not hosts.is_first():
    yield
    return
  stop = threading.Event()
  thread = threading.Thread(target=_tell, args=(name, file, stop), daemon=True)
  thread.start()
  try:
    yield
  finally:
    stop.set()
    thread.join()
    file.unlink(missing_ok=True)


def _tell(name: str, file: Path, stop: threading.Event) -> None:
  start = time.monotonic()
  written = -_BEAT
  while not stop.wait(0.5):
    now = time.monotonic()
    if now - written >= _BEAT:
      written = now
      with contextlib.suppress(OSError):  # of a full disk the stage itself will speak
        write_atomically(file, json.dumps(_said(now - start)).encode())
    if now - _told >= SILENCE:
      progress(f"{name}: {_line() or f'{duration(now - start)} so far'}")


def _said(seconds: float) -> dict[str, Any]:
  return {
    "line": _line(),
    "host": socket.gethostname(),
    "process": os.getpid(),
    "seconds": seconds,
  }


def _line() -> str:
  meters = list(_meters)
  return "; ".join(meter.line(meter is meters[-1]) for meter in meters)


def read(file: Path) -> dict[str, Any] | None:
  """What the process that holds a stage last said of it, and how long ago.

  Keys: line, host, process, seconds (that it had run), age (seconds since). None if
  there is no file, or no whole one.
  """
  try:
    age = max(0.0, time.time() - file.stat().st_mtime)
    said = json.loads(file.read_text(encoding="utf-8"))
    return {key: said[key] for key in _said(0.0)} | {"age": age}
  except (OSError, ValueError, TypeError, KeyError):
    return None
