"""A parent for a process that may be aborted: it says why, and ends with a status.

The coordination service can only abort a process whose peer is gone. Here that becomes
one clear line and a status that says: run me again.
"""

import contextlib
import ctypes
import os
import signal
import sys

from alignment.runtime import interrupts
from alignment.types import PREEMPTED_STATUS


def supervise(heartbeat_seconds: int) -> int:
  """Goes on in a child process; says what happened if it is aborted.

  A signal that stops this process is passed on.

  Returns:
    (in the child) where to tell a status, should it be aborted on the way to that.
  """
  told, status_pipe = os.pipe()
  sys.stdout.flush()
  with interrupts.held():
    child = os.fork()
    if child == 0:
      os.close(told)
      die_with_parent()
      return status_pipe

    def pass_on(number: int, _) -> None:
      with contextlib.suppress(ProcessLookupError):  # it has just ended
        os.kill(child, number)

    os.close(status_pipe)
    for number in (signal.SIGTERM, signal.SIGINT):
      signal.signal(number, pass_on)
  status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
  if statuses := os.read(told, 16):
    status = statuses[0]
  elif status == -signal.SIGABRT:
    print(
      "error: aborted, most likely because another process of this job is gone (see "
      f"above; noticed within {heartbeat_seconds} s); run the same command again on "
      "all hosts",
      file=sys.stderr,
    )
    status = PREEMPTED_STATUS
  elif status < 0:
    print(f"error: killed by signal {-status}", file=sys.stderr)
    status = 128 - status
  sys.stderr.flush()
  os._exit(status)


def die_with_parent() -> None:
  """Asks the system (Linux) to stop this process when its parent dies."""
  if sys.platform == "linux":
    ctypes.CDLL(None).prctl(1, signal.SIGTERM)  # PR_SET_PDEATHSIG
