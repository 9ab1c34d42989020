"""A directory of files that appears under its name only when all of them are there."""

from collections.abc import Iterator
import contextlib
import os
from pathlib import Path
import shutil

import safetensors

from alignment.types import UserError


@contextlib.contextmanager
def appearing_whole(directory: str | os.PathLike, like: str) -> Iterator[Path]:
  """Where to write instead, until then.

  Args:
    directory: one that does not exist yet, or is empty.
    like: a file that will be in it, whose mode weights get: they are born with 0600,
      whatever the umask.

  Raises:
    UserError: if it is in use or cannot be written.
  """
  directory = Path(os.path.abspath(directory))
  if directory.is_file() or directory.is_dir() and any(directory.iterdir()):
    raise UserError(f"{directory}: exists already; delete it or name another directory")
  partial = directory.with_name(f".{directory.name}.partial-{os.getpid()}")
  try:
    partial.mkdir(parents=True)
    yield partial
    for file in partial.glob("*.safetensors"):
      shutil.copymode(partial / like, file)
    os.replace(partial, directory)
  except (OSError, safetensors.SafetensorError) as error:
    raise UserError(f"{directory}: cannot be written ({error})") from error
  finally:
    shutil.rmtree(partial, ignore_errors=True)
