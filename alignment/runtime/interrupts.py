"""Ctrl-C (SIGINT): one line and status 130, at whatever moment.

Python's own answer is an exception wherever the main thread happens to be: in an
import, in a clean-up, or in a callback of C++ code that cannot pass it on. After it the
interpreter is taken down while threads of XLA, TensorStore and Orbax still run, which
crashes now and then. But nothing has to be cleaned up: what this program writes may be
cut off at any moment (tests/endurance), so the process ends where it is.

Imports nothing of ours or of others, so that it can come before imports that take time.
"""

from collections.abc import Callable, Iterator
import contextlib
import os
import signal

LINE = "interrupted; the same command resumes\n"
STATUS = 128 + signal.SIGINT


def end_at_once(farewell: Callable[[], None] = lambda: None) -> None:
  """From now on SIGINT ends this process, after its line and `farewell()`.

  Where it is ignored (by a shell's background jobs, by local workers), it stays so.
  """

  def end(*_) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # once is enough
    try:
      os.write(2, LINE.encode())  # not through buffers, which may be locked just now
      farewell()
    finally:
      os._exit(STATUS)

  if signal.getsignal(signal.SIGINT) != signal.SIG_IGN:
    signal.signal(signal.SIGINT, end)


@contextlib.contextmanager
def held() -> Iterator[None]:
  """SIGINT waits until the end of this block."""
  before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
  try:
    yield
  finally:
    signal.pthread_sigmask(signal.SIG_SETMASK, before)
