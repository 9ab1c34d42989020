"""Notebooks as pages of the site: run from top to bottom, with what their cells show.

A notebook is JSON and its cells are Python: no Jupyter is needed to run them, only to
edit them. Like there, a cell's last expression is shown: as HTML or SVG if it knows how
to be, else as its `repr`.
"""

import ast
import contextlib
import io
import json
from typing import Any


def markdown(notebook: str, run: bool = True) -> str:
  """A notebook's page in MyST Markdown.

  Args:
    notebook: the content of an .ipynb file.
    run: whether to run its code cells, in order and in one namespace.

  Raises:
    Exception: whatever a cell raises.
  """
  namespace: dict[str, Any] = {"__name__": "notebook"}
  parts = []
  for number, cell in enumerate(json.loads(notebook)["cells"]):
    source = "".join(cell["source"])
    if cell["cell_type"] == "markdown":
      parts.append(source)
      continue
    parts.append(f"```python\n{source}\n```")
    if run:
      parts += _shown(*execute(source, f"cell {number}", namespace))
  return "\n\n".join(parts) + "\n"


def execute(source: str, name: str, namespace: dict[str, Any]) -> tuple[str, Any]:
  """Runs a cell; what it printed, and the value of its last expression or None."""
  tree, printed, value = ast.parse(source, name), io.StringIO(), None
  last = tree.body.pop() if isinstance(tree.body[-1], ast.Expr) else None
  with contextlib.redirect_stdout(printed):
    exec(compile(tree, name, "exec"), namespace)
    if isinstance(last, ast.Expr):
      value = eval(compile(ast.Expression(last.value), name, "eval"), namespace)
  return printed.getvalue(), value


def _shown(printed: str, value: Any) -> list[str]:
  parts = [f"````text\n{printed.rstrip()}\n````"] if printed.strip() else []
  for name in ("_repr_html_", "_repr_svg_"):
    if hasattr(value, name):
      html = getattr(value, name)()
      return [*parts, f"````{{raw}} html\n{html}\n````"]
  return [*parts, f"````text\n{value!r}\n````"] if value is not None else parts


def setup(app) -> dict[str, bool]:
  from myst_parser.parsers.sphinx_ import MystParser

  class NotebookParser(MystParser):
    supported = ("notebook",)

    def parse(self, inputstring: str, document: Any) -> None:
      super().parse(markdown(inputstring), document)

  app.add_source_suffix(".ipynb", "notebook")
  app.add_source_parser(NotebookParser)
  return {"parallel_read_safe": False}
