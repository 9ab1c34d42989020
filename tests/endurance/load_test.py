"""Size: a large pair file and a long run; `make soak` has a million pairs."""

import json
import subprocess
import sys

from tests.endurance import soak


def measured(**options) -> dict:
  command = [sys.executable, "-m", "tests.endurance.load"]
  command += [f"--{name}={value}" for name, value in options.items()]
  done = subprocess.run(
    command, cwd=soak.ROOT, capture_output=True, text=True, check=True
  )
  return json.loads(done.stdout.splitlines()[-1])


def test_50_000_pairs_are_streamed_and_a_long_log_resumes():
  """Processor time, which other work on the machine does not change much."""
  costs = measured(pairs=50_000, kind="parquet", steps=300)
  assert costs["index_seconds"]["processor"] < 10  # a million: under 60
  assert costs["first_batch_seconds"]["processor"] < 1
  assert costs["memory_of_indexing_mb"] < 200
  assert costs["resume_seconds"]["processor"] < 5
