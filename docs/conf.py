"""The site of `make docs`: pages in Markdown, the reference from docstrings."""

from pathlib import Path
import sys

sys.path.insert(0, str(Path(__file__).parent))  # docstrings.py

project = "Online and offline alignment"
author = "its authors"
extensions = [
  "myst_parser",
  "sphinx.ext.autodoc",
  "sphinx.ext.autosummary",
  "sphinx.ext.viewcode",
  "sphinx_copybutton",
  "docstrings",
]
exclude_patterns = ["_templates"]
templates_path = ["_templates"]

html_theme = "sphinx_book_theme"
html_title = "Does alignment need online sampling?"
html_theme_options = {"show_toc_level": 2, "navigation_with_keys": False}
html_copy_source = False

myst_enable_extensions = ["deflist", "colon_fence"]
myst_heading_anchors = 3  # links to headings are checked down to this level

# Every module of the package gets a page, found by walking it: api.md names two roots.
autosummary_generate = True
autosummary_ignore_module_all = False
autodoc_default_options = {
  "members": True,
  "undoc-members": True,
  "member-order": "bysource",
  "show-inheritance": True,
}
autodoc_typehints = "signature"
autodoc_preserve_defaults = True  # as in the source: no addresses, no long reprs
