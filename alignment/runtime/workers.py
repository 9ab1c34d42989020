"""Local workers: this command in several processes of one machine without accelerators.

The first worker starts the others, ends when they have, and takes them along when it
is stopped. They share the cores, not the computation: each takes stages of its own.
"""

from collections.abc import Iterator
import contextlib
import os
import signal
import subprocess
import sys

from alignment.runtime import hosts, interrupts
from alignment.types import PREEMPTED_STATUS, Preempted, UserError


def share_cores(index: int, workers: int) -> None:
  """Gives each of several local workers its share of the cores, before JAX starts.

  The first worker starts the others when it has narrowed its own share already, so it
  leaves all that there were in the environment.
  """
  if workers > 1 and hasattr(os, "sched_setaffinity"):
    available = ",".join(map(str, sorted(os.sched_getaffinity(0))))
    names = os.environ.setdefault("ALIGNMENT_CORES", available).split(",")
    cores = [int(name) for name in names]
    os.sched_setaffinity(0, cores[index::workers] if len(cores) >= workers else cores)


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
  """So many further workers: this command, with `--worker=1` and on.

  None outlives the block.
  """
  command = [sys.executable, "-m", "alignment.main", *sys.argv[1:]]
  processes = _start([[*command, f"--worker={i}"] for i in range(1, count + 1)])
  try:
    yield Fellows(processes)
  finally:
    for process in processes:
      process.terminate()
    for process in processes:
      process.wait()


def _start(commands: list[list[str]]) -> list[subprocess.Popen]:
  """Other workers, which this process takes along: it asks them to stop when it is
  asked, and ends them when it is interrupted; they themselves ignore SIGINT.
  """
  processes: list[subprocess.Popen] = []
  with interrupts.held():  # or one of them would not be known yet
    answer = signal.signal(signal.SIGINT, signal.SIG_IGN)  # which they inherit
    try:
      for command in commands:
        processes.append(subprocess.Popen(command))
    finally:
      signal.signal(signal.SIGINT, answer)
      hosts.pass_on_to(processes)
  return processes
