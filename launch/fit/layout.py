"""What the compiler lays out in a chip's memory, without the code that it then makes.

A train step takes it 15 seconds of a processor until memory is laid out, which is what
it refuses programs by, and then minutes to make code. So a process of its own compiles,
writes down what the compiler decides, and is ended when the layout is there.
"""

from collections.abc import Sequence
import os
from pathlib import Path
import re
import subprocess
import tempfile
import time

from alignment.types import UserError

# What XLA writes of a TPU's program, in this order; names for a CPU's differ.
_REPORT = "*.after_optimizations-memory-usage-report.txt"
_NEXT = "*.after_optimizations_after_buffer_assignment.txt"
_TOTAL = re.compile(r"Memory Space: default .*\nTotal bytes: (\d+)")


def laid_out(command: Sequence[str], directory: Path) -> tuple[str, int]:
  """Runs a command that compiles one program for a TPU, up to its layout.

  Args:
    command: a program and its arguments.
    directory: where it runs.

  Returns:
    What it printed, and the bytes of a chip that hold arguments and temporaries.

  Raises:
    UserError: if it ends without a layout.
  """
  with tempfile.TemporaryDirectory() as dump, tempfile.TemporaryFile("w+") as errors:
    flags = f"{os.environ.get('XLA_FLAGS', '')} --xla_dump_to={dump}".strip()
    child = subprocess.Popen(
      command,
      cwd=directory,
      env=os.environ | {"XLA_FLAGS": flags},
      stdout=subprocess.PIPE,
      stderr=errors,
      text=True,
    )
    try:
      while child.poll() is None and not any(Path(dump).glob(_NEXT)):
        time.sleep(0.5)
    finally:
      child.kill()
    printed, _ = child.communicate()
    reports = list(Path(dump).glob(_REPORT))
    if not reports:
      errors.seek(0)
      why = (errors.read().strip() or "it printed nothing").splitlines()[-1]
      raise UserError(f"{' '.join(command)}: no layout: {why}")
    return printed, total(reports[0].read_text(encoding="utf-8"))


def total(report: str) -> int:
  """Bytes in a chip's main memory, of XLA's report on one program."""
  match = _TOTAL.search(report)
  if match is None:
    raise UserError("XLA's report on memory has another form than this code reads")
  return int(match[1])
