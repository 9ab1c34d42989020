"""Configuration files as documents: Python that is run anew for every study."""

from collections.abc import Iterator
import contextlib
from pathlib import Path
import traceback
from types import ModuleType

from alignment.study.schema import FILE
from alignment.types import UserError


def load(path: str | Path, beside: str = "") -> ModuleType:
  """A Python file as a module, such as a document that another one is built on.

  It is run anew by each call, and leaves nothing in sys.modules or on the disk.

  Args:
    path: the file.
    beside: a file (a document's `__file__`) from whose directory `path` leads there;
      without it, the working directory.

  Raises:
    UserError: if it cannot be read, and for whatever it raises.
  """
  path = Path(beside).parent / path
  module = ModuleType(path.stem)
  module.__file__ = str(path)
  try:
    source = path.read_bytes()
  except (OSError, ValueError) as error:  # the latter for a NUL in its name
    raise UserError(f"{path}: {getattr(error, 'strerror', error)}") from None
  with mistakes_in(path):
    # Its rules' source is looked up later, perhaps from another working directory.
    exec(compile(source, str(path.absolute()), "exec"), vars(module))
  return module


@contextlib.contextmanager
def mistakes_in(path: Path) -> Iterator[None]:
  """Whatever the code of a user's file raises, as a UserError that names the line."""
  try:
    yield
  except UserError:
    raise
  except Exception as error:  # it is a program: there is nothing that it cannot raise
    lines = [
      f"{frame.filename}:{frame.lineno}"
      for frame in traceback.extract_tb(error.__traceback__)
      # Of the file, or of what it loads.
      if Path(frame.filename).parent.absolute() == path.parent.absolute()
    ]
    where = lines[-1] if lines else path
    raise UserError(f"{where}: {type(error).__name__}: {_reason(error)}") from None


def _reason(error: Exception) -> str:
  """An exception's text as a line."""
  while error.args and isinstance(error.args[0], KeyError):  # as ConfigDict wraps them
    error = error.args[0]
  if not isinstance(error, KeyError):
    return " ".join(str(error).split())
  text = str(*error.args[:1])  # of a KeyError itself it is the repr
  # ConfigDict goes on with all values of the section that lacks the key.
  text = text.partition(". Other fields present")[0]
  return f"{' '.join(text.split())}; all keys are in {FILE}"
