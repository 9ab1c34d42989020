"""Local workers: this command in several processes of one machine without accelerators.

The first worker starts the others, ends when they have, and takes them along when it
is stopped. They share the cores, not the computation: each takes stages of its own.
"""

import os
import signal
import subprocess

from alignment.runtime import hosts, interrupts


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


def start(commands: list[list[str]]) -> list[subprocess.Popen]:
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
