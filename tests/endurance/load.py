"""What a large pair file and a long run cost, measured in this process.

  python -m tests.endurance.load --pairs=1000000 --kind=parquet --steps=100000

Prints one JSON object: seconds (of the clock, and of this process's processor time) to
index, split and shuffle the file, to reach the first batch of a training, to resume a
log of that many steps; and the most memory that was taken.
"""

from collections.abc import Iterator
import itertools
import json
import os
from pathlib import Path
import random
import resource
import sys
import tempfile
import time
from typing import Any

import jax
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from alignment.data import order, pairs
from alignment.runtime import metrics
from alignment.study import artefacts
from tests import studies

ROOT = Path(__file__).parents[2]
hh_small = studies.document("hh_small")
WORDS = "we could also ask what they would have done before it was so late".split()


def pairs_of_text(count: int) -> Iterator[dict[str, str]]:
  """HH-like transcripts: about 300 bytes a pair."""
  rng = random.Random(0)
  for i in range(count):
    words = rng.choices(WORDS, k=30)
    prompt = f"\n\nHuman: {i} {' '.join(words[:14])}?\n\nAssistant:"
    chosen, rejected = " ".join(words[14:24]), " ".join(words[24:])
    yield {"prompt": prompt, "chosen": chosen, "rejected": f"{rejected}."}


def write_lines(path: Path, count: int) -> None:
  with open(path, "w", encoding="utf-8") as f:
    f.writelines(json.dumps(row) + "\n" for row in pairs_of_text(count))


def write_parquet(path: Path, count: int) -> None:
  """In groups of rows as large as pyarrow makes them, the most there is in use."""
  rows = pairs_of_text(count)
  blocks = iter(lambda: list(itertools.islice(rows, 10_000)), [])
  table = pa.concat_tables(pa.Table.from_pylist(block) for block in blocks)
  pq.write_table(table, path)


WRITERS = {"jsonl": write_lines, "parquet": write_parquet}


def timed(function, *args) -> tuple[Any, dict[str, float]]:
  wall, cpu = time.perf_counter(), time.process_time()
  result = function(*args)
  spent = {"clock": time.perf_counter() - wall, "processor": time.process_time() - cpu}
  return result, {name: round(seconds, 2) for name, seconds in spent.items()}


def write_pairs(kind: str, path: Path, count: int) -> None:
  """In a process of its own, whose memory is not counted."""
  if not os.fork():
    WRITERS[kind](path, count)
    os._exit(0)
  _, status = os.wait()
  assert status == 0


def load(count: int, kind: str, scratch: Path) -> dict[str, Any]:
  path = scratch / f"pairs.{kind}"
  write_pairs(kind, path, count)
  config = hh_small.get_config("bytes")
  config.data.path = str(path)
  before = peak()

  def index() -> Path:
    data = studies.graph(config).models()["data"]
    artefacts.run([data], scratch)
    rows = order.index_for(0, 1, len(pairs.PairDataset.load(train(data))), seed=1)
    assert len(rows) == 1
    return train(data)

  def train(data: artefacts.Artefact) -> Path:
    return data.verified(scratch) / "train"

  def start() -> None:
    dataset = pairs.PairDataset.load(directory)
    rows = order.index_for(1000, 32, len(dataset), seed=2)
    dataset.batch(rows, config.prompt_length, config.response_length)

  directory, indexing = timed(index)
  _, starting = timed(start)
  return {
    "pairs": count,
    "kind": kind,
    "file_mb": round(path.stat().st_size / 1e6),
    "index_seconds": indexing,
    "first_batch_seconds": starting,
    "memory_mb": round(peak()),
    "memory_of_indexing_mb": round(peak() - before),
  }


def log(steps: int, scratch: Path) -> dict[str, Any]:
  """A run that logs at every step, and its restart at the end."""
  values = {name: 1.0 for name in ("loss", "rho", "accuracy", "grad_norm")}

  def write() -> None:
    run = metrics.MetricLog(scratch, "load", steps, 0, 0)
    for step in range(1, steps + 1):
      run.write(step, values, ())
    run.close()

  def resume() -> None:
    metrics.MetricLog(scratch, "load", steps, steps, steps).close()

  _, writing = timed(write)
  _, resuming = timed(resume)
  rows, reading = timed(metrics.read_jsonl, scratch / "metrics.jsonl")
  assert [row["step"] for row in rows] == list(range(1, steps + 1))
  events = sum(p.stat().st_size for p in (scratch / "tensorboard").iterdir())
  return {
    "steps": steps,
    "log_seconds": writing,
    "resume_seconds": resuming,
    "read_seconds": reading,
    "metrics_mb": round((scratch / "metrics.jsonl").stat().st_size / 1e6, 1),
    "events_mb": round(events / 1e6, 1),
  }


def peak() -> float:
  """The most memory this process has had, MB."""
  return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e6


if __name__ == "__main__":
  jax.config.update("jax_platforms", "cpu")
  np.seterr(all="raise")
  options = dict(option.removeprefix("--").split("=") for option in sys.argv[1:])
  with tempfile.TemporaryDirectory() as scratch:
    costs: dict[str, Any] = {}
    if "pairs" in options:
      costs |= load(int(options["pairs"]), options.get("kind", "jsonl"), Path(scratch))
    if "steps" in options:
      costs |= log(int(options["steps"]), Path(scratch))
    print(json.dumps(costs))
