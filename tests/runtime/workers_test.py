"""Local workers: each has cores of its own."""

import os
import subprocess
import sys

import pytest


@pytest.mark.skipif(os.cpu_count() < 2, reason="needs two cores to share")
def test_workers_have_cores_of_their_own():
  """Also where the first has narrowed its share before it starts the second."""
  code = (
    "import os, subprocess, sys\n"
    "from alignment.runtime import workers\n"
    "index = int(sys.argv[1])\n"
    "workers.share_cores(index, 2)\n"
    "print(*os.sched_getaffinity(0), flush=True)\n"
    "if index == 0:\n"
    "  subprocess.run([sys.executable, '-c', sys.argv[2], '1'], check=True)\n"
  )
  command = [sys.executable, "-c", code, "0", code]
  output = subprocess.run(command, check=True, capture_output=True, text=True).stdout
  first, second = (set(line.split()) for line in output.splitlines())
  assert first and second and not first & second
