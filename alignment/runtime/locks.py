"""One maker per artefact: a lock that the death of its holder frees.

On file systems with `flock` the system frees it at once. Mounted buckets (FUSE) grant
`flock` to every machine, so there it is a lease: a file that its holder rewrites all
the time, and that anybody may take who has not seen it change for a minute. No clocks
are compared between machines.
"""

from collections.abc import Iterator
import contextlib
import errno
import fcntl
import os
from pathlib import Path
import sys
import threading
import time
import uuid

LEASE_SECONDS = 60.0  # without a heartbeat, until the holder counts as dead
SETTLE_SECONDS = 2.0  # in which machines that reached for a lease at once see it

_seen: dict[Path, tuple[str, float]] = {}  # leases of others: content, since when


@contextlib.contextmanager
def lock(workdir: Path, key: str) -> Iterator[bool]:
  """Holds an artefact's lock, if it is free; yields whether it was."""
  path = workdir / "locks" / key
  path.parent.mkdir(parents=True, exist_ok=True)
  with contextlib.ExitStack() as stack:
    held = None if is_fuse(path.parent) else _flock(path, stack)
    yield _lease(path.with_name(f"{key}.lease"), stack) if held is None else held


def said_file(workdir: Path, key: str) -> Path:
  """Where the holder of an artefact's lock says what it does (activity.py)."""
  return workdir / "locks" / f"{key}.json"


def is_held(workdir: Path, key: str) -> bool | None:
  """Whether somebody holds an artefact's lock; None for a lease, which may be dead.

  Writes nothing. Who reaches for the lock at this very moment misses it, and tries
  again.
  """
  path = workdir / "locks" / key
  if path.with_name(f"{key}.lease").exists():
    return None
  try:
    with open(path) as f:
      fcntl.flock(f, fcntl.LOCK_SH | fcntl.LOCK_NB)
  except BlockingIOError:
    return True
  except OSError:  # there is no such file, or there are no locks here
    pass
  return False


def _flock(path: Path, stack: contextlib.ExitStack) -> bool | None:
  """Whether the lock was free; None where there are no locks."""
  f = stack.enter_context(open(path, "w"))
  try:
    fcntl.flock(f, fcntl.LOCK_EX | fcntl.LOCK_NB)
  except BlockingIOError:
    return False
  except OSError as error:
    if error.errno in (errno.ENOTSUP, errno.ENOSYS, errno.ENOLCK, errno.EINVAL):
      return None
    raise
  return True


def is_fuse(directory: Path) -> bool:
  """Whether the directory's mount is a user-space file system (Linux only)."""
  mounts = Path("/proc/self/mounts")
  if not mounts.exists():
    return False
  place = f"{directory.resolve()}/"
  rows = [line.split()[1:3] for line in mounts.read_text().splitlines()]
  types = {at: kind for at, kind in rows if place.startswith(at.rstrip("/") + "/")}
  return types[max(types, key=len)].startswith("fuse") if types else False


def _lease(path: Path, stack: contextlib.ExitStack) -> bool:
  if not _expired(path):
    return False
  token, stop = uuid.uuid4().hex, threading.Event()
  path.write_text(f"{token} 0")
  time.sleep(SETTLE_SECONDS)  # who wrote last has it
  if _owner(path) != token:
    return False

  def beat() -> None:
    count = 0
    while not stop.wait(LEASE_SECONDS / 6):
      if _owner(path) != token:  # we were silent for too long: another one works on it
        print(f"error: {path}: the lease was lost to another process", file=sys.stderr)
        os._exit(1)
      count += 1
      path.write_text(f"{token} {count}")

  heart = threading.Thread(target=beat, daemon=True)
  heart.start()
  # Last in, first out: the heart stops before the lease goes.
  stack.callback(lambda: path.unlink(missing_ok=True))
  stack.callback(heart.join)
  stack.callback(stop.set)
  return True


def _expired(path: Path) -> bool:
  """True if nobody holds the lease, or it has not changed while we looked on."""
  try:
    content = path.read_text()
  except FileNotFoundError:
    return True
  now = time.monotonic()
  before, since = _seen.get(path, ("", now))
  if content != before:
    _seen[path] = content, now
    return False
  return now - since > LEASE_SECONDS


def _owner(path: Path) -> str:
  try:
    return path.read_text().partition(" ")[0]
  except FileNotFoundError:
    return ""
