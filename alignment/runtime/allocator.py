"""An allocator setting that programs on a CPU start with."""

import os
import signal
import sys

NAME = "GLIBC_TUNABLES"
VALUE = ":".join(
  (
    "glibc.malloc.mmap_threshold=4294967296",
    "glibc.malloc.trim_threshold=8589934592",
    "glibc.malloc.arena_max=1",  # the arenas of threads hold no buffer above 64 MB
    "glibc.malloc.hugetlb=1",  # pages of 2 MB, where the system has them on request
  )
)


def keep_memory() -> None:
  """Starts this program again with an allocator that keeps large buffers.

  By default glibc returns XLA:CPU's buffers to the system after every step, and the
  page faults of getting them back halve the speed of small models; huge pages save
  another 5 %. It reads these settings only when a process starts. SIGINT waits until
  the program has come here again, and with that to its answer.
  """
  if sys.platform == "linux" and NAME not in os.environ:
    command = [sys.executable, *sys.orig_argv[1:]]
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    os.execve(sys.executable, command, {**os.environ, NAME: VALUE})
  signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGINT})
