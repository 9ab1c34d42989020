"""What was compiled, as a file; and that the docs' table says the same."""

from pathlib import Path
import re
import sys

import pytest

from alignment.study.estimate import Memory
from alignment.types import UserError
from launch.fit import layout, results, table

ROOT = Path(__file__).parents[2]
CELL = re.compile(r"(v\w+-\d+)( refused)?: (\*\*)?([\d.]+)")


@pytest.fixture(scope="module")
def documented():
  """(size, trained, slice) -> (refused, bold, number), as docs/memory.md has it."""
  names = {title: size for size, title in table.SIZES.items()}
  page = (ROOT / "docs/memory.md").read_text(encoding="utf-8")
  cells = {}
  for line in page.splitlines():
    head, *others = line.strip("| ").split(" | ")
    if head in names:
      trained = others[0]
      for slice_, *cell in CELL.findall(line):
        cells[names[head], trained, slice_] = tuple(cell)
  return cells


def test_the_docs_have_a_line_for_all(documented):
  lines = {key[:2] for key in documented}
  assert lines == {(size, trained) for size in table.SIZES for trained in table.TRAINED}


def test_bold_numbers_of_the_docs_are_the_compilers(documented):
  compiled = results.read(table.RESULTS)
  assert compiled
  for key, (refused, bold, number) in documented.items():
    assert bool(bold) == (key in compiled), key
    if bold:
      need = compiled[key]
      assert (not refused, f"**{number}**") == (need.fits, str(need)), key


def test_what_was_appended_is_read(tmp_path):
  path = tmp_path / "new" / "compiled.csv"
  assert results.read(path) == {}
  memory = Memory(1 * results.GIB, 2 * results.GIB, 4 * results.GIB)
  for slice_, limit in ("v5e-4", 6.5), ("v5e-8", 7.5):
    results.append(path, ("a", "full", slice_), memory, limit=limit)
  small, large = results.read(path).values()
  assert (small.total, str(small)) == (7.0, "**7.0**")
  assert large.fits and not small.fits
  assert results.Need(6.0, 6.5).fits and not results.Need(6.0, 6.5, margin=1.1).fits


PROGRAM = """
import os, pathlib, sys, time
(flag,) = os.environ["XLA_FLAGS"].split()
dump = pathlib.Path(flag.removeprefix("--xla_dump_to="))
dump.joinpath("m.cpu_after_optimizations-memory-usage-report.txt").touch()
print("hello", flush=True)
report = dump / "m.jit_f.cl_1.after_optimizations-memory-usage-report.txt"
if sys.argv[1] != "fails":
  report.write_text("Memory Space: default (color=0)\\nTotal bytes: 123 (123B)\\n")
if sys.argv[1] == "fits":
  dump.joinpath("m.jit_f.cl_1.after_optimizations_after_buffer_assignment.txt").touch()
  time.sleep(600)
sys.exit("out of memory")
"""


@pytest.mark.parametrize("how", ["fits", "refused"])
def test_compiling_ends_when_memory_is_laid_out(monkeypatch, tmp_path, how):
  monkeypatch.delenv("XLA_FLAGS", raising=False)
  command = (sys.executable, "-c", PROGRAM, how)
  assert layout.laid_out(command, tmp_path) == ("hello\n", 123)


def test_compiling_that_fails_says_why(monkeypatch, tmp_path):
  monkeypatch.delenv("XLA_FLAGS", raising=False)
  with pytest.raises(UserError, match="no layout: out of memory"):
    layout.laid_out((sys.executable, "-c", PROGRAM, "fails"), tmp_path)
