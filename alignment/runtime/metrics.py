"""Metrics: (sum, weight) pairs on the device, one number when they are logged."""

from collections.abc import Iterable, Mapping
import json
from pathlib import Path
import time
from typing import Any

import jax

from alignment.runtime import hosts
from alignment.runtime.activity import Meter, progress
from alignment.runtime.files import write_atomically
from alignment.runtime.tracking import Tracking, Writer, writers
from alignment.types import SumWeight, UserError


def fetch(metrics: Iterable[Mapping[str, SumWeight]]) -> list[dict[str, list[float]]]:
  """Metrics of steps as numbers on the host: exactly, and ready for JSON."""
  return [
    {name: [float(value), float(weight)] for name, (value, weight) in step.items()}
    for step in jax.device_get(list(metrics))
  ]


def reduce(metrics: Iterable[Mapping[str, SumWeight]]) -> dict[str, float]:
  """Adds up sums and weights over steps (fetching them), then divides once."""
  total: dict[str, list[float]] = {}
  for step_metrics in fetch(metrics):
    for name, (value, weight) in step_metrics.items():
      pair = total.setdefault(name, [0.0, 0.0])
      pair[0] += value
      pair[1] += weight
  return {name: v / w if w else float("nan") for name, (v, w) in total.items()}


class MetricLog:
  """One run's metrics: `metrics.jsonl`, trackers (tracking.py), a progress line.

  `metrics.jsonl` holds no times, so that a resumed run's file equals an undisturbed
  one's; lines past the step that a run resumes from are dropped. It warns if those up
  to `logged` are not there any more.

  Attributes:
    meter: of the steps; the progress line has its rate.
  """

  def __init__(
    self,
    directory: Path,
    name: str,
    total_steps: int,
    first_step: int,
    logged: int,
    tracking: Tracking | None = None,
  ):
    self._path = directory / "metrics.jsonl"
    self._name, self._total = name, total_steps
    self.meter = Meter("training", total_steps, "steps", first_step)
    self._printed = time.monotonic()
    rows = [r for r in read_jsonl(self._path) if r["step"] <= first_step]
    if (rows[-1]["step"] if rows else 0) < logged:
      progress(f"warning: {self._path} has lost rows up to step {logged}")
    text = "".join(json.dumps(row) + "\n" for row in rows)
    write_atomically(self._path, text.encode())
    self._writers: list[Writer] = []
    if hosts.is_first():
      self._writers = writers(tracking or Tracking(), directory, name)
    hosts.wait_for_first()  # some collectives wait for 30 s only

  def write(
    self, step: int, values: Mapping[str, float], show: tuple[str, ...]
  ) -> None:
    """Logs values at `step`, and prints those named in `show`, at most every 2 s."""
    if not hosts.is_first():
      return
    for writer in self._writers:
      writer.write(step, values)
    with open(self._path, "a", encoding="utf-8") as f:
      f.write(json.dumps({"step": step, **values}) + "\n")
    now = time.monotonic()
    if now - self._printed > 2 or step == self._total:
      self._printed = now
      shown = "  ".join(f"{k} {values[k]:.4g}" for k in show if k in values)
      speed = self.meter.speed()
      progress(f"{self._name}: step {step}/{self._total}  {shown}{speed}")

  def close(self) -> None:
    for writer in self._writers:
      writer.close()


def read_jsonl(path: Path) -> list[dict[str, Any]]:
  """The rows of a metrics file; a torn last line (a killed writer) is dropped.

  Raises:
    UserError: for any other line that is not a JSON object.
  """
  if not path.exists():
    return []
  lines = path.read_bytes().split(b"\n")
  torn = lines.pop()  # empty, if the last line was finished
  del torn
  rows = []
  for number, line in enumerate(lines, 1):
    try:
      row = json.loads(line)
      row["step"]
    except (ValueError, TypeError, KeyError):
      raise UserError(f"{path}:{number}: not a metrics line; delete the file") from None
    rows.append(row)
  return rows
