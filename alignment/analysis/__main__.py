"""Redraws the figures, claims.csv and report.html of a working directory.

  python -m alignment.analysis WORKDIR

From its files alone: neither the configuration nor the models are needed.
"""

from collections.abc import Sequence
import os
from pathlib import Path
import signal
import sys

from alignment.analysis.results import redraw
from alignment.runtime import output
from alignment.types import UserError


def main(arguments: Sequence[str]) -> int:
  """Runs the command; returns its exit status."""
  output.any_text()
  if set(arguments) & {"-h", "--help"}:
    print(__doc__)
    return 0
  try:
    redraw(_workdir(arguments))
    return 0
  except UserError as error:
    line = f"error: {error}"
  except BrokenPipeError:
    # Python would fail once more when it flushes at its end.
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    line = "error: nobody reads this output; what it names is written"
  except OSError as error:
    where = f"{error.filename}: " if error.filename else ""
    line = f"error: {where}{error.strerror or error}"
  except KeyboardInterrupt:
    print("interrupted; the same command does it again", file=sys.stderr)
    return 128 + signal.SIGINT
  print(line, file=sys.stderr)
  return 1


def _workdir(arguments: Sequence[str]) -> Path:
  usage = "python -m alignment.analysis WORKDIR"
  for argument in arguments:
    if argument.startswith("-"):
      raise UserError(f"no option '{argument}'; the command is {usage}")
  if len(arguments) != 1:
    raise UserError(f"one working directory is needed; the command is {usage}")
  try:
    workdir = Path(arguments[0]).expanduser()
  except RuntimeError as error:
    raise UserError(f"{arguments[0]}: {error}") from None
  if not workdir.is_dir():
    raise UserError(f"{workdir}: no such directory; the command is {usage}")
  return workdir


if __name__ == "__main__":
  sys.exit(main(sys.argv[1:]))
