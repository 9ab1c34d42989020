"""docs/tutorial.ipynb: stored without outputs, and every cell runs."""

import importlib
import json
from pathlib import Path
import sys

import pytest

from alignment.core.losses import registry
from alignment.study.graph import Study

ROOT = Path(__file__).resolve().parents[1]
TUTORIAL = ROOT / "docs/tutorial.ipynb"


@pytest.fixture
def notebooks(monkeypatch):
  monkeypatch.setattr(sys, "path", [str(ROOT / "docs"), *sys.path])
  return importlib.import_module("notebooks")


def cells(kind: str) -> list[str]:
  notebook = json.loads(TUTORIAL.read_text(encoding="utf-8"))
  return ["".join(c["source"]) for c in notebook["cells"] if c["cell_type"] == kind]


def test_the_tutorial_is_stored_without_outputs_and_links_to_pages():
  notebook = json.loads(TUTORIAL.read_text(encoding="utf-8"))
  code = [cell for cell in notebook["cells"] if cell["cell_type"] == "code"]
  assert not any(cell["outputs"] or cell["execution_count"] for cell in code)
  for page in ("running", "experiments", "your_data"):
    assert f"({page}.md)" in "".join(cells("markdown"))
    assert (ROOT / "docs" / f"{page}.md").exists()


def test_the_tutorials_cells_run_up_to_its_study(notebooks, monkeypatch):
  """The losses, and a configuration that nothing refuses: the slow test runs it."""
  monkeypatch.setattr(registry, "LOSSES", dict(registry.LOSSES))
  namespace: dict = {}
  outputs = []
  for source in cells("code"):
    if "commands.run(" in source or "figures.draw(" in source:
      continue
    outputs.append(notebooks.execute(source, "tutorial", namespace)[0])
  text = "\n".join(outputs)
  assert "ipo   [0.01 0.49]" in text
  (mine,) = namespace["mine"]
  assert isinstance(mine, Study) and "evaluate_world0_online_bent" in text


@pytest.mark.slow
def test_the_whole_tutorial_runs(notebooks, monkeypatch):
  monkeypatch.setattr(registry, "LOSSES", dict(registry.LOSSES))
  page = notebooks.markdown(TUTORIAL.read_text(encoding="utf-8"))
  assert "--- pair 0" in page  # the batch
  assert page.count("<svg") == 1  # the figure
  assert "world0_offline_bent: step 80" in page  # the loss of one's own
  assert "sft_nano: done" not in page.partition("def bent")[2]  # shared


def test_a_page_has_what_cells_print_and_show(notebooks):
  drawing = "class D:\n  def _repr_html_(self):\n    return '<b>'\n\nD()"
  cells = [
    ("markdown", "# Title\ntext"),
    ("code", "x = 2\nprint('one')\nx + 1"),
    ("code", drawing),
  ]
  notebook = {"cells": [{"cell_type": k, "source": [text]} for k, text in cells]}
  page = notebooks.markdown(json.dumps(notebook))
  assert page.startswith("# Title\ntext\n\n```python\nx = 2\n")
  assert "````text\none\n````\n\n````text\n3\n````" in page
  assert page.endswith("````{raw} html\n<b>\n````\n")
  assert "one\n````" not in notebooks.markdown(json.dumps(notebook), run=False)
