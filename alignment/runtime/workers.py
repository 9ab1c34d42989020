"""Several workers on one machine: this command again, each with an index.

They share the working directory and its locks (`locks.py`), and no JAX operation. The
first one starts the others, watches them, and ends with them.
"""

from collections.abc import Iterator
import contextlib
import subprocess
import sys

from alignment.runtime import hosts
from alignment.types import PREEMPTED_STATUS, Preempted, UserError


class Fellows:
  """The workers that this one has started: none, for all but the first."""

  def __init__(self, processes: list[subprocess.Popen]):
    self._processes = processes

  def check(self) -> None:
    """Raises if one was pre-empted or failed (it has said why)."""
    statuses = {process.poll() for process in self._processes}
    if PREEMPTED_STATUS in statuses:
      raise Preempted("a worker was pre-empted")
    if statuses - {None, 0}:
      raise UserError("a worker failed, see above; the same command resumes")

  def wait(self) -> None:
    """Until all have ended; raises as `check`."""
    for process in self._processes:
      process.wait()
    self.check()


@contextlib.contextmanager
def started(count: int) -> Iterator[Fellows]:
  """So many further workers, with `--worker=1` and on; none outlives the block."""
  command = [sys.executable, "-m", "alignment.main", *sys.argv[1:]]
  processes = [
    subprocess.Popen([*command, f"--worker={i}"]) for i in range(1, count + 1)
  ]
  hosts.pass_on_to(processes)
  try:
    yield Fellows(processes)
  finally:
    for process in processes:
      process.terminate()
    for process in processes:
      process.wait()
