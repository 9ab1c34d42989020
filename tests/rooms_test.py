"""Imports go one way: a room imports only itself and the rooms below it."""

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
BELOW = {  # room -> what it may import
  "types": set(),
  "runtime": {"types"},
  "models": {"types", "runtime"},
  "data": {"types", "runtime"},
  "analysis": {"types", "runtime"},  # reads files only
  "core": {"types", "runtime", "models", "data"},
  "study": {"types", "runtime", "models", "data", "analysis", "core"},
  "flags": {"types", "runtime", "study"},
  "main": {"types", "runtime", "study", "flags"},
  "benchmark": {"types", "runtime", "models", "data", "core"},
  "judge_benchmark": {"types", "runtime", "analysis", "core", "study"},
}


def rooms_imported(path: Path) -> set[str]:
  """Rooms of this package that a file imports, wherever in it."""
  modules = []
  for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
    if isinstance(node, ast.Import):
      modules += [alias.name for alias in node.names]
    elif isinstance(node, ast.ImportFrom):
      assert node.level == 0, f"{path}: relative import"
      modules += [f"{node.module}.{alias.name}" for alias in node.names]
  return {m.split(".")[1] for m in modules if m.startswith("alignment.")}


@pytest.mark.parametrize("room", BELOW)
def test_a_room_imports_only_what_is_below_it(room):
  path = ROOT / "alignment" / room
  files = sorted(path.rglob("*.py")) if path.is_dir() else [path.with_suffix(".py")]
  for file in files:
    upward = rooms_imported(file) - BELOW[room] - {room}
    assert not upward, f"{file.relative_to(ROOT)} imports {', '.join(sorted(upward))}"


def test_every_file_is_in_a_room_and_every_room_says_what_it_is():
  entries = {
    p.stem for p in (ROOT / "alignment").glob("*") if not p.name.startswith("_")
  }
  assert entries == set(BELOW)
  for room in BELOW:
    init = ROOT / "alignment" / room / "__init__.py"
    if init.exists():
      docstring = ast.get_docstring(ast.parse(init.read_text(encoding="utf-8"))) or ""
      assert "May import" in docstring and "Start with" in docstring, room
