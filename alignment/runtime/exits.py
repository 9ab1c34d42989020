"""How a program ends: a status, and a line for what its user can mend."""

from collections.abc import Callable
import errno
import os
import sys

import jax

from alignment.runtime import hosts
from alignment.types import PREEMPTED_STATUS, Preempted, UserError

_OF_THE_DISK = (
  errno.ENOSPC,
  errno.EDQUOT,
  errno.EFBIG,
  errno.EROFS,
  errno.EACCES,
  errno.EPERM,
  errno.EIO,
  # Of paths that lead elsewhere than they should.
  errno.EEXIST,
  errno.ENOTDIR,
  errno.EISDIR,
  errno.ENOTEMPTY,
)


def exit_with_status(program: Callable[[], None]) -> None:
  """Runs it; ends with a line and a status instead of an exception of ours."""
  try:
    program()
    return
  except UserError as error:
    line, status = f"error: {error}", 1
  except BrokenPipeError:
    # Python would fail once more when it flushes at its end.
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    line, status = "error: nobody reads this output; the same command resumes", 1
  except OSError as error:
    if error.errno not in _OF_THE_DISK:
      hosts.tell_status(1)
      raise
    where = f"{error.filename}: " if error.filename else ""
    line = (
      f"error: {where}{error.strerror}; what was finished before is intact: mend this, "
      "then the same command resumes"
    )
    status = 1
  except Preempted as stop:
    line, status = f"{stop}; run the same command again", PREEMPTED_STATUS
  except Exception as error:
    if isinstance(error, jax.errors.JaxRuntimeError) and hosts.count() > 1:
      hosts.await_verdict(error)
    hosts.tell_status(1)
    raise
  print(line, file=sys.stderr)
  hosts.end(status)
  sys.exit(status)
